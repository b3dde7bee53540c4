"""Nearest neighbours in feature space.

Every result is that of exact float64 distances. Small problems are computed in float64 throughout. In large ones the
devices compute all pairs in float32 and select candidates, among which the host decides; rows for which rounding may hide
a neighbour are searched on the host.
"""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist

from noisytwins_jax.metrics.pairwise_distances import (
    DeviceKeys,
    as_float,
    block_rows,
    check_features,
    distance_blocks,
    distance_bounds,
    is_large,
)
from noisytwins_jax.utils.errors import UserError

Array = jax.Array
_SPARE = 59  # candidates beyond k that a device may select for a row before the host searches the row itself


def nearest(
    *, queries: np.ndarray, keys: np.ndarray, k: int, exclude_self: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest keys of each query, nearest first; of equally near ones, those of the lowest index.

    Args:
        queries: [m, d], float32 or float64.
        keys: [n, d].
        k: 1 <= k <= n, or <= n - 1 with ``exclude_self``.
        exclude_self: both are the same set, and a row is not its own neighbour. Excluded by index: an exact duplicate
            of a row is its neighbour.

    Returns:
        Euclidean distances (not squared) float64 [m, k], and indices int64 [m, k].

    Raises:
        UserError: if k is out of range, a value is not finite, or the dimensions differ.
        ValueError: if the shapes are not those above, or ``exclude_self`` is set for sets of different sizes.
    """
    queries, keys = as_float(queries), as_float(keys)
    for name, x in (("query", queries), ("key", keys)):
        check_features(name, x)
    if queries.shape[1] != keys.shape[1]:
        raise UserError(
            f"Queries and keys have {queries.shape[1]} and {keys.shape[1]} dimensions: "
            "compute both with the same extractor."
        )
    if exclude_self and len(queries) != len(keys):
        raise ValueError(f"exclude_self needs one set, got {len(queries)} queries and {len(keys)} keys.")
    others = len(keys) - exclude_self
    if not 1 <= k <= others:
        raise UserError(f"k = {k} nearest images cannot be taken of {others}: choose k from 1 to {others}.")
    squared, indices = _k_nearest(queries, keys, k, exclude_self)
    return np.sqrt(squared), indices


def squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Compute the squared distance of each row of ``x`` [n, d] to its k-th nearest other row, float64 [n].

    Self is excluded by index, not by distance.
    """
    return _k_nearest(x, x, k, exclude_self=True)[0][:, -1]


def _k_nearest(queries: np.ndarray, keys: np.ndarray, k: int, exclude_self: bool) -> tuple[np.ndarray, np.ndarray]:
    """Do the same as :func:`nearest`, with squared distances."""
    squared, indices = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    if not is_large(queries, keys):
        for rows, distances in distance_blocks(queries, keys):
            if exclude_self:
                distances[np.arange(len(rows)), rows] = np.inf
            bounds = np.partition(distances, k - 1, axis=1)[:, k - 1]
            for row, distance, bound in zip(rows, distances, bounds, strict=True):
                candidates = np.flatnonzero(distance <= bound)
                squared[row], indices[row] = _smallest(distance[candidates], candidates, k)
        return squared, indices
    for row, candidates in _candidates(queries, keys, k, exclude_self):
        distance = cdist(queries[row : row + 1], keys[candidates], "sqeuclidean")[0]
        squared[row], indices[row] = _smallest(distance, candidates, k)
    return squared, indices


def _smallest(distances: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Select the k smallest distances and their candidates (ascending indices), equal ones by index."""
    order = np.argsort(distances, kind="stable")[:k]
    return distances[order], candidates[order]


def _candidates(queries: np.ndarray, keys: np.ndarray, k: int, exclude_self: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (row of ``queries``, ascending indices of keys that include its k nearest and few others), in any order."""
    subset = _limit_copies(keys, k + 1)
    on_device = DeviceKeys(keys, subset, queries)
    ids = np.arange(len(queries), dtype=np.int32) if exclude_self else np.full(len(queries), -1, np.int32)
    count = min(k + _SPARE, len(subset))
    unsure = []
    for rows, block in on_device.row_blocks(queries, ids):
        picks, possible, complete = (np.asarray(a) for a in _pick_nearest(on_device.arrays, *block, k=k, count=count))
        for row, pick, use, is_complete in zip(rows, picks, possible, complete, strict=False):
            if is_complete:
                yield row, np.sort(subset[pick[use]])
            else:
                unsure.append(row)
    frame = on_device.frame
    del on_device
    step = block_rows(len(subset))
    for start in range(0, len(unsure), step):
        rows = np.array(unsure[start : start + step])
        distances, error = frame.distances(queries[rows], keys, subset)
        if exclude_self:
            distances[subset == rows[:, None]] = np.inf
        bounds = np.partition(distances, k - 1, axis=1)[:, k - 1] + 2 * error
        for row, distance, bound in zip(rows, distances, bounds, strict=True):
            yield row, subset[distance <= bound]


def _limit_copies(x: np.ndarray, most: int) -> np.ndarray:
    """Return the indices of the rows of x without those that come after ``most`` equal ones.

    Further copies cannot be among the ``most`` nearest of lowest index. Without this the devices could decide nothing in
    a collapsed set, all of whose distances are equal.
    """
    copies: dict[bytes, int] = {}
    keep = np.ones(len(x), bool)
    for i, row in enumerate(x):
        key = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        copies[key] = copies.get(key, 0) + 1
        keep[i] = copies[key] <= most
    return np.flatnonzero(keep)


@functools.partial(jax.jit, static_argnames=("k", "count"))
def _pick_nearest(
    keys: Any, rows: Array, row_norms: Array, row_ids: Array, *, k: int, count: int
) -> tuple[Array, Array, Array]:
    """Select the ``count`` keys with the lowest lower bounds for each row.

    Returns their positions among the keys [m, count], which of them may be among the k nearest, bool [m, count], and
    whether no other key may, bool [m].
    """
    low, width = distance_bounds(keys, rows, row_norms)
    low = jnp.where(keys[2] == row_ids[:, None], jnp.inf, low)
    # The barrier keeps XLA's CPU compiler from fusing what follows into the selection, which would sort whole rows.
    negative, picks = jax.lax.optimization_barrier(jax.lax.top_k(-low, count))
    bound = jnp.sort(jnp.take_along_axis(width, picks, axis=1) - negative, axis=1)[:, k - 1 : k]
    complete = jnp.full(len(rows), True) if count == len(keys[1]) else -negative[:, -1] > bound[:, 0]
    return picks, -negative <= bound, complete
