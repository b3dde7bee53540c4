"""Linear maps without bias, grouped convolutions and the residual block of both networks.

Weights start as ``N(0, (gain / √fan_in)²)`` with fan_in the inputs of one output, and no gain is applied at run time.
Convolutions compute in their input's dtype, everything else in float32 at full precision.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from noisytwins_jax.models.bilinear_conv import conv1x1, fast_conv3x3, pixelwise_product
from noisytwins_jax.models.fir import UpImpl
from noisytwins_jax.models.layers import FULL_PRECISION

Array = jax.Array
_MATRIX_UNIT = 128  # rows and columns, of TPUs up to v5p; wider groups gain nothing on v6e either


class Linear(nn.Module):
    """Linear map ``x · weight``."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map ``[N, in] → [N, features]``."""
        weight = self.param("weight", _normal(1.0, x.shape[-1]), (x.shape[-1], self.features))
        return jnp.matmul(x, weight, precision=FULL_PRECISION)


class Embedding(nn.Module):
    """Class embedding ``weight`` ``[num_classes, features]``, a linear map of the one-hot label."""

    num_classes: int
    features: int
    gain: float = 1.0

    @nn.compact
    def __call__(self, labels: Array) -> Array:
        """Map labels ``[N]`` → ``[N, features]``."""
        weight = self.param("weight", _normal(self.gain, self.num_classes), (self.num_classes, self.features))
        return jnp.take(weight, labels, axis=0)


class Conv(nn.Module):
    """Convolution of 1×1 or 3×3 pixels with zero padding; of 3×3 pixels in `groups` groups of channels.

    `up_impl` is ``"conv"``, the form for accelerators, or ``"shift"``, the form for CPUs.
    """

    features: int
    kernel: int
    groups: int = 1
    gain: float = 1.0
    up_impl: UpImpl = "conv"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map ``[N, H, W, in] → [N, H, W, features]``."""
        inputs = x.shape[-1] // self.groups
        shape = (self.kernel, self.kernel, inputs, self.features)
        weight = self.param("weight", _normal(self.gain, inputs * self.kernel**2), shape)
        if self.kernel == 1:
            return (conv1x1 if self.up_impl == "conv" else pixelwise_product)(x, weight[0, 0])
        return grouped_conv3x3(x, weight, self.groups, self.up_impl)


class ResidualBlock(nn.Module):
    """Block ``x + conv3(φ(conv2(φ(conv1(x)))))`` with φ the leaky ReLU of slope 0.2 of its input plus a bias per channel.

    Of the C channels `conv1` (1×1) makes 2C, `conv2` (3×3) is grouped, and `conv3` (1×1), which starts at zero, returns to
    C: at first the block is the identity.

    Attributes:
      cardinality: groups of `conv2`.
      gain: of the initial weights of `conv1` and `conv2`, see `block_gain`.
      up_impl: see `Conv`.
    """

    cardinality: int
    gain: float
    up_impl: UpImpl = "conv"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map ``[N, H, W, C] → [N, H, W, C]``."""

        def activate(y: Array, name: str) -> Array:
            bias = self.param(name, nn.initializers.zeros, (y.shape[-1],))
            # Added in float32, so that the bias's gradient is summed in float32.
            return nn.leaky_relu((y + bias).astype(y.dtype), 0.2)

        channels = x.shape[-1]
        y = Conv(2 * channels, 1, gain=self.gain, up_impl=self.up_impl, name="conv1")(x)
        y = activate(y, "bias1")
        y = Conv(2 * channels, 3, self.cardinality, self.gain, self.up_impl, name="conv2")(y)
        y = activate(y, "bias2")
        return x + Conv(channels, 1, gain=0.0, up_impl=self.up_impl, name="conv3")(y)


def grouped_conv3x3(x: Array, weight: Array, groups: int, up_impl: UpImpl = "conv") -> Array:
    """Correlate every group of channels with its kernel, with zero padding.

    Groups of few channels leave most of a matrix unit idle, so TPUs convolve several together, up to its 128 channels, by a
    kernel with zeros between them: R3GAN's blocks, with groups of 16, take little more than half the cycles. The form
    ``"shift"`` convolves all groups together: on CPUs a grouped convolution's weight gradient takes ten times as long.

    Args:
      x: ``[N, H, W, I]``.
      weight: ``[3, 3, I/groups, O]``; outputs are ordered by group.
      groups: number of groups.
      up_impl: see `Conv`.

    Returns:
      ``[N, H, W, O]``.
    """
    if up_impl == "shift":
        return fast_conv3x3(x, merge_groups(weight, groups, groups))

    def convolve(x: Array, weight: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            weight.astype(x.dtype),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1] // weight.shape[2],
        )

    together = max(
        n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * weight.shape[2] <= _MATRIX_UNIT)
    )
    if together == 1:
        return convolve(x, weight)
    return lax.platform_dependent(
        x, weight, tpu=lambda x, weight: convolve(x, merge_groups(weight, groups, together)), default=convolve
    )


def merge_groups(weight: Array, groups: int, together: int) -> Array:
    """Return the kernel of the same convolution with `together` groups in one, and zeros between them.

    ``[3, 3, I/groups, O] → [3, 3, together · I/groups, O]``; `together` divides `groups`.
    """
    height, width, inputs, outputs = weight.shape
    by_group = weight.reshape(height, width, 1, inputs, groups // together, together, outputs // groups)
    same_group = jnp.eye(together, dtype=bool)[:, None, None, :, None]  # group of the input, group of the output
    return jnp.where(same_group, by_group, 0.0).reshape(height, width, together * inputs, outputs)


def _normal(gain: float, fan_in: int) -> nn.initializers.Initializer:
    return nn.initializers.normal(gain / math.sqrt(fan_in))
