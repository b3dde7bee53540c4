"""Resizing that matches TensorFlow 1, PyTorch and Pillow to the last digits, on which a Fréchet distance depends.

Every filter is separable and linear, so a resizing is one matrix per side, computed on the host in float64:

* ``tf1_bilinear``: TensorFlow 1's ``resize_bilinear``: no half-pixel shift, no antialiasing.
* ``torch_bilinear``, ``torch_bicubic``: PyTorch's ``interpolate`` with ``align_corners=False`` and without antialiasing
  (bicubic has a = -0.75 and repeats the edge pixels).
* ``pillow_box``, ``pillow_bilinear``, ``pillow_bicubic``, ``pillow_lanczos``: Pillow's filters, antialiased (bicubic
  has a = -0.5; weights beyond the edge are dropped and the others scaled up).

`resize` is the matrix product in float32, like Pillow's mode "F". `resize_uint8` is Pillow's algorithm for 8-bit images:
integer weights and a rounding after each side, the width first. (Pillow 13 resizes the height first where that shrinks
much more than the width, which changes some pixels by 1; published numbers are older, and squares are unaffected.)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.utils.errors import UserError, did_you_mean

Array = jax.Array

_FIXED_POINT_BITS = 22  # Pillow's: the sum's 32, less 8 for a pixel, less 2 for weights outside 0..1


@functools.partial(jax.jit, static_argnames=("height", "width", "kind"))
def resize(images: Array, height: int, width: int, kind: str) -> Array:
    """Resize images, without rounding or clipping.

    Args:
      images: float32 ``[n, H, W, C]``, or a type that converts to it exactly.
      height: of the result, in pixels.
      width: of the result, in pixels.
      kind: the filter, as in the module's docstring.

    Returns:
      float32 ``[n, height, width, C]``, in the units of `images`; the bicubic and Lanczos filters overshoot.

    Raises:
      UserError: an unknown kind or an empty size.
    """
    if images.shape[1:3] == (height, width):  # every filter is the identity
        resize_matrix(height, width, kind)  # raises for an unknown kind
        return images.astype(jnp.float32)
    rows, columns = (
        jnp.asarray(resize_matrix(size_in, size_out, kind), jnp.float32)
        for size_in, size_out in zip(images.shape[1:3], (height, width), strict=True)
    )
    images = jnp.einsum("oh,nhwc->nowc", rows, images, precision="highest")
    return jnp.einsum("pw,nowc->nopc", columns, images, precision="highest")


@functools.partial(jax.jit, static_argnames=("height", "width", "kind"))
def resize_uint8(images: Array, height: int, width: int, kind: str) -> Array:
    """Resize 8-bit images, width first, bit for bit as ``PIL.Image.resize`` does.

    Args:
      images: uint8 ``[n, H, W, C]``.
      height: of the result, in pixels.
      width: of the result, in pixels.
      kind: one of the kinds that begin with ``pillow_``.

    Returns:
      uint8 ``[n, height, width, C]``.

    Raises:
      UserError: a kind that is not Pillow's, or an empty size.
    """
    images = _resize_side_uint8(images, 2, width, kind)
    return _resize_side_uint8(images, 1, height, kind)


def short_side_crop_uint8(images: Array, size: int, kind: str) -> Array:
    """Resize the shorter side to `size` and crop the central square: CLIP's preprocessing up to the colours.

    Args:
      images: uint8 ``[n, H, W, C]``.
      size: height and width of the result, in pixels.
      kind: one of the kinds that begin with ``pillow_``.

    Returns:
      uint8 ``[n, size, size, C]``.

    Raises:
      UserError: a kind that is not Pillow's, or an empty size.
    """
    _, height, width, _ = images.shape
    return center_crop(resize_uint8(images, *short_side_size(height, width, size), kind), size)


def short_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Return height and width after resizing the shorter side to `size`; the longer is rounded down, as in torchvision."""
    longer = int(size * max(height, width) / min(height, width))
    return (size, longer) if height <= width else (longer, size)


def center_crop(images: Array, size: int) -> Array:
    """Crop the central square ``[n, size, size, C]`` of ``[n, H, W, C]``, H and W >= size, with torchvision's rounding."""
    top, left = (round((side - size) / 2) for side in images.shape[1:3])
    return images[:, top : top + size, left : left + size]


@functools.lru_cache(maxsize=64)
def resize_matrix(size_in: int, size_out: int, kind: str, scale: float | None = None) -> np.ndarray:
    """Compute the weights of one side.

    Args:
      size_in: input pixels, at least 1.
      size_out: output pixels, at least 1.
      kind: the filter, as in the module's docstring.
      scale: input pixels per output pixel, if not ``size_in / size_out``; not for Pillow's filters.

    Returns:
      float64 ``[size_out, size_in]``, read-only; every row sums to 1.

    Raises:
      UserError: an unknown kind or an empty size.
    """
    if kind not in KINDS:
        raise UserError(f"There is no resizing {kind!r}; {did_you_mean(kind, KINDS)}")
    if size_in < 1 or size_out < 1:
        raise UserError(f"A side of {size_in} pixels cannot become one of {size_out}: both must have at least 1 pixel.")
    indices, weights = _taps(size_in, size_out, kind, scale)
    matrix = np.zeros((size_out, size_in))
    np.add.at(matrix, (np.arange(size_out)[:, None], indices), weights)
    matrix.flags.writeable = False
    return matrix


def _taps(size_in: int, size_out: int, kind: str, scale: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the input pixels of each output pixel: indices int64 and weights float64, both ``[size_out, taps]``."""
    if kind in _PILLOW_FILTERS:
        return _pillow_taps(size_in, size_out, kind)
    scale = scale or size_in / size_out
    if kind == "tf1_bilinear":
        position = np.arange(size_out) * scale
    else:
        position = (np.arange(size_out) + 0.5) * scale - 0.5
    if kind == "torch_bicubic":
        offsets, weigh = np.arange(-1, 3), functools.partial(_cubic, a=-0.75)
    else:
        position, offsets, weigh = position.clip(0, size_in - 1), np.arange(2), _triangle
    indices = np.floor(position).astype(np.int64)[:, None] + offsets
    return indices.clip(0, size_in - 1), weigh(position[:, None] - indices)


def _pillow_taps(size_in: int, size_out: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    weigh, support = _PILLOW_FILTERS[kind]
    scale = size_in / size_out
    stretch = max(scale, 1.0)  # antialiasing: when shrinking, the filter is as wide as an output pixel
    support *= stretch
    center = (np.arange(size_out) + 0.5) * scale
    first = np.trunc(center - support + 0.5).astype(np.int64).clip(0)
    end = np.trunc(center + support + 0.5).astype(np.int64).clip(max=size_in)
    indices = first[:, None] + np.arange((end - first).max())
    weights = weigh((indices - center[:, None] + 0.5) * (1.0 / stretch)) * (indices < end[:, None])
    total = np.cumsum(weights, axis=1)[:, -1:]  # sequentially as in Pillow; np.sum is pairwise
    return indices.clip(max=size_in - 1), weights / total


def _resize_side_uint8(images: Array, axis: int, size: int, kind: str) -> Array:
    if kind not in _PILLOW_FILTERS:
        raise UserError(f"8-bit images have no resizing {kind!r}; {did_you_mean(kind, _PILLOW_FILTERS)}")
    if images.shape[axis] < 1 or size < 1:
        resize_matrix(images.shape[axis], size, kind)  # raises
    indices, weights = _taps(images.shape[axis], size, kind)
    weights = np.trunc(weights * 2**_FIXED_POINT_BITS + np.copysign(0.5, weights)).astype(np.int32)
    shape = [1] * images.ndim
    shape[axis] = size
    total = jnp.int32(2 ** (_FIXED_POINT_BITS - 1))  # one half, so that the shift rounds
    for index, weight in zip(indices.T, weights.T, strict=True):
        total += jnp.take(images, index, axis=axis).astype(jnp.int32) * weight.reshape(shape)
    return (total >> _FIXED_POINT_BITS).clip(0, 255).astype(jnp.uint8)


def _box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _triangle(x: np.ndarray) -> np.ndarray:
    return (1.0 - np.abs(x)).clip(0.0)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution."""
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3.0), 0.0)


_PILLOW_FILTERS = {  # filter and half of its width
    "pillow_box": (_box, 0.5),
    "pillow_bilinear": (_triangle, 1.0),
    "pillow_bicubic": (functools.partial(_cubic, a=-0.5), 2.0),
    "pillow_lanczos": (_lanczos, 3.0),
}
KINDS = ("tf1_bilinear", "torch_bilinear", "torch_bicubic", *_PILLOW_FILTERS)
