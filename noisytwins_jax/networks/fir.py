"""StyleGAN2's [1, 3, 3, 1] resampling filter, alone and around 3×3 convolutions.

All functions take and return NHWC; boundaries are zero. A convolution that resamples exists in two exact forms
(`up_impl`), equal up to rounding:

* ``"conv"``: the transposed or strided convolution (`bilinear_conv`), with the separable filter beside it as a depthwise
  convolution. Fewest operations; the fastest on TPUs.
* ``"phase"``: the filter folded into the weights, and the four output (or input) phases computed by one plain 3×3
  convolution on the low-resolution grid. Four times the multiplications and no depthwise pass; the fastest on CPUs,
  whose depthwise convolutions are slow. Folding asks for full precision, which accelerators do not give by default.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (CVPR 2020), appendix B.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from noisytwins_jax.networks.bilinear_conv import conv3x3, strided_conv3x3, transposed_conv3x3

Array = jax.Array
UpImpl = Literal["conv", "phase"]

FILTER = np.array([1.0, 3.0, 3.0, 1.0]) / 8.0  # sums to one; upsampling doubles it per axis


def upsample2d(x: Array) -> Array:
    """Doubles height and width: ``[N, H, W, C] → [N, 2H, 2W, C]``."""
    for axis in (1, 2):
        before, after = _shifted(x, axis)
        phases = [0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after]
        shape = list(x.shape)
        shape[axis] *= 2
        x = jnp.stack(phases, axis=axis + 1).reshape(shape)
    return x


def downsample2d(x: Array, impl: UpImpl = "phase") -> Array:
    """Halves height and width: ``[N, 2H, 2W, C] → [N, H, W, C]``.

    With ``"conv"`` one depthwise 4×4 convolution: for activations on TPUs. Images have too few channels to gain by it.
    """
    if impl == "conv":
        taps = jnp.asarray(np.outer(FILTER, FILTER), x.dtype)
        return _depthwise(x, taps, [(1, 1), (1, 1)], stride=2)
    for axis in (1, 2):
        shape = list(x.shape)
        shape[axis : axis + 1] = [shape[axis] // 2, 2]
        even, odd = (jnp.take(x.reshape(shape), i, axis=axis + 1) for i in (0, 1))
        x = 0.125 * _shifted(odd, axis)[0] + 0.375 * (even + odd) + 0.125 * _shifted(even, axis)[1]
    return x


def upsampling_conv3x3(x: Array, w: Array, impl: UpImpl) -> Array:
    """Transposed 3×3 convolution and filter: ``[N, H, W, I] × [3, 3, I, O] → [N, 2H, 2W, O]``.

    The kernel acts as a true convolution (flipped), as in the published networks.
    """
    if impl == "conv":
        return _filter(transposed_conv3x3(x, jnp.swapaxes(w, 2, 3)), padding=1, gain=2.0, columns_first=False)
    n, height, width, _ = x.shape
    taps = _folded_taps(lambda tap, phase, k: 2 * tap - phase + k - 1, gain=2.0)
    kernel = jnp.einsum("pak,qbl,klio->abipqo", taps, taps, w, precision="highest").reshape(3, 3, w.shape[2], -1)
    phases = conv3x3(x, kernel).reshape(n, height, width, 2, 2, w.shape[3])
    return phases.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * height, 2 * width, w.shape[3])


def downsampling_conv3x3(x: Array, w: Array, impl: UpImpl) -> Array:
    """Filter and stride-2 3×3 correlation: ``[N, 2H, 2W, I] × [3, 3, I, O] → [N, H, W, O]``."""
    if impl == "conv":
        return strided_conv3x3(_filter(x, padding=2, gain=1.0, columns_first=True), w)
    n, height, width, channels = x.shape
    taps = _folded_taps(lambda tap, phase, k: 2 * tap + phase - k, gain=1.0)
    kernel = jnp.einsum("pak,qbl,klio->abpqio", taps, taps, w, precision="highest").reshape(
        3, 3, 4 * channels, w.shape[3]
    )
    phases = x.reshape(n, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return conv3x3(phases.reshape(n, height // 2, width // 2, 4 * channels), kernel)


def _shifted(x: Array, axis: int) -> tuple[Array, Array]:
    """The neighbours ``x[i-1]`` and ``x[i+1]`` along `axis`, zero beyond the border."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (1, 1)
    padded, size = jnp.pad(x, pad), x.shape[axis]
    return lax.slice_in_dim(padded, 0, size, axis=axis), lax.slice_in_dim(padded, 2, size + 2, axis=axis)


def _filter(x: Array, padding: int, gain: float, columns_first: bool) -> Array:
    """The filter as two depthwise convolutions; each axis changes by ``2·padding - 3`` pixels.

    Rows first beside a transposed convolution, columns first before a strided one, whose transpose is rows first again:
    the TPU compiler then fuses the passes with each other and with what surrounds them.
    """
    taps = jnp.asarray(gain * FILTER, x.dtype)
    rows, columns = (taps[:, None], [(padding, padding), (0, 0)]), (taps[None, :], [(0, 0), (padding, padding)])
    for kernel, pad in (columns, rows) if columns_first else (rows, columns):
        x = _depthwise(x, kernel, pad)
    return x


def _depthwise(x: Array, taps: Array, padding: list[tuple[int, int]], stride: int = 1) -> Array:
    """Correlates every channel with the same `taps`, ``[height, width]``."""
    channels = x.shape[3]
    return lax.conv_general_dilated(
        x,
        jnp.broadcast_to(taps[:, :, None, None], (*taps.shape, 1, channels)),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


def _folded_taps(position, gain: float) -> np.ndarray:
    """``[phase, tap, k]``: the weight with which kernel row k reaches low-resolution neighbour `tap` in each phase."""
    taps = np.zeros((2, 3, 3))
    for phase, tap, k in np.ndindex(2, 3, 3):
        j = position(tap, phase, k)
        if 0 <= j < 4:
            taps[phase, tap, k] = gain * FILTER[j]
    return taps
