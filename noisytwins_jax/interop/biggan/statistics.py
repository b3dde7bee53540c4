"""BatchNorm statistics for each of several truncations, as the published BigGAN-deep stores them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from noisytwins_jax.utils.errors import UserError

NUM_TRUNCATIONS = 51  # in the published files: 0.00, 0.02, … 1.00

_ON_GRID = 1e-6  # a truncation this near to a row, in rows, gets the row's statistics


@dataclass(frozen=True)
class StatisticsGrid:
    """Means and variances of every BatchNorm of a generator, with a row for each truncation.

    Attributes:
      truncations: ``[S]``, evenly spaced from 0 to 1: factors of a normal distribution that is cut off at ±2.
      means, variances: ``[S, C]``, float32, by the layer's path: ``"blocks_0/bn1"``, ``"output_bn"``.
    """

    truncations: np.ndarray
    means: dict[str, np.ndarray]
    variances: dict[str, np.ndarray]

    @classmethod
    def repeated(cls, batch_stats: dict[str, Any], rows: int = NUM_TRUNCATIONS) -> "StatisticsGrid":
        """Build a grid that has the same statistics for every truncation."""
        flat = flatten_dict(batch_stats, sep="/")

        def repeat(name: str) -> dict[str, np.ndarray]:
            leaves = {path.removesuffix(f"/{name}"): x for path, x in flat.items() if path.endswith(f"/{name}")}
            return {path: np.tile(np.asarray(x, np.float32), (rows, 1)) for path, x in leaves.items()}

        return cls(np.linspace(0, 1, rows), repeat("mean"), repeat("var"))

    def at(self, truncation: float) -> dict[str, Any]:
        """Return the collection ``batch_stats`` for a truncation, interpolated linearly between rows.

        Hugging Face's code interpolates wrongly: it exchanges the weights of the two rows, and for 0.14, 0.28, 0.56, 0.58
        and 0.94, which are on the grid, it uses a neighbouring row. It therefore gives slightly different images.

        Args:
          truncation: from 0 to 1.

        Returns:
          float32 ``mean`` and ``var`` ``[C]`` of every layer.

        Raises:
          UserError: the truncation is outside the grid.
        """
        if not 0 <= truncation <= 1:
            raise UserError(
                f"A truncation of {truncation} has no BatchNorm statistics, which are from 0 to 1 in this checkpoint; "
                "give one from 0 to 1, or compute standing statistics."
            )
        position = truncation * (len(self.truncations) - 1)
        if abs(position - round(position)) < _ON_GRID:
            position = float(round(position))
        lower, share = int(position), position - int(position)
        flat = {}
        for leaf, rows in (("mean", self.means), ("var", self.variances)):
            for path, x in rows.items():
                row = x[lower] if not share else (1 - share) * x[lower] + share * x[lower + 1]
                flat[f"{path}/{leaf}"] = row.astype(np.float32)
        return unflatten_dict(flat, sep="/")
