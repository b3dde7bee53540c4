"""Precision, recall, density and coverage from k-nearest-neighbour balls in feature space.

The ball of a point is centred on it and reaches to its k-th nearest neighbour of the same set, itself excluded.

* precision: fraction of fakes inside at least one real ball      (Kynkäänniemi et al. 2019, section 2)
* recall:    fraction of reals inside at least one fake ball      (Kynkäänniemi et al. 2019, section 2)
* density:   mean number of real balls that hold a fake, over k   (Naeem et al. 2020, section 3)
* coverage:  fraction of reals whose own ball holds a fake        (Naeem et al. 2020, section 3)

"Inside" is a strict ``<`` as in the ``prdc`` package (``inclusive=False``), or ``<=`` as in torch-fidelity
(``inclusive=True``). Points that coincide k + 1 times have a ball of radius 0, which holds nothing under ``<``.
"""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from noisytwins_jax.errors import UserError

_BLOCK_BYTES = 64 << 20  # one block of the distance matrix
_EXACT_WORK = 1 << 36  # n * m * d above which distances come from a matrix product: ~20x faster, rounding at 1e-13


class NeighbourMetrics(NamedTuple):
    """The four values; precision, recall and coverage in [0, 1], density >= 0 (1 for matching distributions)."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_metrics(*, real: np.ndarray, fake: np.ndarray, k: int = 5, inclusive: bool = False) -> NeighbourMetrics:
    """All four metrics in one pass over the distances between ``fake`` [m, d] and ``real`` [n, d] (float64 inside).

    Memory beyond float64 copies of the inputs stays below a few hundred megabytes whatever n and m are.

    Raises:
        UserError: if a set has fewer than k + 1 rows, a value is not finite, k < 1, or the dimensions differ.
    """
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    _check(real, fake, k)
    centre = real.mean(axis=0)  # moving both sets near the origin limits cancellation in |x|^2 + |y|^2 - 2 x.y
    real, fake = real - centre, fake - centre
    real_radius, fake_radius = _squared_radii(real, k), _squared_radii(fake, k)
    empty_real, empty_fake = int((real_radius == 0).sum()), int((fake_radius == 0).sum())
    if not inclusive and empty_real + empty_fake:
        warnings.warn(
            f"{empty_real} real and {empty_fake} generated images coincide with {k} others "
            "in feature space; their balls are empty and count for nothing.",
            stacklevel=2,
        )
    inside = np.less_equal if inclusive else np.less
    precise, balls = 0, 0
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, distances in _distance_blocks(fake, real):
        in_real_ball = inside(distances, real_radius)
        precise += int(in_real_ball.any(axis=1).sum())
        balls += int(in_real_ball.sum())
        covered |= in_real_ball.any(axis=0)
        recalled |= inside(distances, fake_radius[rows, None]).any(axis=0)
    return NeighbourMetrics(
        precision=precise / len(fake),
        recall=float(recalled.mean()),
        density=balls / (k * len(fake)),
        coverage=float(covered.mean()),
    )


def precision(*, real: np.ndarray, fake: np.ndarray, k: int = 5, inclusive: bool = False) -> float:
    """Fraction of fakes inside at least one real ball; arguments and errors as :func:`neighbour_metrics`."""
    return neighbour_metrics(real=real, fake=fake, k=k, inclusive=inclusive).precision


def recall(*, real: np.ndarray, fake: np.ndarray, k: int = 5, inclusive: bool = False) -> float:
    """Fraction of reals inside at least one fake ball; arguments and errors as :func:`neighbour_metrics`."""
    return neighbour_metrics(real=real, fake=fake, k=k, inclusive=inclusive).recall


def density(*, real: np.ndarray, fake: np.ndarray, k: int = 5, inclusive: bool = False) -> float:
    """Mean number of real balls that hold a fake, over k; arguments and errors as :func:`neighbour_metrics`."""
    return neighbour_metrics(real=real, fake=fake, k=k, inclusive=inclusive).density


def coverage(*, real: np.ndarray, fake: np.ndarray, k: int = 5, inclusive: bool = False) -> float:
    """Fraction of reals whose own ball holds a fake; arguments and errors as :func:`neighbour_metrics`."""
    return neighbour_metrics(real=real, fake=fake, k=k, inclusive=inclusive).coverage


def _squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each row to its k-th nearest other row, [n]. Self is excluded by index, not by distance."""
    radii = np.empty(len(x))
    for rows, distances in _distance_blocks(x, x):
        distances[np.arange(len(rows)), rows] = np.inf
        radii[rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii


def _distance_blocks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (row numbers of x, squared distances of those rows to all of y)."""
    exact = len(x) * len(y) * x.shape[1] <= _EXACT_WORK
    y_norms = np.einsum("nd,nd->n", y, y)
    step = max(1, _BLOCK_BYTES // (8 * len(y)))
    for start in range(0, len(x), step):
        rows = np.arange(start, min(start + step, len(x)))
        block = x[rows]
        if exact:
            yield rows, cdist(block, y, "sqeuclidean")
        else:
            distances = np.einsum("nd,nd->n", block, block)[:, None] + y_norms - 2.0 * (block @ y.T)
            yield rows, np.maximum(distances, 0.0)


def _check(real: np.ndarray, fake: np.ndarray, k: int) -> None:
    """Raises UserError for sets that the metrics are not defined on."""
    if k < 1:
        raise UserError(f"k = {k} neighbours make no ball: choose k >= 1.")
    for name, x in (("real", real), ("generated", fake)):
        if x.ndim != 2:
            raise ValueError(f"{name} features must have shape [n, d], got {x.shape}.")
        if len(x) < k + 1:
            raise UserError(
                f"k = {k} neighbours need at least {k + 1} {name} images, got {len(x)}: add some or lower k."
            )
        if not np.isfinite(x).all():
            raise UserError(f"The {name} features hold NaN or infinity: evaluate an earlier checkpoint.")
    if real.shape[1] != fake.shape[1]:
        raise UserError(
            f"Real and generated features have {real.shape[1]} and {fake.shape[1]} dimensions: "
            "compute both with the same extractor."
        )
