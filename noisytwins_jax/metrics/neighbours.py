"""Nearest neighbours in feature space, and what k-nearest-neighbour balls tell: precision, recall, density, coverage.

The ball of a point is centred on it and reaches to its k-th nearest neighbour of the same set, itself excluded.

* precision: fraction of fakes inside at least one real ball      (Kynkäänniemi et al. 2019, section 2)
* recall:    fraction of reals inside at least one fake ball      (Kynkäänniemi et al. 2019, section 2)
* density:   mean number of real balls that hold a fake, over k   (Naeem et al. 2020, section 3)
* coverage:  fraction of reals whose own ball holds a fake        (Naeem et al. 2020, section 3)

"Inside" is a strict ``<`` as in the ``prdc`` package (``inclusive=False``), or ``<=`` as in torch-fidelity
(``inclusive=True``). Points that coincide k + 1 times have a ball of radius 0, which holds nothing under ``<``.

Every result is that of float64 distances summed over coordinate differences, ``scipy``'s ``cdist``. Small problems are
computed so throughout. In large ones the devices look through the pairs in float32, with a bound on its rounding that
always holds; what lies within the bound of a decision is decided in float64 on the host. Of 10,000 times 10,000 normal
points at d = 2048 that is a few pairs in a hundred thousand; that many take 16 s of one core and 0.4 GB.
"""

import functools
import hashlib
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist

from noisytwins_jax.errors import UserError
from noisytwins_jax.sharding import Layout

Array = jax.Array
_DEVICE_WORK = 1 << 33  # n * m * d from which devices help: some seconds of float64 on one core
_BLOCK_PAIRS = 1 << 23  # pairs of a block, on the host and on each device
_KEY_BLOCK = 2048  # keys that are held in float64 at a time
_SPARE = 59  # candidates for the k nearest that a device may name beyond k, before the host searches the row itself
_FLOAT32 = 2.0**-24  # rounding of one operation
_FLOAT64 = 2.0**-53


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
    real, fake = _floats(real), _floats(fake)
    _check(real, fake, k)
    fake_radius, real_radius = _squared_radii(fake, k), _squared_radii(real, k)
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
    balls = _balls_on_devices if _is_large(fake, real) else _balls_on_host
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


def nearest(
    *, queries: np.ndarray, keys: np.ndarray, k: int, exclude_self: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest keys of each query, nearest first; of equally near ones, those of the lowest index.

    Args:
        queries: [m, d], float32 or float64.
        keys: [n, d].
        k: 1 <= k <= n, or <= n - 1 with ``exclude_self``.
        exclude_self: both are the same set, and a row is not its own neighbour; it is told by its index, so that an
            exact duplicate of it is.

    Returns:
        Euclidean distances (not squared) float64 [m, k], and indices int64 [m, k].

    Raises:
        UserError: if k is out of range, a value is not finite, or the dimensions differ.
        ValueError: if the shapes are not those above, or ``exclude_self`` is asked of sets of different sizes.
    """
    queries, keys = _floats(queries), _floats(keys)
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


def _squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each row to its k-th nearest other row, [n]. Self is excluded by index, not by distance."""
    return _k_nearest(x, x, k, exclude_self=True)[0][:, -1]


def _k_nearest(queries: np.ndarray, keys: np.ndarray, k: int, exclude_self: bool) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`nearest`, with squared distances."""
    squared, indices = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    if not _is_large(queries, keys):
        for rows, distances in _distance_blocks(queries, keys):
            if exclude_self:
                distances[np.arange(len(rows)), rows] = np.inf
            bounds = np.partition(distances, k - 1, axis=1)[:, k - 1]
            for row, distance, bound in zip(rows, distances, bounds, strict=True):
                candidates = np.flatnonzero(distance <= bound)
                squared[row], indices[row] = _first(distance[candidates], candidates, k)
        return squared, indices
    for row, candidates in _candidates(queries, keys, k, exclude_self):
        distance = cdist(queries[row : row + 1], keys[candidates], "sqeuclidean")[0]
        squared[row], indices[row] = _first(distance, candidates, k)
    return squared, indices


def _first(distances: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest distances and their candidates (ascending indices), the lower index first where they are equal."""
    order = np.argsort(distances, kind="stable")[:k]
    return distances[order], candidates[order]


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
    for rows, distances in _distance_blocks(x, y):
        held = inside(distances, y_radius)
        column_held = inside(distances, x_radius[rows, None]).any(axis=0)
        yield _InBall(rows, held.any(axis=1), held.any(axis=0), column_held, int(held.sum()))


def _balls_on_devices(
    x: np.ndarray, y: np.ndarray, x_radius: np.ndarray, y_radius: np.ndarray, inside: np.ufunc
) -> Iterator[_InBall]:
    """As :func:`_balls_on_host`."""
    keys = _DeviceKeys(y, np.arange(len(y)), x)
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


def _candidates(queries: np.ndarray, keys: np.ndarray, k: int, exclude_self: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (row of ``queries``, ascending indices of keys that hold its k nearest, and few others), in any order."""
    kept = _few_copies(keys, k + 1)
    on_device = _DeviceKeys(keys, kept, queries)
    ids = np.arange(len(queries), dtype=np.int32) if exclude_self else np.full(len(queries), -1, np.int32)
    count = min(k + _SPARE, len(kept))
    unsure = []
    for rows, block in on_device.row_blocks(queries, ids):
        picks, possible, complete = (np.asarray(a) for a in _pick_nearest(on_device.arrays, *block, k=k, count=count))
        for row, pick, use, whole in zip(rows, picks, possible, complete, strict=False):
            if whole:
                yield row, np.sort(kept[pick[use]])
            else:
                unsure.append(row)
    frame = on_device.frame
    del on_device
    step = max(1, _BLOCK_PAIRS // len(kept))
    for start in range(0, len(unsure), step):
        rows = np.array(unsure[start : start + step])
        distances, error = frame.distances(queries[rows], keys, kept)
        if exclude_self:
            distances[kept == rows[:, None]] = np.inf
        bounds = np.partition(distances, k - 1, axis=1)[:, k - 1] + 2 * error
        for row, distance, bound in zip(rows, distances, bounds, strict=True):
            yield row, kept[distance <= bound]


def _few_copies(x: np.ndarray, most: int) -> np.ndarray:
    """Indices of the rows of x, without those that come after ``most`` equal ones.

    The further copies cannot be among the nearest ``most`` of lowest index. A collapsed set would otherwise leave
    nothing to the devices: all of its distances are equal.
    """
    seen: dict[bytes, int] = {}
    kept = np.ones(len(x), bool)
    for i, row in enumerate(x):
        key = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        seen[key] = seen.get(key, 0) + 1
        kept[i] = seen[key] <= most
    return np.flatnonzero(kept)


class _Frame:
    """Coordinates in which float32 sees most: around the mean of the keys, and with no norm above 1.

    Attributes:
        slack: what rounding in float64 on the way into the frame can change in a squared distance of the frame.
    """

    def __init__(self, keys: np.ndarray, queries: np.ndarray):
        self.centre = keys.mean(axis=0, dtype=np.float64)
        largest = magnitude = 0.0
        for x in (keys, queries):
            for start in range(0, len(x), _KEY_BLOCK):
                block = x[start : start + _KEY_BLOCK].astype(np.float64)
                magnitude = max(magnitude, float(np.abs(block).max()))
                block -= self.centre
                largest = max(largest, float(np.einsum("nd,nd->n", block, block).max()))
        self.scale = 2.0 ** -np.ceil(np.log2(np.sqrt(largest))) if largest else 1.0
        moved = 2 * _FLOAT64 * magnitude * self.scale * np.sqrt(keys.shape[1])  # of a point, at most
        self.slack = 8 * moved + 4 * moved**2 + 1e-30  # the last for what is below float32's range

    def points(self, x: np.ndarray) -> np.ndarray:
        """Rows [n, d] in the frame, float64."""
        return (x.astype(np.float64) - self.centre) * self.scale

    def distances(self, queries: np.ndarray, keys: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, float]:
        """Squared distances [m, len(kept)] in the frame by a float64 matrix product, and a bound on their error."""
        x = self.points(queries)
        distances = np.empty((len(queries), len(kept)))
        for start in range(0, len(kept), _KEY_BLOCK):
            columns = slice(start, start + _KEY_BLOCK)
            y = self.points(keys[kept[columns]])
            distances[:, columns] = np.einsum("nd,nd->n", x, x)[:, None] + np.einsum("nd,nd->n", y, y) - 2 * (x @ y.T)
        return distances, 4 * (keys.shape[1] + 32) * _FLOAT64 + self.slack


class _DeviceKeys:
    """Keys on every local device, and blocks of rows to hold against them, split over the devices.

    Attributes:
        frame: the coordinates.
        layout: of the local devices.
        arrays: keys float32 [n, d], squared norms [n], indices int32 [n] and the frame's slack.
    """

    def __init__(self, keys: np.ndarray, kept: np.ndarray, queries: np.ndarray):
        self.frame = _Frame(keys, queries)
        self.layout = Layout(jax.local_devices())
        everywhere, norms = self.layout.put_everywhere, np.empty(len(kept), np.float32)
        points = jnp.zeros((len(kept), keys.shape[1]), jnp.float32, device=self.layout.replicated)
        for start in range(0, len(kept), _KEY_BLOCK):  # in place: the host never holds a second copy of the whole
            block = slice(start, start + _KEY_BLOCK)
            some, norms[block] = self._points(keys[kept[block]])
            points = _put_rows(points, everywhere(some), start)
        self.arrays = points, *everywhere((norms, kept.astype(np.int32), np.float32(self.frame.slack)))

    def row_blocks(self, x: np.ndarray, *per_row: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        """Yields (row numbers, (points, squared norms and the rows of each `per_row`) on the devices), the last block padded.

        Padding is at an infinite distance from everything.
        """
        size = max(1, min(_BLOCK_PAIRS // len(self.arrays[1]), -(-len(x) // self.layout.num_devices)))
        size *= self.layout.num_devices
        for start in range(0, len(x), size):
            rows = np.arange(start, min(start + size, len(x)))
            points, norms = self._points(x[rows])
            fill = size - len(rows)
            block = [np.pad(points, ((0, fill), (0, 0))), np.pad(norms, (0, fill), constant_values=np.inf)]
            block += [np.pad(a[rows], (0, fill), constant_values=-1) for a in per_row]
            yield rows, jax.device_put(block, self.layout.split)

    def radius_bounds(self, squared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 bounds below and above squared radii in the frame; -infinity for balls that hold nothing."""
        scaled = squared * self.frame.scale**2
        return tuple(
            np.where(squared < 0, -np.inf, scaled * (1 + change)).astype(np.float32) for change in (-1e-6, 1e-6)
        )

    def _points(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        points = self.frame.points(x).astype(np.float32)
        return points, np.einsum("nd,nd->n", points, points, dtype=np.float64).astype(np.float32)


@functools.partial(jax.jit, donate_argnums=0)
def _put_rows(points: Array, some: Array, start: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(points, some, start, axis=0)


def _distance_bounds(keys: Any, rows: Array, row_norms: Array) -> tuple[Array, Array]:
    """Bounds below the squared distances of rows to keys, float32 [m, n], and how far above them the upper ones are.

    A product's rounding is at most d of its operations' times |x| |y| in whatever order it is summed; moving x and y
    into float32, the norms and the sums cost less than 32 more, times |x|^2 + |y|^2 (Higham 2002, section 3.1).
    """
    points, norms, _, slack = keys
    relative = (points.shape[1] + 32) * _FLOAT32
    product = jnp.einsum("md,nd->mn", rows, points, precision="highest", preferred_element_type=jnp.float32)
    squares = row_norms[:, None] + norms
    return (1 - relative) * squares - slack - 2 * product, 2 * (relative * squares + slack)


@functools.partial(jax.jit, static_argnames=("k", "count"))
def _pick_nearest(
    keys: Any, rows: Array, row_norms: Array, row_ids: Array, *, k: int, count: int
) -> tuple[Array, Array, Array]:
    """The ``count`` keys of the lowest lower bounds for each row: their places among the keys [m, count].

    Further, which of them may be among the k nearest, bool [m, count], and whether no other key may, bool [m].
    """
    low, width = _distance_bounds(keys, rows, row_norms)
    low = jnp.where(keys[2] == row_ids[:, None], jnp.inf, low)
    # Behind the barrier, because XLA's CPU compiler would merge what follows into the selection and sort whole rows.
    negative, picks = jax.lax.optimization_barrier(jax.lax.top_k(-low, count))
    bound = jnp.sort(jnp.take_along_axis(width, picks, axis=1) - negative, axis=1)[:, k - 1 : k]
    complete = jnp.full(len(rows), True) if count == len(keys[1]) else -negative[:, -1] > bound[:, 0]
    return picks, -negative <= bound, complete


@jax.jit
def _decide_pairs(
    keys: Any, key_bounds: Any, rows: Array, row_norms: Array, row_low: Array, row_high: Array
) -> tuple[Array, ...]:
    """What is certain of a block, as in :class:`_InBall` with the pairs by row; then the pairs in doubt, bool [m, n].

    First those where it is in doubt whether the key's ball holds the row, then the opposite.
    """
    low, width = _distance_bounds(keys, rows, row_norms)
    high = low + width
    key_low, key_high = key_bounds
    held, key_held = high < key_low, high < row_low[:, None]
    doubt, key_doubt = (low <= key_high) & ~held, (low <= row_high[:, None]) & ~key_held
    return held.any(axis=1), held.sum(axis=1), held.any(axis=0), key_held.any(axis=0), doubt, key_doubt


def _distance_blocks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (row numbers of x, squared distances of those rows to all of y), float64."""
    step = max(1, _BLOCK_PAIRS // len(y))
    y = y.astype(np.float64, copy=False)
    for start in range(0, len(x), step):
        rows = np.arange(start, min(start + step, len(x)))
        yield rows, cdist(x[rows], y, "sqeuclidean")


def _is_large(x: np.ndarray, y: np.ndarray) -> bool:
    return len(x) * len(y) * x.shape[1] > _DEVICE_WORK


def _floats(x: np.ndarray) -> np.ndarray:
    """As it is if it is float32 or float64, without a copy; anything else in float64."""
    x = np.asarray(x)
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)


def check_features(name: str, x: np.ndarray) -> None:
    """Raises UserError for values that are not finite, ValueError for another shape than [n, d]."""
    if x.ndim != 2:
        raise ValueError(f"{name} features must have shape [n, d], got {x.shape}.")
    if not all(np.isfinite(x[i : i + _KEY_BLOCK]).all() for i in range(0, len(x), _KEY_BLOCK)):
        raise UserError(f"The {name} features hold NaN or infinity: evaluate an earlier checkpoint.")


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
