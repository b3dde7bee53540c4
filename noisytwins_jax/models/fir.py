"""StyleGAN2's [1, 3, 3, 1] resampling filter, alone and around 3×3 convolutions.

All functions take and return NHWC; boundaries are zero. Around a transposed or strided convolution (`bilinear_conv`) they
exist in two forms (`up_impl`), equal up to rounding:

* ``"conv"``: the separable filter as depthwise convolutions and direct convolutions, the fastest on accelerators.
* ``"shift"``: the filter as sums of shifted activations and convolutions by minimal filtering (`winograd`), the fastest on
  CPUs, whose depthwise and strided convolutions are slow.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (CVPR 2020), appendix B.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from noisytwins_jax.models.bilinear_conv import (
    fast_strided_conv3x3,
    fast_transposed_conv3x3,
    strided_conv3x3,
    transposed_conv3x3,
)

Array = jax.Array
UpImpl = Literal["conv", "shift"]


def resolve_up_impl(up_impl: str, platform: str | None = None) -> UpImpl:
    """Return the form that ``config.up_impl`` names; ``"auto"`` is the fastest one on a platform.

    `platform` is as ``jax.default_backend()`` names it, which is the default.
    """
    if up_impl != "auto":
        return up_impl
    return "shift" if (platform or jax.default_backend()) == "cpu" else "conv"


FILTER = np.array([1.0, 3.0, 3.0, 1.0]) / 8.0  # sums to one; upsampling doubles it per axis


def upsample2d(x: Array) -> Array:
    """Double height and width: ``[N, H, W, C] → [N, 2H, 2W, C]``."""
    for axis in (1, 2):
        before, after = _shifted(x, axis)
        phases = [0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after]
        shape = list(x.shape)
        shape[axis] *= 2
        x = jnp.stack(phases, axis=axis + 1).reshape(shape)
    return x


def downsample2d(x: Array, impl: UpImpl = "shift") -> Array:
    """Halve height and width: ``[N, 2H, 2W, C] → [N, H, W, C]``.

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
    """Apply a transposed 3×3 convolution and the filter: ``[N, H, W, I] × [3, 3, I, O] → [N, 2H, 2W, O]``.

    The kernel acts as a true convolution (flipped), as in the published networks.
    """
    transposed = transposed_conv3x3 if impl == "conv" else fast_transposed_conv3x3
    return _filter(transposed(x, jnp.swapaxes(w, 2, 3)), 1, 2.0, impl, columns_first=False)


def downsampling_conv3x3(x: Array, w: Array, impl: UpImpl) -> Array:
    """Apply the filter and a stride-2 3×3 correlation: ``[N, 2H, 2W, I] × [3, 3, I, O] → [N, H, W, O]``."""
    strided = strided_conv3x3 if impl == "conv" else fast_strided_conv3x3
    return strided(_filter(x, 2, 1.0, impl, columns_first=True), w)


def _shifted(x: Array, axis: int) -> tuple[Array, Array]:
    """Return the neighbours ``x[i-1]`` and ``x[i+1]`` along `axis`, zero beyond the border."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (1, 1)
    padded, size = jnp.pad(x, pad), x.shape[axis]
    return lax.slice_in_dim(padded, 0, size, axis=axis), lax.slice_in_dim(padded, 2, size + 2, axis=axis)


def _filter(x: Array, padding: int, gain: float, impl: UpImpl, columns_first: bool) -> Array:
    """Apply the filter along both axes, each of which changes by ``2·padding - 3`` pixels.

    Depthwise with rows first beside a transposed convolution, columns first before a strided one, whose transpose is rows
    first again: the TPU compiler then fuses the passes with each other and with what surrounds them.
    """
    if impl == "shift":
        return _shifted_sums(x, padding, gain)
    taps = jnp.asarray(gain * FILTER, x.dtype)
    rows, columns = (taps[:, None], [(padding, padding), (0, 0)]), (taps[None, :], [(0, 0), (padding, padding)])
    for kernel, pad in (columns, rows) if columns_first else (rows, columns):
        x = _depthwise(x, kernel, pad)
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _shifted_sums(x: Array, padding: int, gain: float) -> Array:
    """Apply the filter as sums of slices. Its gradient is defined below, as differentiated slices would become pads."""
    outer, inner = (float(gain * tap) for tap in FILTER[:2])
    for axis in (1, 2):
        size = x.shape[axis] + 2 * padding - 3
        pads = [(padding, padding) if i == axis else (0, 0) for i in range(x.ndim)]
        padded = lax.optimization_barrier(jnp.pad(x, pads))  # or each pass is computed again for every tap of the next
        first, second, third, fourth = (lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(4))
        x = outer * (first + fourth) + inner * (second + third)
    return x


_shifted_sums.defvjp(
    lambda x, padding, gain: (_shifted_sums(x, padding, gain), None),
    lambda padding, gain, _, g: (_shifted_sums(g, 3 - padding, gain),),
)


def _depthwise(x: Array, taps: Array, padding: list[tuple[int, int]], stride: int = 1) -> Array:
    """Correlate every channel with the same `taps`, ``[height, width]``."""
    channels = x.shape[3]
    return lax.conv_general_dilated(
        x,
        jnp.broadcast_to(taps[:, :, None, None], (*taps.shape, 1, channels)),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )
