"""Residual blocks of the generators of BigGAN and BigGAN-deep, with the attention that may follow."""

import flax.linen as nn
import jax

from noisytwins_jax.models.biggan.attention import SelfAttention
from noisytwins_jax.models.biggan.batch_norm import ConditionalBatchNorm
from noisytwins_jax.models.biggan.layers import Conv, upsample
from noisytwins_jax.models.fir import UpImpl

Array = jax.Array


class _Block(nn.Module):
    """Common base of the two kinds.

    Attributes:
      features: output channels.
      resample: whether the block doubles the resolution.
      attention: whether self-attention follows.
      sn_epsilon, up_impl: see `layers`.
      bn_epsilon, bn_decay, class_tables: see `batch_norm`.
    """

    features: int
    resample: bool
    attention: bool
    sn_epsilon: float | None
    up_impl: UpImpl
    bn_epsilon: float
    bn_decay: float
    class_tables: bool

    def normalize(self, name: str, x: Array, condition: tuple[Array, Array], train: bool, update_stats: bool) -> Array:
        """Apply conditional batch normalisation and ReLU."""
        norm = ConditionalBatchNorm(self.bn_epsilon, self.bn_decay, self.sn_epsilon, self.class_tables, name=name)
        return nn.relu(norm(x, *condition, train, update_stats))

    def convolve(self, name: str, x: Array, features: int, kernel: int, update_stats: bool) -> Array:
        """Apply a convolution with bias."""
        return Conv(features, kernel, self.sn_epsilon, up_impl=self.up_impl, name=name)(x, update_stats)

    def attend(self, x: Array, update_stats: bool) -> Array:
        """Apply self-attention, if any."""
        if not self.attention:
            return x
        return SelfAttention(self.sn_epsilon, self.up_impl, name="attention")(x, update_stats)


class GeneratorBlock(_Block):
    """Block of BigGAN: two 3×3 convolutions and a 1×1 shortcut."""

    @nn.compact
    def __call__(self, x: Array, condition: tuple[Array, Array], train: bool, update_stats: bool) -> Array:
        """Map ``[N, H, W, C]``, condition ``([N, E], [N, L])`` → ``[N, H', W', features]``."""
        h = self.normalize("bn1", x, condition, train, update_stats)
        h = self.convolve("conv1", upsample(h) if self.resample else h, self.features, 3, update_stats)
        h = self.normalize("bn2", h, condition, train, update_stats)
        h = self.convolve("conv2", h, self.features, 3, update_stats)
        if self.resample or x.shape[-1] != self.features:
            x = self.convolve("conv_sc", x, self.features, 1, update_stats)
        # The published code upsamples before its 1×1 convolution: the same result at four times the cost.
        x = upsample(x) if self.resample else x
        return self.attend(h + x, update_stats)


class DeepGeneratorBlock(_Block):
    """Block of BigGAN-deep: a bottleneck with a quarter of the channels; the shortcut drops channels."""

    @nn.compact
    def __call__(self, x: Array, condition: tuple[Array, Array], train: bool, update_stats: bool) -> Array:
        """Map ``[N, H, W, C]``, condition ``([N, E], [N, L])`` → ``[N, H', W', features]``; features at most C."""
        hidden = x.shape[-1] // 4
        h = self.normalize("bn1", x, condition, train, update_stats)
        h = self.convolve("conv1", h, hidden, 1, update_stats)
        h = self.normalize("bn2", h, condition, train, update_stats)
        h = self.convolve("conv2", upsample(h) if self.resample else h, hidden, 3, update_stats)
        h = self.normalize("bn3", h, condition, train, update_stats)
        h = self.convolve("conv3", h, hidden, 3, update_stats)
        h = self.normalize("bn4", h, condition, train, update_stats)
        h = self.convolve("conv4", h, self.features, 1, update_stats)
        x = x[..., : self.features]
        return self.attend(h + (upsample(x) if self.resample else x), update_stats)
