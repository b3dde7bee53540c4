"""ADA's geometric operations: one affine map per image, resampled without aliasing (appendix B of the paper).

The image is mirrored at its borders, doubled in size with the wavelet filter "sym6", sampled bilinearly at the mapped
positions of a doubled output grid, and halved again with the same filter. Mirroring, doubling and halving are constant
matrices, the same for rows and columns; what depends on the image is the bilinear sampling.
"""

import functools
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

Array = jax.Array
WarpImpl = Literal["matmul", "gather"]
Affine = tuple[Array, Array, Array, Array, Array, Array]

# Low-pass filter of the wavelet "sym6" (Daubechies, Ten Lectures on Wavelets, 1992), which sums to √2.
_SYM6 = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
])  # fmt: skip
_FILTER = _SYM6 / _SYM6.sum()
_OUTPUT_PAD = len(_FILTER) // 4  # output pixels beyond each border that the halving filter reaches
_NAMES = ("xflip", "rotate90", "xint", "scale", "prerotate", "aniso", "postrotate", "xfrac")


def transform(x: Array, params: Mapping[str, Array], impl: WarpImpl) -> Array:
    """Carries out those of the operations that `params` has, on images ``[N, H, W, C]``."""
    if not any(name in params for name in _NAMES):
        return x
    return warp(x, inverse_affine(params, x.shape), impl)


def inverse_affine(params: Mapping[str, Array], shape: tuple[int, ...]) -> Affine:
    """The map from output to input pixels of images of `shape` ``(N, H, W, C)``, about the image's centre.

    Returns:
      ``(a, b, c, d, e, f)``, each ``[N]``: ``x' = a x + b y + c``, ``y' = d x + e y + f``.
    """
    n, height, width, _ = shape
    dtype = next(iter(params.values())).dtype
    one, zero = jnp.ones(n, dtype), jnp.zeros(n, dtype)
    matrix = (one, zero, zero, zero, one, zero)
    # The first operation acts first on the image, so its inverse is the last to act on positions: on the left.
    if "xflip" in params:
        matrix = _scaled(matrix, 1.0 - 2.0 * params["xflip"], one)
    if "rotate90" in params:
        matrix = _rotated(matrix, 0.5 * math.pi * params["rotate90"])
    if "xint" in params:
        shift = jnp.round(params["xint"] * jnp.array([width, height], dtype))
        matrix = _shifted(matrix, -shift[:, 0], -shift[:, 1])
    if "scale" in params:
        matrix = _scaled(matrix, 1.0 / params["scale"], 1.0 / params["scale"])
    if "prerotate" in params:
        matrix = _rotated(matrix, params["prerotate"])
    if "aniso" in params:
        matrix = _scaled(matrix, 1.0 / params["aniso"], params["aniso"])
    if "postrotate" in params:
        matrix = _rotated(matrix, params["postrotate"])
    if "xfrac" in params:
        matrix = _shifted(matrix, -params["xfrac"][:, 0] * width, -params["xfrac"][:, 1] * height)
    return matrix


def _scaled(m: Affine, x: Array, y: Array) -> Affine:
    a, b, c, d, e, f = m
    return a * x, b * y, c, d * x, e * y, f


def _rotated(m: Affine, angle: Array) -> Affine:
    a, b, c, d, e, f = m
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return a * cosine + b * sine, b * cosine - a * sine, c, d * cosine + e * sine, e * cosine - d * sine, f


def _shifted(m: Affine, x: Array, y: Array) -> Affine:
    a, b, c, d, e, f = m
    return a, b, a * x + b * y + c, d, e, d * x + e * y + f


def warp(x: Array, matrix: Affine, impl: WarpImpl = "matmul") -> Array:
    """Resamples images ``[N, H, W, C]`` at the mapped positions."""
    _, height, width, _ = x.shape
    positions_x, positions_y = sampling_positions(matrix, height, width)
    sampled = {"matmul": _matmul, "gather": _gather}[impl](x, positions_x, positions_y)
    x = jnp.einsum("hp,npqc->nhqc", halving_matrix(height).astype(x.dtype), sampled, precision="highest")
    return jnp.einsum("wq,nhqc->nhwc", halving_matrix(width).astype(x.dtype), x, precision="highest")


def sampling_positions(matrix: Affine, height: int, width: int) -> tuple[Array, Array]:
    """Where the doubled output grid samples the mirrored and doubled image: x and y, ``[N, P, Q]``.

    In pixels of that image (``2·(3·size - 2)`` of them), counted from its pixel ``3·(size - 1)``: small numbers near
    the middle, so that float32 has more digits for their fractions.
    """
    a, b, c, d, e, f = (value[:, None, None] for value in matrix)
    x, y = (np.arange(2 * (size + 2 * _OUTPUT_PAD)) / 2 - (size + 2 * _OUTPUT_PAD) / 2 + 0.5 for size in (width, height))
    x, y = jnp.asarray(x[None, None, :], a.dtype), jnp.asarray(y[None, :, None], a.dtype)
    return 2.0 * (a * x + b * y + c), 2.0 * (d * x + e * y + f)


@functools.cache
def doubling_matrix(size: int) -> np.ndarray:
    """Mirrors at both ends, without repeating the border pixel, and doubles: ``[2·(3·size - 2), size]``."""
    margin = size - 1
    padded = size + 2 * margin
    tap = np.arange(2 * padded)[:, None] - 2 * np.arange(padded)[None, :] + len(_FILTER) // 2 - 1
    doubling = np.where((tap >= 0) & (tap < len(_FILTER)), 2.0 * _FILTER[np.clip(tap, 0, len(_FILTER) - 1)], 0.0)
    mirror = np.abs(np.arange(padded) - margin)
    mirror = np.where(mirror < size, mirror, 2 * margin - mirror)
    return doubling @ np.eye(size)[mirror]


@functools.cache
def halving_matrix(size: int) -> np.ndarray:
    """Filters and takes every second row, dropping the padding: ``[size, 2·(size + 6)]``."""
    tap = np.arange(2 * (size + 2 * _OUTPUT_PAD))[None, :] - 2 * np.arange(size)[:, None] - 1
    return np.where((tap >= 0) & (tap < len(_FILTER)), _FILTER[np.clip(tap, 0, len(_FILTER) - 1)], 0.0)


def _matmul(x: Array, positions_x: Array, positions_y: Array) -> Array:
    """Interpolation as a matrix product over rows and a weighted sum over columns: ``[N, H, W, C] → [N, P, Q, C]``.

    Mirroring and doubling are folded into the weights of a position, seven neighbouring rows and columns of the image
    itself. No gather and, in the gradient, no scatter; positions are in the lanes.
    """
    n, height, width, channels = x.shape
    shape = positions_x.shape
    rows = _positions_in_lanes(_one_axis_weights(positions_y.reshape(n, -1), height))
    columns = _positions_in_lanes(_one_axis_weights(positions_x.reshape(n, -1), width))
    # Three passes of bfloat16 products on TPUs: errors of 1e-5. Six ("highest") cost half as much again.
    x = _positions_in_lanes(jnp.einsum("nhwc,nht->ncwt", x, rows, precision="high"))
    x = (x * columns[:, None]).sum(axis=2)
    return x.reshape(n, channels, *shape[1:]).transpose(0, 2, 3, 1)


def _positions_in_lanes(x: Array) -> Array:
    # Left to itself the TPU compiler gives the lanes to axes of 128 pixels, and then spends six times as long on
    # spreading every position's weights over them.
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def _one_axis_weights(positions: Array, size: int) -> Array:
    """What each of `size` pixels contributes to the positions ``[N, T]`` along one axis: ``[N, size, T]``."""
    padded = 3 * size - 2  # length of the mirrored signal; pixel 0 of the image is its pixel size - 1
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

    pixels = np.arange(size, dtype=np.int32)[None, :, None]
    weights = jnp.zeros((positions.shape[0], size, positions.shape[1]), positions.dtype)
    for j in range(len(_FILTER) // 2 + 1):
        odd_weight = here * tap(2 * j) + there * tap(2 * j + 1)
        even_weight = here * tap(2 * j - 1) + there * tap(2 * j)
        pixel = last - j
        weight = jnp.where((pixel >= 0) & (pixel < padded), jnp.where(odd, odd_weight, even_weight), 0.0)
        pixel = size - 1 - jnp.abs(size - 1 - jnp.abs(pixel - (size - 1)))  # mirrored at either end
        weights = weights + jnp.where(pixel[:, None] == pixels, weight[:, None], 0.0)
    return weights


def _gather(x: Array, positions_x: Array, positions_y: Array) -> Array:
    """Four gathers from the mirrored and doubled image: ``[N, H, W, C] → [N, P, Q, C]``."""
    n, height, width, channels = x.shape
    x = jnp.einsum("yh,nhwc->nywc", doubling_matrix(height).astype(x.dtype), x, precision="highest")
    x = jnp.einsum("xw,nywc->nyxc", doubling_matrix(width).astype(x.dtype), x, precision="highest")
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # zero beyond the border
    rows, columns = x.shape[1:3]
    x = x.reshape(n, rows * columns, channels)

    def corner(position: Array, size: int) -> tuple[Array, Array]:
        # In the padded image, pixel 0 is the zero border before pixel 0.
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
