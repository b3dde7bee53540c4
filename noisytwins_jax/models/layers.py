"""Layers of StyleGAN2: equalised learning rates, modulated convolutions, minibatch standard deviation.

Parameters are stored raw, as in the published checkpoints: run-time gains (equalised learning rate) are applied at every
call and never folded in. Parameters are float32; `dtype` is the dtype activations are computed in.

Source: Karras et al., CVPR 2020 (StyleGAN2), and "Training Generative Adversarial Networks with Limited Data",
NeurIPS 2020 (StyleGAN2-ADA).
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.models import fir
from noisytwins_jax.models.bilinear_conv import conv1x1, conv3x3, fast_conv3x3, pixelwise_product
from noisytwins_jax.models.rows import Rows, normal

Array = jax.Array
Activation = Literal["linear", "lrelu"]

# Small products that stay float32: by default a TPU multiplies float32 matrices in bfloat16.
FULL_PRECISION = jax.lax.Precision.HIGHEST

_normal = nn.initializers.normal(1.0)


def normalize_2nd_moment(x: Array) -> Array:
    """Scale each row to unit mean square: ``x · rsqrt(mean(x²) + 1e-8)`` over the last axis."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-8)


def bias_activation(
    x: Array, bias: Array | None, activation: Activation, gain: float = 1.0, clamp: float | None = None
) -> Array:
    """Add the bias, apply the nonlinearity (slope 0.2, gain √2 for ``"lrelu"``) and `gain`, clamp to ±`clamp`·`gain`."""
    if bias is not None:
        x = (x + bias).astype(x.dtype)  # added in float32, so that the bias's gradient is summed in float32
    if activation == "lrelu":
        x, gain_total = nn.leaky_relu(x, 0.2), gain * math.sqrt(2.0)
    else:
        gain_total = gain
    if gain_total != 1.0:
        x = x * jnp.asarray(gain_total, x.dtype)
    if clamp is not None:
        x = jnp.clip(x, -clamp * gain, clamp * gain)
    return x


def minibatch_stddev(x: Array, group_size: int) -> Array:
    """Append one channel: the standard deviation within groups of samples, averaged over features and pixels.

    Groups are contiguous rows, ``min(group_size, N)`` each, so that no group spans two devices when every device's share
    of the batch is a multiple of the group. (The published code strides its groups: the same operation up to a
    permutation of the batch.)

    Args:
      x: activations ``[N, H, W, C]``; N a multiple of the group size.
      group_size: samples in a group.

    Returns:
      ``[N, H, W, C + 1]``.
    """
    n, height, width, channels = x.shape
    group = min(group_size, n)
    groups = x.reshape(n // group, group, height, width, channels).astype(jnp.promote_types(x.dtype, jnp.float32))
    deviation = jnp.sqrt(jnp.var(groups, axis=1) + 1e-8).mean(axis=(1, 2, 3))
    channel = jnp.broadcast_to(deviation[:, None, None, None, None], (n // group, group, height, width, 1))
    return jnp.concatenate([x, channel.reshape(n, height, width, 1).astype(x.dtype)], axis=-1)


@jax.custom_vjp
def prevent_fusion(x: Array) -> Array:
    """Return x, which the compiler does not fuse into its consumers unless the program is differentiated.

    The TPU compiler otherwise computes a filter again for every tile of the convolution that follows. Under
    differentiation activations are stored anyway, and this has no effect.
    """
    return jax.lax.optimization_barrier(x)


prevent_fusion.defvjp(lambda x: (x, None), lambda _, g: (g,))


class FullyConnected(nn.Module):
    """Dense layer with equalised learning rate: ``activation(x · (weight·lr_multiplier/√in) + bias·lr_multiplier)``.

    `weight` ``[in, features]`` starts as N(0, 1)/lr_multiplier, `bias` as `bias_init`.
    """

    features: int
    activation: Activation = "linear"
    lr_multiplier: float = 1.0
    bias_init: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map ``[N, in] → [N, features]``."""
        fan_in = x.shape[-1]
        weight = self.param("weight", nn.initializers.normal(1.0 / self.lr_multiplier), (fan_in, self.features))
        bias = self.param("bias", nn.initializers.constant(self.bias_init), (self.features,))
        weight = (weight * (self.lr_multiplier / math.sqrt(fan_in))).astype(x.dtype)
        y = jnp.matmul(x, weight, precision=FULL_PRECISION)
        return bias_activation(y, bias * self.lr_multiplier, self.activation)


class Conv2d(nn.Module):
    """3×3 or 1×1 convolution with equalised learning rate (gain 1/√(in·k²)), optionally resampling by two.

    Attributes:
      features: output channels.
      kernel: 1 or 3.
      resample: ``None``, ``"up"`` (doubles) or ``"down"`` (halves).
      activation, gain, clamp: see `bias_activation`.
      use_bias: whether there is a bias.
      up_impl: see `fir`.
    """

    features: int
    kernel: int
    resample: Literal["up", "down"] | None = None
    activation: Activation = "linear"
    gain: float = 1.0
    clamp: float | None = None
    use_bias: bool = True
    up_impl: fir.UpImpl = "conv"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map ``[N, H, W, C] → [N, H', W', features]``."""
        fan_in = x.shape[-1] * self.kernel**2
        weight = self.param("weight", _normal, (self.kernel, self.kernel, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        y = _convolve(x, weight / math.sqrt(fan_in), self.resample, self.up_impl)
        return bias_activation(y, bias, self.activation, self.gain, self.clamp)


class ModulatedConv(nn.Module):
    """Style-modulated 3×3 convolution of the generator, with noise, bias and leaky ReLU.

    Computed as scale → one convolution shared by the batch → demodulate, which equals per-sample kernels exactly:
    ``y = d · conv(s·x, W)`` with ``d = rsqrt(Σ (W·s)² + 1e-8)``.

    Attributes:
      features: output channels.
      resolution: height and width of the output (the size of the fixed noise image).
      upsample: whether to double the resolution.
      gain, clamp, up_impl: as in `Conv2d`.
    """

    features: int
    resolution: int
    upsample: bool = False
    gain: float = 1.0
    clamp: float | None = None
    up_impl: fir.UpImpl = "conv"

    @nn.compact
    def __call__(self, x: Array, w: Array, noise_mode: str, rows: Rows | None = None) -> Array:
        """Map activations ``[N, H, W, C]`` and latents ``[N, w_dim]`` → ``[N, resolution, resolution, features]``.

        `noise_mode` is ``"random"`` (from the ``"noise"`` PRNG stream; of `rows` if given), ``"const"`` (a fixed image) or
        ``"none"``.
        """
        style = FullyConnected(x.shape[-1], bias_init=1.0, name="affine")(w)
        weight = self.param("weight", _normal, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        strength = self.param("noise_strength", nn.initializers.zeros, ())
        shape = (self.resolution, self.resolution, 1)
        fixed_noise = self.variable("buffers", "noise_const", lambda: _normal(self.make_rng("params"), shape))

        # One sum is fast on TPUs, tap by tap is fast on CPUs.
        squares = jnp.square(weight)
        squares = squares.sum(axis=(0, 1)) if self.up_impl == "conv" else sum(squares.reshape(9, *weight.shape[2:]))
        power = jnp.matmul(jnp.square(style), squares, precision=FULL_PRECISION)
        demodulation = jax.lax.rsqrt(power + 1e-8)
        y = prevent_fusion(x) * style[:, None, None, :].astype(x.dtype)
        y = _convolve(y, weight, "up" if self.upsample else None, self.up_impl)
        y = y * demodulation[:, None, None, :].astype(x.dtype)
        if noise_mode == "random":
            noise = normal(self.make_rng("noise"), x.shape[0], shape, strength.dtype, rows)
            y = y + (noise * strength).astype(x.dtype)
        elif noise_mode == "const":
            y = y + (fixed_noise.value * strength).astype(x.dtype)
        elif noise_mode != "none":
            raise ValueError(f"noise_mode is 'random', 'const' or 'none', not {noise_mode!r}.")
        return bias_activation(y, bias, "lrelu", self.gain, self.clamp)


class ToRGB(nn.Module):
    """Modulated 1×1 convolution to image channels, without demodulation or noise; the result is float32."""

    channels: int
    clamp: float | None = None
    up_impl: fir.UpImpl = "conv"

    @nn.compact
    def __call__(self, x: Array, w: Array) -> Array:
        """Map ``[N, H, W, C]`` and ``[N, w_dim]`` → ``[N, H, W, channels]``."""
        fan_in = x.shape[-1]
        style = FullyConnected(fan_in, bias_init=1.0, name="affine")(w) / math.sqrt(fan_in)
        weight = self.param("weight", _normal, (1, 1, fan_in, self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        y = _convolve(x * style[:, None, None, :].astype(x.dtype), weight, None, self.up_impl)
        return bias_activation(y.astype(weight.dtype), bias, "linear", clamp=self.clamp)


def _convolve(x: Array, weight: Array, resample: str | None, up_impl: fir.UpImpl) -> Array:
    if weight.shape[0] == 1:
        if resample == "down":
            x = fir.downsample2d(x, up_impl)
        y = (conv1x1 if up_impl == "conv" else pixelwise_product)(x, weight[0, 0])
        return fir.upsample2d(y) if resample == "up" else y
    if resample == "up":
        return fir.upsampling_conv3x3(x, weight, up_impl)
    if resample == "down":
        return fir.downsampling_conv3x3(x, weight, up_impl)
    return (conv3x3 if up_impl == "conv" else fast_conv3x3)(x, weight)
