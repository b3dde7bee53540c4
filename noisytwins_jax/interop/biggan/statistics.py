"""Moments of BatchNorm for each of several truncations, as the published BigGAN-deep keeps them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from noisytwins_jax.utils.errors import UserError

ROWS = 51  # of the published files: truncations 0.00, 0.02, … 1.00

_ON_GRID = 1e-6  # a truncation this near to a row, in rows, has the moments of the row


@dataclass(frozen=True)
class StatisticsGrid:
    """Means and variances of every BatchNorm of a generator, a row for each truncation.

    Attributes:
      truncations: ``[S]``, evenly from 0 to 1: factors of a normal distribution that is cut off at ±2.
      means, variances: ``[S, C]``, float32, by the layer's path: ``"blocks_0/bn1"``, ``"output_bn"``.
    """

    truncations: np.ndarray
    means: dict[str, np.ndarray]
    variances: dict[str, np.ndarray]

    @classmethod
    def repeated(cls, batch_stats: dict[str, Any], rows: int = ROWS) -> "StatisticsGrid":
        """One set of moments, for every truncation."""
        flat = flatten_dict(batch_stats, sep="/")

        def of(name: str) -> dict[str, np.ndarray]:
            found = {path.removesuffix(f"/{name}"): x for path, x in flat.items() if path.endswith(f"/{name}")}
            return {path: np.tile(np.asarray(x, np.float32), (rows, 1)) for path, x in found.items()}

        return cls(np.linspace(0, 1, rows), of("mean"), of("var"))

    def at(self, truncation: float, compatible: bool = False) -> dict[str, Any]:
        """The collection ``batch_stats`` for a truncation: float32 ``mean`` and ``var`` ``[C]`` of every layer.

        Between two rows moments are interpolated linearly. The published code gives the nearer row the weight of the
        farther one, and takes 0.14, 0.28, 0.56, 0.58 and 0.94, which rows are for, as just beside their rows, so that
        it uses a neighbour. `compatible` does the same, for the published images.

        Args:
          truncation: from 0 to 1.
          compatible: whether to be wrong as the published code is.

        Raises:
          UserError: there are no moments for such a truncation.
        """
        if not 0 <= truncation <= 1:
            raise UserError(
                f"A truncation of {truncation} has no moments, which are from 0 to 1 in this checkpoint; give one from "
                "0 to 1, or make moments of your own (standing statistics)."
            )
        lower, share = self._compatible(truncation) if compatible else self._position(truncation)
        flat = {}
        for leaf, rows in (("mean", self.means), ("var", self.variances)):
            for path, x in rows.items():
                between = x[lower] if not share else (1 - share) * x[lower] + share * x[lower + 1]
                flat[f"{path}/{leaf}"] = between.astype(np.float32)
        return unflatten_dict(flat, sep="/")

    def _position(self, truncation: float) -> tuple[int, float]:
        """The row at or below, and the share of the next one."""
        position = truncation * (len(self.truncations) - 1)
        if abs(position - round(position)) < _ON_GRID:
            return round(position), 0.0
        return int(position), position - int(position)

    def _compatible(self, truncation: float) -> tuple[int, float]:
        """The same, as the published code has it: a quotient of float64 numbers, and the shares exchanged."""
        share, lower = math.modf(truncation / (1.0 / (len(self.truncations) - 1)))
        return int(lower), (1 - share if share else 0.0)
