"""Convolutions as closed families of bilinear maps, so that a TPU never convolves a zero-stuffed grid.

A convolution ``S(y, w)``, its transpose in the input ``T(x, w)`` and its transpose in the weights ``W(y, x)`` are each
other's derivatives: differentiating any of the three, any number of times in reverse mode, gives only these three. With
one custom rule each, R1 and path length (gradients of gradients) therefore run on the lowerings chosen here instead of
the ones automatic differentiation would emit. This has two advantages:

* XLA computes a transposed stride-2 convolution on a zero-stuffed grid, four times the work. Here ``T`` is four exact
  convolutions of 4, 2, 2 and 1 taps on the low-resolution grid, interleaved.
* Weight gradients leave the convolution in float32 even when activations are bfloat16, so that the all-reduce over
  devices sums float32.

Weights are always given in the layout of ``S``: ``[3, 3, inputs of S, outputs of S]`` (HWIO; ``[inputs, outputs]`` for
a 1×1 convolution), in float32 or wider; they are cast to the activations' dtype inside. Reverse mode only (``jax.custom_vjp``).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from noisytwins_jax.models import winograd

Array = jax.Array
BilinearMap = Callable[[Array, Array], Array]

_NHWC = ("NHWC", "HWIO", "NHWC")
# The batch axis is what a weight gradient sums over: it takes the place of the input features.
_WEIGHT_GRADIENT = lax.ConvDimensionNumbers(lhs_spec=(3, 0, 1, 2), rhs_spec=(3, 0, 1, 2), out_spec=(2, 3, 0, 1))


def _bilinear_family(
    forward: BilinearMap, transpose: BilinearMap, weight_gradient: BilinearMap
) -> tuple[BilinearMap, BilinearMap, BilinearMap]:
    """Define the derivatives of S, T and W by each other."""
    s, t, w = jax.custom_vjp(forward), jax.custom_vjp(transpose), jax.custom_vjp(weight_gradient)
    s.defvjp(lambda y, k: (s(y, k), (y, k)), lambda r, g: (t(g, r[1]), w(r[0], g)))
    t.defvjp(lambda x, k: (t(x, k), (x, k)), lambda r, g: (s(g, r[1]), w(g, r[0])))
    w.defvjp(
        lambda y, x: (w(y, x), (y, x)),
        lambda r, g: (t(r[1], g).astype(r[0].dtype), s(r[0], g).astype(r[1].dtype)),
    )
    return s, t, w


def _conv(x: Array, w: Array, stride: int, padding: str | list[tuple[int, int]]) -> Array:
    return lax.conv_general_dilated(x, w.astype(x.dtype), (stride, stride), padding, dimension_numbers=_NHWC)


def _swap(w: Array) -> Array:
    """Swap input and output channels of an HWIO kernel."""
    return jnp.swapaxes(w, 2, 3)


def _at_least_float32(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _weight_gradient(y: Array, x: Array, dilation: int, padding: int) -> Array:
    return lax.conv_general_dilated(
        y,
        x.astype(y.dtype),
        (1, 1),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_WEIGHT_GRADIENT,
        preferred_element_type=_at_least_float32(y),
    )


def _padded(x: Array) -> Array:
    """Add a pixel of zeros on every side."""
    return jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])


def _neighbours(x: Array) -> Array:
    """Gather the 3×3 pixels around each, row by row, zeros beyond the border: ``[N, H, W, C] → [N, H, W, 9·C]``."""
    height, width = x.shape[1:3]
    padded = _padded(x)
    return jnp.concatenate([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=-1)


def _rows(w: Array) -> Array:
    """Reshape a kernel to a matrix for `_neighbours`: ``[3, 3, I, O] → [9·I, O]``."""
    return w.reshape(-1, w.shape[-1])


def _to_taps(gradient: Array) -> Array:
    """Reshape a gradient ``[I, 9·O]``, from `_neighbours` of the outputs, to a kernel ``[3, 3, I, O]`` with reversed taps."""
    taps = gradient.reshape(gradient.shape[0], 3, 3, -1)[:, ::-1, ::-1]
    return taps.transpose(1, 2, 0, 3)


def _strided(y: Array, w: Array) -> Array:
    return _conv(y, w, 2, "VALID")


def _transposed_in_phases(x: Array, w: Array) -> Array:
    """Compute ``out[2m + k] += x[m] w[k]`` for k = 0, 1, 2: even outputs have two taps an axis, odd ones a single tap."""
    k = _swap(w.astype(x.dtype))  # cast once, before slicing
    even, odd = slice(None, None, -2), slice(1, 2)  # taps (2, 0) meet x[m-1], x[m]; tap 1 meets x[m]
    two, one = (1, 1), (0, 0)
    ee = _conv(x, k[even, even], 1, [two, two])
    eo = _conv(x, k[even, odd], 1, [two, one])
    oe = _conv(x, k[odd, even], 1, [one, two])
    oo = _conv(x, k[odd, odd], 1, [one, one])
    # Interleaved as a sum of zero-stuffed phases: XLA fuses the sum into what reads the result.
    first, second = (0, 0, 1), (1, 1, 1)  # where a phase's values go along an axis, between zeros
    zero = jnp.zeros((), x.dtype)
    stuffed = (
        lax.pad(phase, zero, [(0, 0, 0), rows, columns, (0, 0, 0)])
        for phase, rows, columns in ((ee, first, first), (eo, first, second), (oe, second, first), (oo, second, second))
    )
    return functools.reduce(jnp.add, stuffed)


def _merging_vmap(convolve: BilinearMap) -> BilinearMap:
    """Return the function of activations and weights whose `vmap` over activations is itself, of a larger batch."""
    merging = jax.custom_batching.custom_vmap(convolve)

    @merging.def_vmap
    def batched(size: int, in_batched: list[bool], y: Array, w: Array) -> tuple[Array, bool]:
        if in_batched == [True, False]:
            merged = merging(y.reshape(-1, *y.shape[2:]), w)
            return merged.reshape(size, -1, *merged.shape[1:]), True
        return jax.vmap(convolve, [0 if batched else None for batched in in_batched])(y, w), True

    return merging


@_merging_vmap
def _fast(y: Array, w: Array) -> Array:
    if not winograd.suits(y.shape[:3], w.shape[2:], y.dtype):
        return _conv(y, w, 1, "SAME")
    return winograd.convolve(winograd.STRIDE_1, _padded(y), w.astype(y.dtype))


@_merging_vmap
def _fast_transposed(x: Array, w: Array) -> Array:
    if not winograd.suits(x.shape[:3], w.shape[2:], x.dtype):
        return _conv(x, _swap(w[::-1, ::-1]), 1, "SAME")
    return winograd.convolve_transposed(winograd.STRIDE_1, _padded(x), w.astype(x.dtype))


def _fast_weight_gradient(y: Array, x: Array) -> Array:
    if not winograd.suits(x.shape[:3], (y.shape[3], x.shape[3]), y.dtype):
        return _weight_gradient(y, x, dilation=1, padding=1)
    return winograd.weight_gradient(winograd.STRIDE_1, _padded(y), x.astype(y.dtype))


@_merging_vmap
def _fast_strided(y: Array, w: Array) -> Array:
    if not winograd.suits((y.shape[0], y.shape[1] // 2, y.shape[2] // 2), w.shape[2:], y.dtype):
        return _strided(y, w)
    return winograd.convolve(winograd.STRIDE_2, y, w.astype(y.dtype))


def _fast_strided_weight_gradient(y: Array, x: Array) -> Array:
    if not winograd.suits(x.shape[:3], (y.shape[3], x.shape[3]), y.dtype):
        return _weight_gradient(y, x, dilation=2, padding=0)
    return winograd.weight_gradient(winograd.STRIDE_2, y, x.astype(y.dtype))


conv1x1, _, _ = _bilinear_family(
    lambda y, w: _conv(y, w[None, None], 1, "VALID"),
    lambda x, w: _conv(x, _swap(w[None, None]), 1, "VALID"),
    lambda y, x: _weight_gradient(y, x, dilation=1, padding=0)[0, 0],
)
conv1x1.__doc__ = """Multiply every pixel by a matrix, as a convolution: ``[N, H, W, I] × [I, O] → [N, H, W, O]``.

The form for TPUs. The gradient of a matrix product sums over N, H and W in this order, for which XLA would lay out the
activations of the whole network differently from what its convolutions need, with copies in between.
"""

pixelwise_product, _, _ = _bilinear_family(
    lambda y, w: jnp.einsum("nhwi,io->nhwo", y, w.astype(y.dtype)),
    lambda x, w: jnp.einsum("nhwo,io->nhwi", x, w.astype(x.dtype)),
    # As matrices: for a sum over several axes XLA transposes y, together with the computation of y.
    lambda y, x: jnp.matmul(
        y.reshape(-1, y.shape[3]).T,
        x.reshape(-1, x.shape[3]).astype(y.dtype),
        preferred_element_type=_at_least_float32(y),
    ),
)
pixelwise_product.__doc__ = """Compute `conv1x1` as a matrix product: two to four times as fast on CPUs."""

conv3x3, _, _ = _bilinear_family(
    lambda y, w: _conv(y, w, 1, "SAME"),
    lambda x, w: _conv(x, _swap(w[::-1, ::-1]), 1, "SAME"),
    lambda y, x: _weight_gradient(y, x, dilation=1, padding=1),
)
conv3x3.__doc__ = """Correlate with zero padding: ``[N, H, W, I] × [3, 3, I, O] → [N, H, W, O]``."""

fast_conv3x3, _, _ = _bilinear_family(_fast, _fast_transposed, _fast_weight_gradient)
fast_conv3x3.__doc__ = """Compute `conv3x3` by minimal filtering where that is faster on CPUs; see `winograd`."""

conv3x3_to_few, _, _ = _bilinear_family(
    lambda y, w: _conv(y, w, 1, "SAME"),
    lambda x, w: _conv(_neighbours(x), _rows(_swap(w[::-1, ::-1]))[None, None], 1, "VALID"),
    lambda y, x: _to_taps(_weight_gradient(y, _neighbours(x), dilation=1, padding=0)[0, 0]),
)
conv3x3_to_few.__doc__ = """Compute `conv3x3` with few outputs; its gradients are 1×1 convolutions of nine shifted copies.

As convolutions from an image's three channels the gradients cost a TPU more than the rest of a block: 57 Mcycles of a step of
BigGAN-deep at 256 px.
"""

strided_conv3x3, transposed_conv3x3, _ = _bilinear_family(
    _strided, _transposed_in_phases, lambda y, x: _weight_gradient(y, x, dilation=2, padding=0)
)
strided_conv3x3.__doc__ = (
    """Correlate with stride 2 and no padding: ``[N, 2H+1, 2W+1, I] × [3, 3, I, O] → [N, H, W, O]``."""
)
transposed_conv3x3.__doc__ = (
    """Transpose `strided_conv3x3` in its input: ``[N, H, W, O] × [3, 3, I, O] → [N, 2H+1, 2W+1, I]``."""
)

fast_strided_conv3x3, fast_transposed_conv3x3, _ = _bilinear_family(
    _fast_strided, _transposed_in_phases, _fast_strided_weight_gradient
)
fast_strided_conv3x3.__doc__ = """Compute `strided_conv3x3` by minimal filtering where that is faster on CPUs."""
fast_transposed_conv3x3.__doc__ = """Compute `transposed_conv3x3`; derivatives as `fast_strided_conv3x3`."""
