"""Precision, recall, density and coverage: metrics of the k-nearest-neighbour balls of two sets of features.

The ball of a point is centred on it and reaches to its k-th nearest neighbour of the same set, itself excluded.

* precision: fraction of fakes inside at least one real ball      (Kynkäänniemi et al. 2019, section 2)
* recall:    fraction of reals inside at least one fake ball      (Kynkäänniemi et al. 2019, section 2)
* density:   mean number of real balls that contain a fake, over k (Naeem et al. 2020, section 3)
* coverage:  fraction of reals whose own ball contains a fake     (Naeem et al. 2020, section 3)

"Inside" is a strict ``<`` as in the ``prdc`` package (``inclusive=False``), or ``<=`` as in torch-fidelity
(``inclusive=True``). Points that coincide k + 1 times have a ball of radius 0, which contains nothing under ``<``.

Every result is that of exact float64 distances, also where the devices compute (see `pairwise_distances`). 10,000 times
10,000 normal points at d = 2048 take 16 s of one core and 0.4 GB; the devices leave a few pairs in a hundred thousand to
the host. Blocked float64 matrix products on the host, without the exact treatment of ties, take twice as long.
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
    as_float,
    check_features,
    distance_blocks,
    distance_bounds,
    is_large,
)
from noisytwins_jax.utils.errors import UserError

Array = jax.Array


class NeighbourMetrics(NamedTuple):
    """Precision, recall and coverage in [0, 1], and density >= 0 (1 for matching distributions)."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_metrics(*, real: np.ndarray, fake: np.ndarray, k: int = 5, inclusive: bool = False) -> NeighbourMetrics:
    """Compute all four metrics of ``real`` [n, d] and ``fake`` [m, d], float32 or float64.

    Memory beyond the inputs: one float32 copy of the larger set where the devices are the host's own cores, and a few
    hundred megabytes for any n and m.

    Raises:
        UserError: if a set has fewer than k + 1 rows, a value is not finite, k < 1, or the dimensions differ.
    """
    real, fake = as_float(real), as_float(fake)
    _check(real, fake, k)
    fake_radius, real_radius = squared_radii(fake, k), squared_radii(real, k)
    empty_real, empty_fake = int((real_radius == 0).sum()), int((fake_radius == 0).sum())
    if not inclusive and empty_real + empty_fake:
        warnings.warn(
            f"{empty_real} real and {empty_fake} generated images coincide with {k} others "
            "in feature space; their balls are empty and count for nothing.",
            stacklevel=2,
        )
    if not inclusive:  # empty balls contain nothing: a negative radius decides all their pairs
        real_radius[real_radius == 0], fake_radius[fake_radius == 0] = -1.0, -1.0
    precise, covered, recalled = np.zeros(len(fake), bool), np.zeros(len(real), bool), np.zeros(len(real), bool)
    pairs = 0
    compare = _compare_on_devices if is_large(fake, real) else _compare_on_host
    for block in compare(fake, real, fake_radius, real_radius, np.less_equal if inclusive else np.less):
        precise[block.rows] |= block.row_inside
        covered |= block.column_covers
        recalled |= block.column_inside
        pairs += block.pairs
    return NeighbourMetrics(
        precision=float(precise.mean()),
        recall=float(recalled.mean()),
        density=pairs / (k * len(fake)),
        coverage=float(covered.mean()),
    )


class _BallBlock(NamedTuple):
    """Membership of a block of m rows (fakes) and of all n columns (reals) in one another's balls."""

    rows: np.ndarray  # indices of the rows, [m]
    row_inside: np.ndarray  # bool [m]: the row lies inside some column's ball
    column_covers: np.ndarray  # bool [n]: the column's ball contains some row
    column_inside: np.ndarray  # bool [n]: the column lies inside some row's ball
    pairs: int  # (row, column) pairs with the row inside the column's ball


def _compare_on_host(
    x: np.ndarray, y: np.ndarray, x_radius: np.ndarray, y_radius: np.ndarray, inside: np.ufunc
) -> Iterator[_BallBlock]:
    """Compare blocks of rows of x with all of y; the radii are squared, and negative for balls that contain nothing."""
    for rows, distances in distance_blocks(x, y):
        in_column = inside(distances, y_radius)
        column_inside = inside(distances, x_radius[rows, None]).any(axis=0)
        yield _BallBlock(rows, in_column.any(axis=1), in_column.any(axis=0), column_inside, int(in_column.sum()))


def _compare_on_devices(
    x: np.ndarray, y: np.ndarray, x_radius: np.ndarray, y_radius: np.ndarray, inside: np.ufunc
) -> Iterator[_BallBlock]:
    """Do the same as :func:`_compare_on_host`; only pairs within rounding error of a radius are decided on the host."""
    keys = DeviceKeys(y, np.arange(len(y)), x)
    y_bounds = keys.layout.replicate_to_devices(keys.radius_bounds(y_radius))
    x_bounds = keys.radius_bounds(x_radius)
    for rows, block in keys.row_blocks(x, *x_bounds):
        row_inside, pairs, column_covers, column_inside, y_unsure, x_unsure = (
            np.array(a) for a in _decide_pairs(keys.arrays, y_bounds, *block)
        )
        row_inside, total = row_inside[: len(rows)], int(pairs.sum())
        unsure = y_unsure | x_unsure
        for i in np.flatnonzero(unsure.any(axis=1)):
            columns = np.flatnonzero(unsure[i])
            distances = cdist(x[rows[i] : rows[i] + 1], y[columns], "sqeuclidean")[0]
            in_column = inside(distances, y_radius[columns]) & y_unsure[i, columns]
            row_inside[i] |= in_column.any()
            total += int(in_column.sum())
            column_covers[columns[in_column]] = True
            column_inside[columns[inside(distances, x_radius[rows[i]]) & x_unsure[i, columns]]] = True
        yield _BallBlock(rows, row_inside, column_covers, column_inside, total)


@jax.jit
def _decide_pairs(
    keys: Any, key_bounds: Any, rows: Array, row_norms: Array, row_low: Array, row_high: Array
) -> tuple[Array, ...]:
    """Decide the certain pairs of a block, as in :class:`_BallBlock` with the pairs by row, and mark the unsure ones.

    The last two outputs, bool [m, n], are the pairs where rounding leaves it open whether the key's ball contains the
    row, and whether the row's ball contains the key.
    """
    low, width = distance_bounds(keys, rows, row_norms)
    high = low + width
    key_low, key_high = key_bounds
    in_key, in_row = high < key_low, high < row_low[:, None]
    key_unsure, row_unsure = (low <= key_high) & ~in_key, (low <= row_high[:, None]) & ~in_row
    return in_key.any(axis=1), in_key.sum(axis=1), in_key.any(axis=0), in_row.any(axis=0), key_unsure, row_unsure


def _check(real: np.ndarray, fake: np.ndarray, k: int) -> None:
    """Raise UserError for sets on which the metrics are not defined."""
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
