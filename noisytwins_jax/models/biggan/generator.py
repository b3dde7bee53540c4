"""The generator of BigGAN and BigGAN-deep: class embedding, blocks and image layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.models.biggan.architectures import check_width, generator_blocks
from noisytwins_jax.models.biggan.batch_norm import BatchNorm
from noisytwins_jax.models.biggan.generator_blocks import DeepGeneratorBlock, GeneratorBlock
from noisytwins_jax.models.biggan.layers import Conv, Dense, Embedding, at_least_float32
from noisytwins_jax.models.fir import UpImpl
from noisytwins_jax.utils.errors import UserError

Array = jax.Array


class Generator(nn.Module, kw_only=True):
    """Generator of BigGAN and BigGAN-deep.

    The condition of every batch normalisation is ``[embedding | latents]``, in this order. BigGAN cuts z into equal
    chunks, the first for the first layer and one for the condition of each block. BigGAN-deep gives all of z to each
    block, and the whole condition to the first layer (``[embedding | z]`` as in BigGAN-PyTorch; published TensorFlow
    weights have ``[z | embedding]``). The first layer's outputs are ordered (y, x, channel).

    Attributes:
      resolution: 8 to 512, see `architectures`.
      channels: image channels.
      num_classes: labels are 0 to `num_classes` - 1.
      z_dim: see `default_z_dim`; with `skip_z`, BigGAN needs a multiple of the number of chunks (blocks + 1).
      width: ch, of which all channel counts are multiples: 96 in BigGAN, 128 in BigGAN-deep.
      deep: BigGAN-deep rather than BigGAN.
      embedding_dim: E, with `shared_embedding`.
      instance_dim: I, width of the linear map of an instance's features, which is appended to the class embedding; 0 for
        none. Needs `shared_embedding`.
      shared_embedding: one class embedding for all layers; otherwise each batch normalisation has its own tables and
        "embeddings" are one-hot (SA-GAN).
      skip_z: whether the blocks take z too; otherwise the first layer only.
      attention: see `attention_resolutions`.
      wide_rgb: whether the last convolution has `width` outputs of which the image takes the first, as in the
        published BigGAN-deep.
      bn_epsilon, bn_decay: see `batch_norm`.
      output_bn_epsilon: of the last batch normalisation, which in BigGAN-PyTorch is 1e-5 whatever `bn_epsilon` is; None
        for the same.
      sn_epsilon: lower bound of norms in spectral normalisation.
      spectral_norm: whether weights are normalised (all but the class embeddings).
      up_impl: see `layers.Conv`.
      dtype: dtype of activations; parameters, statistics and the image are float32.
      remat: whether gradients compute a block's activations again rather than store them.
    """

    resolution: int
    channels: int = 3
    num_classes: int
    z_dim: int
    width: int = 96
    deep: bool = False
    embedding_dim: int = 128
    instance_dim: int = 0
    shared_embedding: bool = True
    skip_z: bool = True
    attention: bool | tuple[int, ...] = True
    wide_rgb: bool = False
    bn_epsilon: float = 1e-4
    bn_decay: float = 0.9
    output_bn_epsilon: float | None = None
    sn_epsilon: float = 1e-4
    spectral_norm: bool = True
    up_impl: UpImpl = "conv"
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        """Build the layers."""
        check_width(self.width, self.deep)
        table = generator_blocks(self.resolution, self.deep, self.attention)
        chunks = len(table) + 1
        if self.skip_z and not self.deep and (self.z_dim % chunks or not self.z_dim):
            raise UserError(
                f"z_dim={self.z_dim} does not make {chunks} equal chunks, one for the first layer and each block; "
                f"give a multiple of {chunks}, or skip_z=False."
            )
        if self.wide_rgb and self.width < self.channels:
            raise UserError(
                f"wide_rgb takes an image of {self.channels} channels from width={self.width}; give at least as many."
            )
        sn_epsilon = self.sn_epsilon if self.spectral_norm else None
        if self.shared_embedding:
            self.shared = Embedding(self.num_classes, self.embedding_dim)
        if self.instance_dim:
            self.instance = Dense(self.instance_dim, None)  # an embedding: like the classes' it is not normalised
        self.linear = Dense(16 * table[0].in_channels * self.width, sn_epsilon)
        kind = DeepGeneratorBlock if self.deep else GeneratorBlock
        kind = nn.remat(kind, static_argnums=(3, 4)) if self.remat else kind
        self.blocks = [
            kind(
                features=block.out_channels * self.width,
                resample=block.resample,
                attention=block.attention,
                sn_epsilon=sn_epsilon,
                up_impl=self.up_impl,
                bn_epsilon=self.bn_epsilon,
                bn_decay=self.bn_decay,
                class_tables=not self.shared_embedding,
            )
            for block in table
        ]
        output_epsilon = self.bn_epsilon if self.output_bn_epsilon is None else self.output_bn_epsilon
        self.output_bn = BatchNorm(output_epsilon, self.bn_decay)
        outputs = self.width if self.wide_rgb else self.channels
        self.output_conv = Conv(outputs, 3, sn_epsilon, used_features=self.channels)

    def embed(self, labels: Array, class_noise: Array | None = None, instances: Array | None = None) -> Array:
        """Compute the condition of every block: ``[N, E]``, or ``[N, E + I]`` with instances.

        It is the shared embedding of labels ``[N]`` plus noise ``[N, E]`` (E is `num_classes` if none is shared),
        followed by the linear map of the instances' features ``[N, d]``.
        """
        embedding = self.shared(labels) if self.shared_embedding else jax.nn.one_hot(labels, self.num_classes)
        embedding = embedding if class_noise is None else embedding + class_noise
        if not self.instance_dim:
            return embedding
        return jnp.concatenate([embedding, self.instance(instances, update_stats=False)], axis=-1)

    def synthesize(self, z: Array, embedding: Array, train: bool = False, update_stats: bool = False) -> Array:
        """Generate images.

        Args:
          z: latents ``[N, z_dim]``.
          embedding: from `embed`, or an interpolation of two.
          train: whether batch normalisation uses batch statistics rather than the stored ones.
          update_stats: whether to do a step of power iteration for every weight and use the new u; with `train`, also
            whether to update the stored statistics.

        Returns:
          Images ``[N, resolution, resolution, channels]`` in [-1, 1], float32.
        """
        first, latents = self._split(z)
        if self.deep and self.skip_z and self.shared_embedding:
            first = jnp.concatenate([embedding, z], axis=-1)
        x = self.linear(first, update_stats).astype(self.dtype).reshape(z.shape[0], 4, 4, -1)
        for block, chunk in zip(self.blocks, latents, strict=True):
            x = block(x, (embedding, chunk), train, update_stats)
        x = nn.relu(self.output_bn(x, train, update_stats))
        image = self.output_conv(x, update_stats)
        return jnp.tanh(image.astype(at_least_float32(image.dtype)))

    def __call__(
        self,
        z: Array,
        labels: Array,
        class_noise: Array | None = None,
        train: bool = False,
        update_stats: bool = False,
        instances: Array | None = None,
    ) -> Array:
        """Generate images from latents ``[N, z_dim]`` and labels ``[N]``; see `embed` and `synthesize`."""
        return self.synthesize(z, self.embed(labels, class_noise, instances), train, update_stats)

    def block_latents(self, z: Array) -> Array:
        """Return the part ``[N, L]`` of z ``[N, z_dim]`` that conditions the blocks, each chunk once."""
        _, latents = self._split(z)
        return z if self.deep and self.skip_z else jnp.concatenate(latents, axis=-1)

    def _split(self, z: Array) -> tuple[Array, list[Array]]:
        """Split z into the latents of the first layer and those of each block."""
        if not self.skip_z:
            return z, [z[:, :0]] * len(self.blocks)
        if self.deep:
            return z, [z] * len(self.blocks)
        first, *others = jnp.split(z, len(self.blocks) + 1, axis=-1)
        return first, others
