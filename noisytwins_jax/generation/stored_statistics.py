"""Moments of activations that came with a converted BigGAN: its images are then those of the code that it was trained with.

A generator that was trained here has its moments taken anew for each truncation (`sampling.standing_statistics`).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from noisytwins_jax.models.latents import Truncation
from noisytwins_jax.utils.errors import UserError

MOMENTS_FILE = "stored_moments.npz"
_NEAR = 1e-6


class StoredStatistics(NamedTuple):
    """Moments for some strengths of a truncation.

    Attributes:
      kind: of the truncation; None where they are of no truncation, in a single row.
      strengths: ``[S]``, rising.
      collections: ``{"batch_stats": …}``, every array ``[S, C]``.
    """

    kind: str | None
    strengths: np.ndarray
    collections: dict[str, Any]

    def at(self, truncation: Truncation | None) -> dict[str, Any] | None:
        """The collections for a truncation, between two rows linearly; None where these moments are of others."""
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

    def _row(self, row: int, share: float) -> dict[str, Any]:
        def one(x: np.ndarray) -> np.ndarray:
            return (x[row] if not share else (1 - share) * x[row] + share * x[row + 1]).astype(np.float32)

        flat = flatten_dict(self.collections)
        return unflatten_dict({path: one(np.asarray(x)) for path, x in flat.items()})


def write_stored_moments(workdir: Path, step: int, moments: StoredStatistics) -> None:
    """Writes the moments of the generator of a step into its workdir."""
    about = json.dumps({"step": step, "kind": moments.kind})
    flat = flatten_dict(moments.collections, sep="/")
    np.savez(workdir / MOMENTS_FILE, about=np.array(about), strengths=moments.strengths, **flat)


def read_stored_statistics(workdir: Path, step: int) -> StoredStatistics | None:
    """What `write_stored_moments` wrote for the generator of this step, or None.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / MOMENTS_FILE
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            content = dict(arrays)
        about = json.loads(str(content.pop("about")))
        strengths = content.pop("strengths")
    except Exception:  # of zip archives, of NumPy and of JSON: many types
        raise UserError(f"{path} is damaged; convert the checkpoint again into another --workdir.") from None
    if about["step"] != step:
        return None
    return StoredStatistics(about["kind"], strengths, unflatten_dict(content, sep="/"))
