"""3×3 convolutions by minimal filtering, the form for CPUs: matrix products, and less than half as many multiplications.

A convolution is trilinear in a tile of its input d, the kernel g and a tile of its output r, and equals
``Σ_p (data_p · d) (kernel_p · g) (outputs_p · r)``. For a tile of 2×2 outputs 16 such products suffice in place of 36
(Winograd 1980; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, Sec. 4.1), or 25 with
stride 2. Summed over channels or pixels each product is a matrix product. Solved for r, d or g, the same sum is the
convolution, its transpose in the input or its transpose in the weights: gradients of any order are as fast.

Coefficients are 0, ±1 and 1/2, so that results differ from a direct convolution's only by rounding: relative to the largest
value by 1e-6 in float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
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
    return _multiply(filtering, y, _transform_kernel(filtering, [list(row) for row in w]))


def convolve_transposed(filtering: Filtering, x: Array, w: Array) -> Array:
    """Compute `convolve` with the kernel of the transpose, its taps reversed and its channels swapped ``[3, 3, O, I]``."""
    return _multiply(filtering, x, [k.T for k in _transform_kernel(filtering, [list(row)[::-1] for row in w][::-1])])


def weight_gradient(filtering: Filtering, y: Array, x: Array) -> Array:
    """Transpose `convolve` in its weights: ``[N, s(H-1)+3, s(W-1)+3, I] × [N, H, W, O] → [3, 3, I, O]``."""

    def products(y: Array, x: Array) -> list[Array]:
        pairs = zip(_split_data(filtering, y), _split_outputs(filtering, x), strict=True)
        return [jnp.matmul(_as_matrix(d).T, _as_matrix(r)) for d, r in pairs]

    height = _strip_height(filtering, y, x.shape[3])
    count = x.shape[1] // height
    if count == 1:
        return _merge_kernel(filtering, products(y, x))

    def add(i: Array, sums: list[Array]) -> list[Array]:
        outputs = lax.dynamic_slice_in_dim(x, i * height, height, 1)
        return jax.tree.map(jnp.add, sums, products(_strip(filtering, y, i, height), outputs))

    zeros = [jnp.zeros((y.shape[3], x.shape[3]), y.dtype)] * len(filtering.data) ** 2
    return _merge_kernel(filtering, lax.fori_loop(0, count, add, zeros))


def _multiply(filtering: Filtering, y: Array, kernels: list[Array]) -> Array:
    def outputs(y: Array) -> Array:
        tiles = zip(_split_data(filtering, y), kernels, strict=True)
        products = [jnp.matmul(_as_matrix(d), k).reshape(*d.shape[:3], -1) for d, k in tiles]
        return _merge_outputs(filtering, products)

    height = _strip_height(filtering, y, kernels[0].shape[1])
    shape = jax.eval_shape(outputs, y).shape
    if height == shape[1]:
        return outputs(y)
    return lax.fori_loop(
        0,
        shape[1] // height,
        lambda i, x: lax.dynamic_update_slice_in_dim(x, outputs(_strip(filtering, y, i, height)), i * height, 1),
        jnp.zeros(shape, y.dtype),
    )


# --- strips of rows, whose transformed activations fit into the cache; the batch stays whole, as it may be sharded --------


def _strip_height(filtering: Filtering, y: Array, outputs: int) -> int:
    """Return how many rows of the output, of `outputs` channels, to compute at a time."""
    rows, columns = ((n - filtering.overlap) // filtering.step for n in y.shape[1:3])  # of tiles
    tile_bytes = len(filtering.data) ** 2 * (y.shape[3] + outputs) * y.dtype.itemsize
    fitting = _STRIP_BYTES / (y.shape[0] * columns * tile_bytes)
    return 2 * max(n for n in range(1, rows + 1) if rows % n == 0 and n <= max(1, fitting))


def _strip(filtering: Filtering, y: Array, i: Array, height: int) -> Array:
    """Return the rows of the input that strip i of the output, `height` rows, depends on."""
    inputs = filtering.stride * height
    return lax.dynamic_slice_in_dim(y, i * inputs, inputs + filtering.overlap, 1)


def _as_matrix(x: Array) -> Array:
    """Reshape ``[N, H, W, C] → [N·H·W, C]``: XLA transposes activations for a product that sums over several axes."""
    return x.reshape(-1, x.shape[3])


# --- the three maps and their transposes, along both axes -----------------------------------------------------------------


def _split_data(filtering: Filtering, y: Array) -> list[Array]:
    """Transform the overlapping tiles of an input: products × ``[N, H/2, W/2, I]``."""

    def along(x: Array, axis: int) -> list[Array]:
        inputs, step = len(filtering.data[0]), filtering.step
        last = x.shape[axis] - inputs
        tiles = [lax.slice_in_dim(x, i, i + last + 1, step, axis) for i in range(inputs)]
        return _combine(filtering.data, tiles)

    return [product for row in along(y, 1) for product in along(row, 2)]


def _split_outputs(filtering: Filtering, x: Array) -> list[Array]:
    """Transform the tiles of an output: products × ``[N, H/2, W/2, O]``."""

    def along(x: Array, axis: int) -> list[Array]:
        pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        return _combine(filtering.outputs, [lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1)])

    return [product for row in along(x, 1) for product in along(row, 2)]


def _merge_outputs(filtering: Filtering, products: Sequence[Array]) -> Array:
    """Transpose `_split_outputs`."""

    def along(products: Sequence[Array], axis: int) -> Array:
        return _interleave(_combine(_transposed(filtering.outputs), products), axis)

    return along([along(row, 2) for row in _rows(products)], 1)


def _transform_kernel(filtering: Filtering, taps: list[list[Array]]) -> list[Array]:
    """Transform a kernel, 3×3 matrices: products × ``[I, O]``."""
    columns = [_combine(filtering.kernel, column) for column in zip(*taps, strict=True)]
    return [k for row in zip(*columns, strict=True) for k in _combine(filtering.kernel, row)]


def _merge_kernel(filtering: Filtering, products: Sequence[Array]) -> Array:
    """Transpose `_transform_kernel`."""
    taps = _transposed(filtering.kernel)
    return jnp.stack(_combine(taps, [jnp.stack(_combine(taps, row)) for row in _rows(products)]))


def _combine(matrix: Matrix, terms: Sequence[Array]) -> list[Array]:
    """Multiply a matrix by a column of arrays, without what is zero."""
    products = []
    for row in matrix:
        weighted = [term if c == 1 else c * term for c, term in zip(row, terms, strict=True) if c]
        products.append(sum(weighted[1:], weighted[0]))
    return products


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _rows(products: Sequence[Array]) -> list[Sequence[Array]]:
    """Split p² products into p rows."""
    p = int(len(products) ** 0.5)
    return [products[i : i + p] for i in range(0, p * p, p)]


def _interleave(parts: Sequence[Array], axis: int) -> Array:
    """Take from the arrays in turn along an axis."""
    shape = list(parts[0].shape)
    shape[axis] *= len(parts)
    return jnp.stack(parts, axis + 1).reshape(shape)
