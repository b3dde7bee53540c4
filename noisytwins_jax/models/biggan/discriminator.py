"""The discriminator of BigGAN and BigGAN-deep: blocks, sum over pixels, projection on the class (and the instance)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.models.biggan.architectures import check_width, discriminator_blocks, discriminator_stem
from noisytwins_jax.models.biggan.discriminator_blocks import DeepDiscriminatorBlock, DiscriminatorBlock
from noisytwins_jax.models.biggan.layers import Conv, Dense, Embedding, at_least_float32
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.models.fir import UpImpl

Array = jax.Array


class Discriminator(nn.Module, kw_only=True):
    """Projection discriminator of BigGAN and BigGAN-deep: the logit is ``linear(h) + ⟨embed(label), h⟩``.

    With instances, ``⟨instance(features), h⟩`` is added: the same projection on a linear map of their features.

    Attributes:
      resolution, channels, num_classes, width, deep, attention, sn_epsilon, up_impl, dtype, remat: as in `Generator`.
      spectral_norm: whether weights are normalised, the class embedding among them.
      instances: whether the discriminator is conditioned on the features of an instance.
      dropout: probability of dropping an entry of h in training (PRNG stream ``"dropout"``).
    """

    resolution: int
    channels: int = 3
    num_classes: int
    width: int = 96
    deep: bool = False
    attention: bool | tuple[int, ...] = True
    sn_epsilon: float = 1e-4
    spectral_norm: bool = True
    up_impl: UpImpl = "conv"
    instances: bool = False
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        """Build the layers."""
        check_width(self.width, self.deep)
        sn_epsilon = self.sn_epsilon if self.spectral_norm else None
        table = discriminator_blocks(self.resolution, self.deep, self.attention)
        blocks = [
            {
                "features": block.out_channels * self.width,
                "resample": block.resample,
                "attention": block.attention,
                "sn_epsilon": sn_epsilon,
                "up_impl": self.up_impl,
            }
            for block in table
        ]
        if self.deep:
            self.input_conv = Conv(
                discriminator_stem(self.resolution) * self.width, 3, sn_epsilon, up_impl=self.up_impl
            )
        else:
            blocks = [options | {"is_first": i == 0} for i, options in enumerate(blocks)]
        kind = DeepDiscriminatorBlock if self.deep else DiscriminatorBlock
        kind = nn.remat(kind, static_argnums=(2,)) if self.remat else kind
        self.blocks = [kind(**options) for options in blocks]
        self.linear = Dense(1, sn_epsilon)
        self.embed = Embedding(self.num_classes, table[-1].out_channels * self.width, sn_epsilon)
        if self.instances:  # no bias: it would duplicate `linear`'s weights
            self.instance = Dense(table[-1].out_channels * self.width, sn_epsilon, use_bias=False)
        self.drop = nn.Dropout(self.dropout)

    def features(self, images: Array, update_stats: bool = False) -> Array:
        """Compute features h ``[N, channels of the last block]``, float32, of images ``[N, R, R, channels]`` in [-1, 1]."""
        x = images.astype(self.dtype)
        if self.deep:
            x = self.input_conv(x, update_stats)
        for block in self.blocks:
            x = block(x, update_stats)
        return nn.relu(x).astype(at_least_float32(x.dtype)).sum(axis=(1, 2))

    def __call__(
        self,
        images: Array,
        labels: Array,
        update_stats: bool = False,
        train: bool = False,
        instances: Array | None = None,
    ) -> DiscriminatorOutput:
        """Discriminate images.

        Args:
          images: ``[N, R, R, channels]`` in [-1, 1].
          labels: ``[N]`` int class ids.
          update_stats: whether to do a step of power iteration for every weight and use the new u.
          train: whether to apply dropout.
          instances: features of the instances ``[N, d]``, where there are any.
        """
        h = self.drop(self.features(images, update_stats), deterministic=not train)
        projection = (h * self.embed(labels, update_stats)).sum(axis=-1)
        if self.instances:
            projection += (h * self.instance(instances, update_stats)).sum(axis=-1)
        return DiscriminatorOutput(self.linear(h, update_stats)[:, 0] + projection)
