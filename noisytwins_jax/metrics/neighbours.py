"""What k-nearest-neighbour balls tell of two sets of points in feature space: precision, recall, density, coverage.

The ball of a point is centred on it and reaches to its k-th nearest neighbour of the same set, itself excluded.

* precision: fraction of fakes inside at least one real ball      (Kynkäänniemi et al. 2019, section 2)
* recall:    fraction of reals inside at least one fake ball      (Kynkäänniemi et al. 2019, section 2)
* density:   mean number of real balls that hold a fake, over k   (Naeem et al. 2020, section 3)
* coverage:  fraction of reals whose own ball holds a fake        (Naeem et al. 2020, section 3)

"Inside" is a strict ``<`` as in the ``prdc`` package (``inclusive=False``), or ``<=`` as in torch-fidelity
(``inclusive=True``). Points that coincide k + 1 times have a ball of radius 0, which holds nothing under ``<``.

Every result is that of float64 distances, also where the devices help (see `pairwise_distances`). 10,000 times 10,000
normal points at d = 2048 take 16 s of one core and 0.4 GB; the devices leave a few pairs in a hundred thousand to the
host.
"""

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.spatial.distance import cdist

from noisytwins_jax.metrics.nearest import squared_radii
from noisytwins_jax.metrics.pairwise_distances import (
    DeviceKeys,
    check_features,
    distance_blocks,
    distance_bounds,
    floats,
    is_large,
)
from noisytwins_jax.utils.errors import UserError

Array = jax.Array


class NeighbourMetrics(NamedTuple):
    """The four values; precision, recall and coverage in [0, 1], density >= 0 (1 for matching distributions)."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_metrics(*, real: np.ndarray, fake: np.ndarray, k: int = 5, inclusive: bool = False) -> NeighbourMetrics:
    """All four metrics of the distances between ``fake`` [m, d] and ``real`` [n, d], float32 or float64.

    Memory beyond the inputs: one float32 copy of the larger set where the devices are this host's own cores, and a few
    hundred megabytes whatever n and m are.

    Raises:
        UserError: if a set has fewer than k + 1 rows, a value is not finite, k < 1, or the dimensions differ.
    """
    real, fake = floats(real), floats(fake)
    _check(real, fake, k)
    fake_radius, real_radius = squared_radii(fake, k), squared_radii(real, k)
    empty_real, empty_fake = int((real_radius == 0).sum()), int((fake_radius == 0).sum())
    if not inclusive and empty_real + empty_fake:
        warnings.warn(
            f"{empty_real} real and {empty_fake} generated images coincide with {k} others "
            "in feature space; their balls are empty and count for nothing.",
            stacklevel=2,
        )
    if not inclusive:  # empty balls hold nothing: as negative radii they need no decision
        real_radius[real_radius == 0], fake_radius[fake_radius == 0] = -1.0, -1.0
    precise, covered, recalled = np.zeros(len(fake), bool), np.zeros(len(real), bool), np.zeros(len(real), bool)
    pairs = 0
    balls = _balls_on_devices if is_large(fake, real) else _balls_on_host
    for in_ball in balls(fake, real, fake_radius, real_radius, np.less_equal if inclusive else np.less):
        precise[in_ball.rows] |= in_ball.row_held
        covered |= in_ball.column_holds
        recalled |= in_ball.column_held
        pairs += in_ball.pairs
    return NeighbourMetrics(
        precision=float(precise.mean()),
        recall=float(recalled.mean()),
        density=pairs / (k * len(fake)),
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


class _InBall(NamedTuple):
    """Which points of a block of rows (fakes), and which columns (reals), lie in one another's balls."""

    rows: np.ndarray | slice  # row numbers
    row_held: np.ndarray  # bool, a row each: it lies in some column's ball
    column_holds: np.ndarray  # bool [n]: the column's ball holds some row
    column_held: np.ndarray  # bool [n]: it lies in some row's ball
    pairs: int  # how many rows the columns' balls hold, summed over columns


def _balls_on_host(
    x: np.ndarray, y: np.ndarray, x_radius: np.ndarray, y_radius: np.ndarray, inside: np.ufunc
) -> Iterator[_InBall]:
    """Blocks of rows of x against all of y; the radii are squared, and negative for balls that hold nothing."""
    for rows, distances in distance_blocks(x, y):
        held = inside(distances, y_radius)
        column_held = inside(distances, x_radius[rows, None]).any(axis=0)
        yield _InBall(rows, held.any(axis=1), held.any(axis=0), column_held, int(held.sum()))


def _balls_on_devices(
    x: np.ndarray, y: np.ndarray, x_radius: np.ndarray, y_radius: np.ndarray, inside: np.ufunc
) -> Iterator[_InBall]:
    """As :func:`_balls_on_host`."""
    keys = DeviceKeys(y, np.arange(len(y)), x)
    y_bounds = keys.layout.put_everywhere(keys.radius_bounds(y_radius))
    x_bounds = keys.radius_bounds(x_radius)
    for rows, block in keys.row_blocks(x, *x_bounds):
        row_held, pairs, column_holds, column_held, y_doubt, x_doubt = (
            np.array(a) for a in _decide_pairs(keys.arrays, y_bounds, *block)
        )
        row_held, total = row_held[: len(rows)], int(pairs.sum())
        doubt = y_doubt | x_doubt
        for i in np.flatnonzero(doubt.any(axis=1)):
            columns = np.flatnonzero(doubt[i])
            distances = cdist(x[rows[i] : rows[i] + 1], y[columns], "sqeuclidean")[0]
            held = inside(distances, y_radius[columns]) & y_doubt[i, columns]
            row_held[i] |= held.any()
            total += int(held.sum())
            column_holds[columns[held]] = True
            column_held[columns[inside(distances, x_radius[rows[i]]) & x_doubt[i, columns]]] = True
        yield _InBall(rows, row_held, column_holds, column_held, total)


@jax.jit
def _decide_pairs(
    keys: Any, key_bounds: Any, rows: Array, row_norms: Array, row_low: Array, row_high: Array
) -> tuple[Array, ...]:
    """What is certain of a block, as in :class:`_InBall` with the pairs by row; then the pairs in doubt, bool [m, n].

    First those where it is in doubt whether the key's ball holds the row, then the opposite.
    """
    low, width = distance_bounds(keys, rows, row_norms)
    high = low + width
    key_low, key_high = key_bounds
    held, key_held = high < key_low, high < row_low[:, None]
    doubt, key_doubt = (low <= key_high) & ~held, (low <= row_high[:, None]) & ~key_held
    return held.any(axis=1), held.sum(axis=1), held.any(axis=0), key_held.any(axis=0), doubt, key_doubt


def _check(real: np.ndarray, fake: np.ndarray, k: int) -> None:
    """Raises UserError for sets that the metrics are not defined on."""
    if k < 1:
        raise UserError(f"k = {k} neighbours make no ball: choose k >= 1.")
    for name, x in (("real", real), ("generated", fake)):
        check_features(name, x)
        if len(x) < k + 1:
            raise UserError(
                f"k = {k} neighbours need at least {k + 1} {name} images, got {len(x)}: add some or lower k."
            )
    if real.shape[1] != fake.shape[1]:
        raise UserError(
            f"Real and generated features have {real.shape[1]} and {fake.shape[1]} dimensions: "
            "compute both with the same extractor."
        )
