"""ADA's resampling of images by affine maps, without aliasing (appendix B of the paper).

The image is mirrored at its borders, doubled in size with the wavelet filter "sym6", sampled bilinearly at the mapped
positions of a doubled output grid, and halved again with the same filter. Mirroring, doubling and halving are constant
matrices, the same for rows and columns; only the bilinear sampling depends on the image's map. It has two exact forms:

* ``"matmul"``, for TPUs: a matrix product over rows and a weighted sum over columns. Mirroring and doubling are folded into
  the weights of a position, seven neighbouring rows and columns of the image itself. No gather and, in the gradient, no
  scatter. From 96 px on, where weights for the whole image are too expensive, the output grid is divided into squares that
  each sample from a window; if any square of the batch does not fit into its window (an image is zoomed out to less than
  about a third), the whole batch is sampled without windows.
* ``"gather"``, for CPUs: four gathers from the mirrored and doubled image.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

Array = jax.Array
WarpImpl = Literal["matmul", "gather"]
# Of "matmul" on TPUs: three passes of bfloat16 products for float32 (about 16 bits), or one.
Precision = Literal["float32", "bfloat16"]
Affine = tuple[Array, Array, Array, Array, Array, Array]
Indices = np.ndarray | Array

# Low-pass filter of the wavelet "sym6" (Daubechies, Ten Lectures on Wavelets, 1992), which sums to √2.
_SYM6 = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
])  # fmt: skip
_FILTER = _SYM6 / _SYM6.sum()
_OUTPUT_PAD = len(_FILTER) // 4  # output pixels beyond each border that the halving filter reaches
_TAPS = len(_FILTER) // 2 + 1  # neighbouring pixels that a sample of the doubled image depends on
_WINDOWS_FROM = 96  # pixels
_TILE, _WINDOW = 38, 64  # samples of a square's side, and pixels of its window's


def warp(x: Array, matrix: Affine, impl: WarpImpl = "matmul", precision: Precision = "float32") -> Array:
    """Resample images ``[N, H, W, C]`` at positions mapped by `matrix`."""
    _, height, width, _ = x.shape
    if impl == "gather":
        sampled = _gather(x, matrix)
    elif min(height, width) < _WINDOWS_FROM:
        sampled = _whole(x, matrix, precision)
    else:
        windows = _Windows(matrix, height, width)
        sampled = jax.lax.cond(
            windows.fit, lambda x: windows.sample(x, precision), lambda x: _row_by_row(x, matrix, precision), x
        )
    x = jnp.einsum("hp,npqc->nhqc", halving_matrix(height).astype(x.dtype), sampled, precision="highest")
    return jnp.einsum("wq,nhqc->nhwc", halving_matrix(width).astype(x.dtype), x, precision="highest")


def grid_size(size: int) -> int:
    """Return the samples along an axis of the doubled output grid, including those the halving filter needs beyond borders."""
    return 2 * (size + 2 * _OUTPUT_PAD) - 2


def sampling_positions(matrix: Affine, height: int, width: int, rows: Indices, columns: Indices) -> tuple[Array, Array]:
    """Map samples of the doubled output grid, given by row and column, to x and y in the mirrored and doubled image.

    In pixels of that image (``2·(3·size - 2)`` of them), counted from its pixel ``3·(size - 1)``: small numbers near
    the middle, so that float32 has more digits for their fractions.
    """
    a, b, c, d, e, f = (value.reshape(-1, *(1,) * rows.ndim) for value in matrix)
    x, y = (
        jnp.asarray(index / 2 - grid_size(size) / 4 + 0.5, a.dtype)
        for index, size in ((columns, width), (rows, height))
    )
    return 2.0 * (a * x + b * y + c), 2.0 * (d * x + e * y + f)


@functools.cache
def doubling_matrix(size: int) -> np.ndarray:
    """Return the matrix that mirrors at both ends, without repeating the border pixel, and doubles: ``[2·(3·size - 2), size]``."""
    margin = size - 1
    padded = size + 2 * margin
    tap = np.arange(2 * padded)[:, None] - 2 * np.arange(padded)[None, :] + len(_FILTER) // 2 - 1
    doubling = np.where((tap >= 0) & (tap < len(_FILTER)), 2.0 * _FILTER[np.clip(tap, 0, len(_FILTER) - 1)], 0.0)
    mirror = np.abs(np.arange(padded) - margin)
    mirror = np.where(mirror < size, mirror, 2 * margin - mirror)
    return doubling @ np.eye(size)[mirror]


@functools.cache
def halving_matrix(size: int) -> np.ndarray:
    """Return the matrix that filters and takes every second row within the borders: ``[size, grid_size(size)]``."""
    tap = np.arange(grid_size(size))[None, :] - 2 * np.arange(size)[:, None]
    return np.where((tap >= 0) & (tap < len(_FILTER)), _FILTER[np.clip(tap, 0, len(_FILTER) - 1)], 0.0)


def _whole(x: Array, matrix: Affine, precision: Precision) -> Array:
    """Sample from whole images: ``[N, H, W, C] → [N, P, Q, C]``."""
    n, height, width, channels = x.shape
    shape = grid_size(height), grid_size(width)
    rows, columns = np.indices(shape).reshape(2, -1)
    x = _at_positions(x, matrix, rows, columns, precision)
    return x.reshape(n, channels, *shape).transpose(0, 2, 3, 1)


def _row_by_row(x: Array, matrix: Affine, precision: Precision) -> Array:
    """Compute `_whole` a row of the output grid at a time: weights of large images would not fit into memory."""
    height, width = x.shape[1:3]
    columns = np.arange(grid_size(width), dtype=np.int32)

    @jax.checkpoint  # a gradient would store all rows' weights otherwise
    def sample_row(row: Array) -> Array:
        return _at_positions(x, matrix, jnp.full_like(columns, row), columns, precision)

    rows = jax.lax.map(sample_row, np.arange(grid_size(height), dtype=np.int32))
    return rows.transpose(1, 0, 3, 2)


def _at_positions(x: Array, matrix: Affine, rows: Indices, columns: Indices, precision: Precision) -> Array:
    """Sample whole images at positions ``[T]`` of the output grid: ``[N, H, W, C] → [N, C, T]``."""
    _, height, width, _ = x.shape
    positions_x, positions_y = sampling_positions(matrix, height, width, rows, columns)
    row_weights = _positions_in_lanes(_whole_weights(positions_y, height))
    column_weights = _positions_in_lanes(_whole_weights(positions_x, width))
    x = _positions_in_lanes(_product("nhwc,nht->ncwt", x, row_weights, precision))
    return (x * column_weights[:, None]).sum(axis=2)


def _positions_in_lanes(x: Array) -> Array:
    # By default the TPU compiler puts axes of 128 pixels in the lanes, and then takes six times as long to broadcast every
    # position's weights over them. Other compilers would gather a split batch for such a constraint.
    def constrain(x: Array) -> Array:
        return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))

    return jax.lax.platform_dependent(x, tpu=constrain, default=lambda x: x)


def _whole_weights(positions: Array, size: int) -> Array:
    """Compute the weight of each of `size` pixels at positions ``[N, T]`` along one axis: ``[N, size, T]``."""
    last, taps = _taps(positions, size)
    pixels = np.arange(size, dtype=np.int32)[None, :, None]
    return sum(jnp.where(_mirrored(last - j, size)[:, None] == pixels, tap[:, None], 0.0) for j, tap in enumerate(taps))


class _Windows:
    """The doubled output grid divided into squares, each with its window of the mirrored image.

    Attributes:
      fit: whether every square fits into its window, a boolean scalar.
    """

    def __init__(self, matrix: Affine, height: int, width: int):
        self.shape = grid_size(height), grid_size(width)
        self.squares = tuple(-(-size // _TILE) for size in self.shape)
        row, column, down, right = np.indices((*self.squares, _TILE, _TILE)).reshape(4, -1, _TILE**2)
        rows, columns = row * _TILE + down, column * _TILE + right  # [squares, positions of each]
        positions = map(_positions_in_lanes, sampling_positions(matrix, height, width, rows, columns))
        (self.columns, self.column_weights, fit_x), (self.rows, self.row_weights, fit_y) = (
            _window(*_taps(p, size), size) for p, size in zip(positions, (width, height), strict=True)
        )
        self.fit = fit_x & fit_y

    def sample(self, x: Array, precision: Precision) -> Array:
        """Sample from the windows: ``[N, H, W, C] → [N, P, Q, C]``."""
        n, _, _, channels = x.shape
        x = _product("nkbw,nhwc->nkbch", self.columns, x, precision)
        x = _product("nkah,nkbch->nkbca", self.rows, x, precision)
        x = _product("nkbca,nkat->nkbct", x, self.row_weights, precision)
        x = (x * self.column_weights[:, :, :, None]).sum(axis=2).reshape(n, *self.squares, channels, _TILE, _TILE)
        x = x.transpose(0, 1, 4, 2, 5, 3).reshape(n, *(_TILE * count for count in self.squares), channels)
        return x[:, : self.shape[0], : self.shape[1]]


def _window(last: Array, taps: list[Array], size: int) -> tuple[Array, Array, Array]:
    """Compute windows along one axis: their pixels, one-hot ``[N, K, window, size]``; weights ``[N, K, window, T]``; fit."""
    padded = 3 * size - 2
    corners = jnp.stack([last[..., i] for i in (0, _TILE - 1, -_TILE, -1)], axis=-1)  # positions are affine
    start = jnp.clip(corners.min(axis=-1, keepdims=True) - (_TAPS - 1), 0, padded - _WINDOW)
    fit = (jnp.minimum(corners.max(axis=-1, keepdims=True), padded - 1) < start + _WINDOW).all()
    offsets = jnp.arange(_WINDOW, dtype=jnp.int32)
    pixels = _mirrored(start + offsets, size)[..., None] == jnp.arange(size)
    distance = (last - start)[..., None, :] - offsets[:, None]
    weights = jnp.zeros((), taps[0].dtype)
    for j, tap in enumerate(taps):
        weights = jnp.where(distance == j, tap[..., None, :], weights)
    return pixels.astype(weights.dtype), weights, fit


def _taps(positions: Array, size: int) -> tuple[Array, list[Array]]:
    """Compute the weights of the mirrored image's pixels at positions along one axis; `size` is that of the image.

    Returns:
      The last of the seven pixels that contribute, int32, counted from the first of the mirrored image; and the weight of
      that pixel, of the one before it, and so on. All shaped like `positions`.
    """
    padded = 3 * size - 2  # pixel 0 of the image is pixel size - 1 of the mirrored image
    first = jnp.clip(jnp.floor(positions), -4.0 * size, 4.0 * size)  # of two doubled pixels, from 3·(size - 1)
    fraction = positions - jnp.floor(positions)
    first = first.astype(jnp.int32) + 3 * (size - 1)
    # Beyond its ends the doubled signal is zero.
    here = jnp.where((first >= 0) & (first < 2 * padded), 1.0 - fraction, 0.0)
    there = jnp.where((first >= -1) & (first < 2 * padded - 1), fraction, 0.0)
    odd = first % 2 == 1
    last = (first + len(_FILTER) // 2) // 2  # of the pixels within the filter's reach of either

    def tap(index: int) -> float:
        return 2.0 * float(_FILTER[index]) if 0 <= index < len(_FILTER) else 0.0

    weights = []
    for j in range(_TAPS):
        odd_weight = here * tap(2 * j) + there * tap(2 * j + 1)
        even_weight = here * tap(2 * j - 1) + there * tap(2 * j)
        inside = (last - j >= 0) & (last - j < padded)
        weights.append(jnp.where(inside, jnp.where(odd, odd_weight, even_weight), 0.0))
    return last, weights


def _mirrored(pixel: Array, size: int) -> Array:
    """Map pixels of the mirrored image to pixels of the image."""
    return size - 1 - jnp.abs(size - 1 - jnp.abs(pixel - (size - 1)))


def _product(equation: str, x: Array, y: Array, precision: Precision) -> Array:
    if precision == "float32":
        return jnp.einsum(equation, x, y, precision="high")
    # Back to float32 for CPUs, which have no bfloat16 products; a TPU multiplies in bfloat16 by default.
    x, y = (operand.astype(jnp.bfloat16).astype(operand.dtype) for operand in (x, y))
    return jnp.einsum(equation, x, y, precision="default")


def _gather(x: Array, matrix: Affine) -> Array:
    """Sample by four gathers from the mirrored and doubled image: ``[N, H, W, C] → [N, P, Q, C]``."""
    n, height, width, channels = x.shape
    grid = np.indices((grid_size(height), grid_size(width)))
    positions_x, positions_y = sampling_positions(matrix, height, width, *grid)
    x = jnp.einsum("yh,nhwc->nywc", doubling_matrix(height).astype(x.dtype), x, precision="highest")
    x = jnp.einsum("xw,nywc->nyxc", doubling_matrix(width).astype(x.dtype), x, precision="highest")
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # zero beyond the border
    rows, columns = x.shape[1:3]
    x = x.reshape(n, rows * columns, channels)

    def corner(position: Array, size: int) -> tuple[Array, Array]:
        # One pixel further on in the padded image, because of the zero border.
        origin = 3 * (size - 1) + 1
        position = jnp.clip(position, -origin, 2 * (3 * size - 2) + 1 - origin)
        first = jnp.minimum(jnp.floor(position), 2 * (3 * size - 2) - origin)
        return first.astype(jnp.int32) + origin, position - first

    column, weight_x = corner(positions_x, width)
    row, weight_y = corner(positions_y, height)
    total = jnp.zeros((n, *positions_x.shape[1:], channels), x.dtype)
    for down, right in np.ndindex(2, 2):
        index = ((row + down) * columns + column + right).reshape(n, -1, 1)
        value = jnp.take_along_axis(x, index, axis=1).reshape(total.shape)
        weight = (weight_y if down else 1.0 - weight_y) * (weight_x if right else 1.0 - weight_x)
        total = total + weight[..., None] * value
    return total
