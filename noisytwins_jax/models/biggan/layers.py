"""Dense layers, convolutions and class embeddings with spectral normalisation; upsampling and downsampling.

Weights start orthogonal (outputs by all inputs, gain 1), biases at zero. They are float32; convolutions compute in their
input's dtype, everything else in float32 at full precision. `sn_epsilon` is ``None`` for no normalisation.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.models.biggan.spectral_norm import normalize_weight
from noisytwins_jax.models.bilinear_conv import conv1x1, conv3x3, conv3x3_to_few, fast_conv3x3, pixelwise_product
from noisytwins_jax.models.fir import UpImpl
from noisytwins_jax.models.layers import FULL_PRECISION

Array = jax.Array
_orthogonal = nn.initializers.orthogonal()
_FEW_OUTPUTS = 4  # of an image, whose gradients have a form of their own


class Dense(nn.Module):
    """Dense layer ``x · weight (+ bias)``."""

    features: int
    sn_epsilon: float | None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array, update_stats: bool) -> Array:
        """Map ``[N, in] → [N, features]``."""
        weight = self.param("weight", _orthogonal, (x.shape[-1], self.features))
        weight = normalize_weight(self, weight, self.sn_epsilon, update_stats)
        y = jnp.matmul(x, weight, precision=FULL_PRECISION)
        return y + self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else y


class Conv(nn.Module):
    """Convolution of 1×1 or 3×3 pixels with zero padding; computes the first `used_features` only, if given.

    `up_impl` is ``"conv"``, the form for accelerators, or ``"shift"``, the form for CPUs.
    """

    features: int
    kernel: int
    sn_epsilon: float | None
    use_bias: bool = True
    used_features: int | None = None
    up_impl: UpImpl = "conv"

    @nn.compact
    def __call__(self, x: Array, update_stats: bool) -> Array:
        """Map ``[N, H, W, in] → [N, H, W, used_features or features]``."""
        weight = self.param("weight", _orthogonal, (self.kernel, self.kernel, x.shape[-1], self.features))
        weight = normalize_weight(self, weight, self.sn_epsilon, update_stats)[..., : self.used_features]
        on_cpu = self.up_impl == "shift"
        if self.kernel == 1:
            y = (pixelwise_product if on_cpu else conv1x1)(x, weight[0, 0])
        elif weight.shape[-1] <= _FEW_OUTPUTS:
            y = conv3x3_to_few(x, weight)
        else:
            y = (fast_conv3x3 if on_cpu else conv3x3)(x, weight)
        if self.use_bias:
            # Added in float32, so that the bias's gradient is summed in float32.
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = (y + bias[: self.used_features]).astype(x.dtype)
        return y


class Embedding(nn.Module):
    """Class embedding ``weight`` ``[num_classes, features]``."""

    num_classes: int
    features: int
    sn_epsilon: float | None = None

    @nn.compact
    def __call__(self, labels: Array, update_stats: bool = False) -> Array:
        """Map labels ``[N]``, or weights of the classes ``[N, num_classes]`` → ``[N, features]``."""
        weight = self.param("weight", _orthogonal, (self.num_classes, self.features))
        weight = normalize_weight(self, weight, self.sn_epsilon, update_stats, outputs_first=True)
        if labels.ndim == 1:
            return jnp.take(weight, labels, axis=0)
        return jnp.matmul(labels, weight, precision=FULL_PRECISION)


def upsample(x: Array) -> Array:
    """Double the resolution by nearest neighbours: ``[N, H, W, C] → [N, 2H, 2W, C]``."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


def downsample(x: Array) -> Array:
    """Halve the resolution by means of 2×2 pixels: ``[N, H, W, C] → [N, H/2, W/2, C]``."""
    return nn.avg_pool(x, (2, 2), strides=(2, 2))


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype of batch statistics, softmax and heads for activations of `dtype`."""
    return jnp.promote_types(dtype, jnp.float32)
