"""Residual blocks of the discriminators of BigGAN and BigGAN-deep, with the attention that may follow."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.models.biggan.attention import SelfAttention
from noisytwins_jax.models.biggan.layers import Conv, downsample
from noisytwins_jax.models.fir import UpImpl

Array = jax.Array


class _Block(nn.Module):
    """Common base of the two kinds.

    Attributes:
      features: output channels.
      resample: whether the block halves the resolution.
      attention: whether self-attention follows.
      sn_epsilon, up_impl: see `layers`.
    """

    features: int
    resample: bool
    attention: bool
    sn_epsilon: float | None
    up_impl: UpImpl

    def convolve(self, name: str, x: Array, features: int, kernel: int, update_stats: bool) -> Array:
        """Apply a convolution with bias."""
        return Conv(features, kernel, self.sn_epsilon, up_impl=self.up_impl, name=name)(x, update_stats)

    def shrink(self, x: Array) -> Array:
        """Halve the resolution if the block does."""
        return downsample(x) if self.resample else x

    def attend(self, x: Array, update_stats: bool) -> Array:
        """Apply self-attention, if any."""
        if not self.attention:
            return x
        return SelfAttention(self.sn_epsilon, self.up_impl, name="attention")(x, update_stats)


class DiscriminatorBlock(_Block):
    """Block of BigGAN: two 3×3 convolutions, and a 1×1 shortcut unless neither channels nor resolution change.

    Attributes:
      is_first: whether the input is the image, which takes no ReLU.
    """

    is_first: bool

    @nn.compact
    def __call__(self, x: Array, update_stats: bool) -> Array:
        """Map ``[N, H, W, C] → [N, H', W', features]``."""
        h = self.convolve("conv1", x if self.is_first else nn.relu(x), self.features, 3, update_stats)
        h = self.convolve("conv2", nn.relu(h), self.features, 3, update_stats)
        # Only the published first block pools before its 1×1 convolution; the order only affects the cost.
        if self.resample or x.shape[-1] != self.features:
            x = self.convolve("conv_sc", self.shrink(x), self.features, 1, update_stats)
        return self.attend(self.shrink(h) + x, update_stats)


class DeepDiscriminatorBlock(_Block):
    """Block of BigGAN-deep: a bottleneck with a quarter of the channels; the shortcut adds channels."""

    @nn.compact
    def __call__(self, x: Array, update_stats: bool) -> Array:
        """Map ``[N, H, W, C] → [N, H', W', features]``; features at least C."""
        hidden = self.features // 4
        h = self.convolve("conv1", nn.relu(x), hidden, 1, update_stats)
        h = self.convolve("conv2", nn.relu(h), hidden, 3, update_stats)
        h = self.convolve("conv3", nn.relu(h), hidden, 3, update_stats)
        h = self.convolve("conv4", self.shrink(nn.relu(h)), self.features, 1, update_stats)
        x, added = self.shrink(x), self.features - x.shape[-1]
        if added:
            x = jnp.concatenate([x, self.convolve("conv_sc", x, added, 1, update_stats)], axis=-1)
        return self.attend(h + x, update_stats)
