"""3×3 convolutions by minimal filtering, the form for CPUs: matrix products, and less than half as many multiplications.

A convolution is trilinear in a tile of its input d, the kernel g and a tile of its output r, and equals
``Σ_p (data_p · d) (kernel_p · g) (outputs_p · r)``. For a tile of 2×2 outputs 16 such products suffice in place of 36
(Winograd 1980; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, Sec. 4.1), or 25 with
stride 2. Summed over channels or pixels each product is a matrix product. Solved for r, d or g, the same sum is the
convolution, its transpose in the input or its transpose in the weights: gradients of any order are as fast.

Coefficients are 0, ±1 and 1/2, so that results differ from a direct convolution's only by rounding: relative to the largest
value by 1e-6 in float32.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Matrix = tuple[tuple[float, ...], ...]

_STRIP_BYTES = 36e6  # of transformed activations at a time: about what the last cache holds


class Filtering(NamedTuple):
    """An algorithm for two neighbouring outputs along one axis. Along both axes it computes 2×2."""

    stride: int
    data: Matrix  # [products, inputs of a tile]
    kernel: Matrix  # [products, 3]
    outputs: Matrix  # [products, 2]

    @property
    def step(self) -> int:
        """Inputs from one tile to the next."""
        return 2 * self.stride

    @property
    def overlap(self) -> int:
        """Inputs that a tile shares with the next."""
        return len(self.data[0]) - self.step


STRIDE_1 = Filtering(
    stride=1,
    data=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    kernel=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    outputs=((1, 0), (1, 1), (1, -1), (0, -1)),
)
# The outer two taps meet even inputs, for which three products suffice in place of four; the middle tap meets odd ones.
STRIDE_2 = Filtering(
    stride=2,
    data=((1, 0, -1, 0, 0), (0, 0, 1, 0, 0), (0, 0, -1, 0, 1), (0, 1, 0, 0, 0), (0, 0, 0, 1, 0)),
    kernel=((1, 0, 0), (1, 0, 1), (0, 0, 1), (0, 1, 0), (0, 1, 0)),
    outputs=((1, 0), (1, 1), (0, 1), (1, 0), (0, 1)),
)


def suits(outputs: tuple[int, int, int], channels: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Return whether this is faster than a direct convolution, for `outputs` ``(N, H, W)`` and channels on either side.

    A symbolic N, of an exported program, is taken for small.
    """
    n, height, width = outputs
    if not isinstance(n, int):
        return False
    pays = (
        n * height * width >= 2048 and min(channels) >= 64
    )  # for transforms of kernels and activations, and compiling
    return pays and height % 2 == width % 2 == 0 and dtype.itemsize >= 4


def convolve(filtering: Filtering, y: Array, w: Array) -> Array:
    """Correlate without padding, with H and W even: ``[N, s(H-1)+3, s(W-1)+3, I] × [3, 3, I, O] → [N, H, W, O]``."""
    return _multiply(filtering, y, _split_kernel(filtering, w))


def convolve_transposed(filtering: Filtering, x: Array, w: Array) -> Array:
    """Compute `convolve` with the kernel of the transpose, its taps reversed and its channels swapped ``[3, 3, O, I]``."""
    return _multiply(filtering, x, [k.swapaxes(1, 2) for k in _split_kernel(filtering, w[::-1, ::-1])])


def weight_gradient(filtering: Filtering, y: Array, x: Array) -> Array:
    """Transpose `convolve` in its weights: ``[N, s(H-1)+3, s(W-1)+3, I] × [N, H, W, O] → [3, 3, I, O]``."""

    def products(y: Array, x: Array) -> list[Array]:
        pairs = zip(_split_data(filtering, y), _split_outputs(filtering, x), strict=True)
        return [jnp.matmul(jnp.swapaxes(_as_matrices(d), 1, 2), _as_matrices(r)) for d, r in pairs]

    height = _strip_height(filtering, y, x.shape[3])
    count = x.shape[1] // height
    if count == 1:
        return _merge_kernel(filtering, products(y, x))

    def add(i: Array, sums: list[Array]) -> list[Array]:
        outputs = lax.dynamic_slice_in_dim(x, i * height, height, 1)
        return jax.tree.map(jnp.add, sums, products(_strip(filtering, y, i, height), outputs))

    p = len(filtering.data)
    zeros = [jnp.zeros((p, y.shape[3], x.shape[3]), y.dtype)] * p
    return _merge_kernel(filtering, lax.fori_loop(0, count, add, zeros))


def _multiply(filtering: Filtering, y: Array, kernels: list[Array]) -> Array:
    def outputs(y: Array) -> Array:
        pairs = zip(_split_data(filtering, y), kernels, strict=True)
        return _merge_outputs(filtering, [jnp.matmul(_as_matrices(d), k).reshape(*d.shape[:4], -1) for d, k in pairs])

    channels = kernels[0].shape[2]
    height = _strip_height(filtering, y, channels)
    rows, columns = _tiles(filtering, y)
    if height == 2 * rows:
        return outputs(y)
    return lax.fori_loop(
        0,
        2 * rows // height,
        lambda i, x: lax.dynamic_update_slice_in_dim(x, outputs(_strip(filtering, y, i, height)), i * height, 1),
        jnp.zeros((len(y), 2 * rows, 2 * columns, channels), y.dtype),
    )


# --- strips of rows, whose transformed activations fit into the cache; the batch stays whole, as it may be sharded --------


def _strip_height(filtering: Filtering, y: Array, outputs: int) -> int:
    """Return how many rows of the output, of `outputs` channels, to compute at a time."""
    rows, columns = _tiles(filtering, y)
    tile_bytes = len(filtering.data) ** 2 * (y.shape[3] + outputs) * y.dtype.itemsize
    fitting = _STRIP_BYTES / (y.shape[0] * columns * tile_bytes)
    return 2 * max(n for n in range(1, rows + 1) if rows % n == 0 and n <= max(1, fitting))


def _tiles(filtering: Filtering, y: Array) -> tuple[int, int]:
    """Return the rows and columns of an input's tiles."""
    _, height, width, _ = y.shape
    return (height - filtering.overlap) // filtering.step, (width - filtering.overlap) // filtering.step


def _strip(filtering: Filtering, y: Array, i: Array, height: int) -> Array:
    """Return the rows of the input that strip i of the output, `height` rows, depends on."""
    inputs = filtering.stride * height
    return lax.dynamic_slice_in_dim(y, i * inputs, inputs + filtering.overlap, 1)


def _as_matrices(x: Array) -> Array:
    """Reshape ``[p, N, H, W, C] → [p, N·H·W, C]``: XLA transposes activations for a product that sums over several axes."""
    return x.reshape(x.shape[0], -1, x.shape[4])


# --- the three maps and their transposes, along both axes -----------------------------------------------------------------
#
# The p² products come in p arrays of p: each on its own takes long to compile, and all in one leave the cache between the
# steps of their computation.


def _split_data(filtering: Filtering, y: Array) -> list[Array]:
    """Transform the overlapping tiles of an input: p × ``[p, N, H/2, W/2, I]``."""
    return _split(filtering.data, filtering.step, y)


def _split_outputs(filtering: Filtering, x: Array) -> list[Array]:
    """Transform the tiles of an output: p × ``[p, N, H/2, W/2, O]``."""
    return _split(filtering.outputs, 2, x)


def _split(matrix: Matrix, step: int, x: Array) -> list[Array]:
    """Multiply the tiles of ``[N, H, W, C]``, one in `step` pixels, by a matrix along both axes."""
    rows = np.asarray(matrix, x.dtype)
    count = np.count_nonzero(rows, axis=1).max()
    at = np.argsort(rows == 0, axis=1, kind="stable")[:, :count].astype(np.int32)  # where a row is not zero
    factors = np.take_along_axis(rows, at, 1)

    def terms(row: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return first pixels and factors of the terms of a row of products."""
        return [
            (np.stack([np.full_like(at[:, j], at[row, i]), at[:, j]], axis=1), factors[row, i] * factors[:, j])
            for i, j in np.ndindex(count, count)
        ]

    last = rows.shape[1] - 1
    extent = (x.shape[0], x.shape[1] - last, x.shape[2] - last, x.shape[3])
    axes = lax.GatherDimensionNumbers(offset_dims=(1, 2, 3, 4), collapsed_slice_dims=(), start_index_map=(1, 2))

    def value(starts: Array, factors: Array) -> Array:
        pixels = lax.gather(x, starts, axes, extent, mode="promise_in_bounds")
        pixels = lax.slice(pixels, (0,) * 5, pixels.shape, (1, 1, step, step, 1))
        return lax.broadcast_in_dim(factors, pixels.shape, (0,)) * pixels

    # Rows differ in values that the compiler does not see: it compiles them once.
    hidden = lax.optimization_barrier([terms(row) for row in range(len(rows))])
    return [functools.reduce(jnp.add, itertools.starmap(value, of_row)) for of_row in hidden]


def _merge_outputs(filtering: Filtering, products: list[Array]) -> Array:
    """Transpose `_split_outputs`."""
    matrix = tuple(zip(*filtering.outputs, strict=True))

    def along(products: Sequence[Array], axis: int) -> Array:
        return _interleave(_combine(matrix, products), axis)

    return along([along(list(row), 2) for row in products], 1)


def _split_kernel(filtering: Filtering, w: Array) -> list[Array]:
    """Transform a kernel: ``[3, 3, I, O]`` → p × ``[p, I, O]``."""
    return [jnp.tensordot(matrix, w, 2) for matrix in _kernel_matrices(filtering, w.dtype)]


def _merge_kernel(filtering: Filtering, products: list[Array]) -> Array:
    """Transpose `_split_kernel`."""
    pairs = zip(_kernel_matrices(filtering, products[0].dtype), products, strict=True)
    return functools.reduce(jnp.add, [jnp.tensordot(matrix.T, x, 1) for matrix, x in pairs]).swapaxes(0, 1)


def _kernel_matrices(filtering: Filtering, dtype: jnp.dtype) -> np.ndarray:
    """Return the maps from 3×3 taps to each row of products: ``[p, p, 3, 3]``."""
    return np.einsum("ai,bj->abij", filtering.kernel, filtering.kernel).astype(dtype)


def _combine(matrix: Matrix, terms: Sequence[Array]) -> list[Array]:
    """Multiply a matrix by a column of arrays, without what is zero."""
    products = []
    for row in matrix:
        weighted = [term if c == 1 else c * term for c, term in zip(row, terms, strict=True) if c]
        products.append(sum(weighted[1:], weighted[0]))
    return products


def _interleave(parts: Sequence[Array], axis: int) -> Array:
    """Take from the arrays in turn along an axis."""
    shape = list(parts[0].shape)
    shape[axis] *= len(parts)
    return jnp.stack(parts, axis + 1).reshape(shape)
