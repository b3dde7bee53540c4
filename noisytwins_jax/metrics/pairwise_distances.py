"""Squared Euclidean distances of all pairs of two sets of points: exact on the host, or bounded on the devices.

The exact ones are float64 sums over coordinate differences, ``scipy``'s ``cdist``. The devices compute in float32, with a
rigorous bound on the rounding error: pairs closer to a decision than the bound are left to the host. Both work in blocks
of rows, so that no memory grows with the number of pairs.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist

from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.sharding import Layout

Array = jax.Array
_DEVICE_WORK = 1 << 33  # n * m * d above which the devices compute: some seconds of float64 on one core
_BLOCK_PAIRS = 1 << 23  # pairs of a block, on the host and on each device
_KEY_BLOCK = 2048  # keys in float64 at a time
_FLOAT32 = 2.0**-24  # relative rounding error of one operation
_FLOAT64 = 2.0**-53


def as_float(x: np.ndarray) -> np.ndarray:
    """Return float32 and float64 arrays unchanged, without a copy, and anything else in float64."""
    x = np.asarray(x)
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)


def check_features(name: str, x: np.ndarray) -> None:
    """Raise UserError for values that are not finite, ValueError for a shape other than [n, d]."""
    if x.ndim != 2:
        raise ValueError(f"{name} features must have shape [n, d], got {x.shape}.")
    if not all(np.isfinite(x[i : i + _KEY_BLOCK]).all() for i in range(0, len(x), _KEY_BLOCK)):
        raise UserError(f"The {name} features hold NaN or infinity: evaluate an earlier checkpoint.")


def is_large(x: np.ndarray, y: np.ndarray) -> bool:
    """Return whether the rows [m, d] and [n, d] have so many pairs that the devices should compute them."""
    return len(x) * len(y) * x.shape[1] > _DEVICE_WORK


def block_rows(columns: int) -> int:
    """Return the number of rows of a block with that many columns, on the host or on one device."""
    return max(1, _BLOCK_PAIRS // columns)


def distance_blocks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (row indices of x, float64 squared distances of those rows to all of y)."""
    step = block_rows(len(y))
    y = y.astype(np.float64, copy=False)
    for start in range(0, len(x), step):
        rows = np.arange(start, min(start + step, len(x)))
        yield rows, cdist(x[rows], y, "sqeuclidean")


class Frame:
    """Coordinates in which float32 is most precise: centred on the mean of the keys, with no norm above 1.

    Attributes:
        slack: the most that float64 rounding of the change of coordinates can alter a squared distance of the frame.
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
        moved = 2 * _FLOAT64 * magnitude * self.scale * np.sqrt(keys.shape[1])  # the most that a point moves
        self.slack = 8 * moved + 4 * moved**2 + 1e-30  # the last term for underflow in float32

    def points(self, x: np.ndarray) -> np.ndarray:
        """Return rows [n, d] in the frame, float64."""
        return (x.astype(np.float64) - self.centre) * self.scale

    def distances(self, queries: np.ndarray, keys: np.ndarray, subset: np.ndarray) -> tuple[np.ndarray, float]:
        """Compute squared distances [m, len(subset)] in the frame by a float64 product, and a bound on their error."""
        x = self.points(queries)
        distances = np.empty((len(queries), len(subset)))
        for start in range(0, len(subset), _KEY_BLOCK):
            columns = slice(start, start + _KEY_BLOCK)
            y = self.points(keys[subset[columns]])
            distances[:, columns] = np.einsum("nd,nd->n", x, x)[:, None] + np.einsum("nd,nd->n", y, y) - 2 * (x @ y.T)
        return distances, 4 * (keys.shape[1] + 32) * _FLOAT64 + self.slack


class DeviceKeys:
    """Keys on every local device, and blocks of query rows split over the devices.

    Attributes:
        frame: the coordinates.
        layout: of the local devices.
        arrays: keys float32 [n, d], squared norms [n], indices int32 [n] and the frame's slack.
    """

    def __init__(self, keys: np.ndarray, subset: np.ndarray, queries: np.ndarray):
        self.frame = Frame(keys, queries)
        self.layout = Layout(jax.local_devices())
        everywhere, norms = self.layout.replicate_to_devices, np.empty(len(subset), np.float32)
        points = jnp.zeros((len(subset), keys.shape[1]), jnp.float32, device=self.layout.replicated)
        for start in range(0, len(subset), _KEY_BLOCK):  # in place: the host never holds a second copy of all keys
            block = slice(start, start + _KEY_BLOCK)
            rows, norms[block] = self._points(keys[subset[block]])
            points = _put_rows(points, everywhere(rows), start)
        self.arrays = points, *everywhere((norms, subset.astype(np.int32), np.float32(self.frame.slack)))

    def row_blocks(self, x: np.ndarray, *per_row: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield (row indices, [points, squared norms, the rows of each `per_row`] on the devices).

        The last block is padded with points at an infinite distance from everything.
        """
        size = max(1, min(block_rows(len(self.arrays[1])), -(-len(x) // self.layout.num_devices)))
        size *= self.layout.num_devices
        for start in range(0, len(x), size):
            rows = np.arange(start, min(start + size, len(x)))
            points, norms = self._points(x[rows])
            fill = size - len(rows)
            block = [np.pad(points, ((0, fill), (0, 0))), np.pad(norms, (0, fill), constant_values=np.inf)]
            block += [np.pad(a[rows], (0, fill), constant_values=-1) for a in per_row]
            yield rows, jax.device_put(block, self.layout.split)

    def radius_bounds(self, squared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return float32 lower and upper bounds of squared radii in the frame; -infinity for balls that contain nothing."""
        scaled = squared * self.frame.scale**2
        return tuple(
            np.where(squared < 0, -np.inf, scaled * (1 + change)).astype(np.float32) for change in (-1e-6, 1e-6)
        )

    def _points(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        points = self.frame.points(x).astype(np.float32)
        return points, np.einsum("nd,nd->n", points, points, dtype=np.float64).astype(np.float32)


@functools.partial(jax.jit, donate_argnums=0)
def _put_rows(points: Array, rows: Array, start: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(points, rows, start, axis=0)


def distance_bounds(keys: Any, rows: Array, row_norms: Array) -> tuple[Array, Array]:
    """Bound the squared distances of rows to keys: lower bounds and widths of the intervals, float32 [m, n] each.

    Keys and rows are those of :class:`DeviceKeys`, in its frame.

    The rounding error of a product is at most d units of roundoff times |x| |y|, in any order of summation; converting x
    and y to float32, the norms and the sums cost less than 32 more, times |x|^2 + |y|^2 (Higham 2002, section 3.1).
    """
    points, norms, _, slack = keys
    relative = (points.shape[1] + 32) * _FLOAT32
    product = jnp.einsum("md,nd->mn", rows, points, precision="highest", preferred_element_type=jnp.float32)
    squares = row_norms[:, None] + norms
    return (1 - relative) * squares - slack - 2 * product, 2 * (relative * squares + slack)
