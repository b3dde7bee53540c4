"""BatchNorm statistics from a converted BigGAN checkpoint, with which its images are those of the original code.

For a generator trained here they are computed for each truncation (`standing_statistics`).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from noisytwins_jax.models.latents import Truncation
from noisytwins_jax.utils.errors import UserError

STATISTICS_FILE = "stored_moments.npz"
_NEAR = 1e-6


class StoredStatistics(NamedTuple):
    """Batch statistics for several strengths of a truncation.

    Attributes:
      kind: of the truncation; None for statistics without truncation, in a single row.
      strengths: ``[S]``, ascending.
      collections: ``{"batch_stats": …}``, every array ``[S, C]``.
    """

    kind: str | None
    strengths: np.ndarray
    collections: dict[str, Any]

    def at(self, truncation: Truncation | None) -> dict[str, Any] | None:
        """Return the collections for a truncation, interpolating linearly between rows; None if it is not covered."""
        if self.kind is None:
            return None if truncation is not None else self._row(0, 0.0)
        if truncation is None or truncation.kind != self.kind:
            return None
        strength = truncation.strength
        if not self.strengths[0] <= strength <= self.strengths[-1]:
            return None
        above = int(np.searchsorted(self.strengths, strength - _NEAR))
        if abs(self.strengths[above] - strength) <= _NEAR:
            return self._row(above, 0.0)
        low, high = self.strengths[above - 1], self.strengths[above]
        return self._row(above - 1, (strength - low) / (high - low))

    def _row(self, row: int, t: float) -> dict[str, Any]:
        def interpolate(x: np.ndarray) -> np.ndarray:
            return (x[row] if not t else (1 - t) * x[row] + t * x[row + 1]).astype(np.float32)

        flat = flatten_dict(self.collections)
        return unflatten_dict({path: interpolate(np.asarray(x)) for path, x in flat.items()})


def write_stored_statistics(workdir: Path, step: int, statistics: StoredStatistics) -> None:
    """Write the statistics of the generator of a step to its workdir."""
    about = json.dumps({"step": step, "kind": statistics.kind})
    flat = flatten_dict(statistics.collections, sep="/")
    np.savez(workdir / STATISTICS_FILE, about=np.array(about), strengths=statistics.strengths, **flat)


def read_stored_statistics(workdir: Path, step: int) -> StoredStatistics | None:
    """Read what `write_stored_statistics` wrote for the generator of this step; return None if there is nothing.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / STATISTICS_FILE
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            content = dict(arrays)
        about = json.loads(str(content.pop("about")))
        strengths = content.pop("strengths")
    except Exception:  # errors of zip archives, NumPy and JSON have many types
        raise UserError(f"{path} is damaged; convert the checkpoint again into another --workdir.") from None
    if about["step"] != step:
        return None
    return StoredStatistics(about["kind"], strengths, unflatten_dict(content, sep="/"))
