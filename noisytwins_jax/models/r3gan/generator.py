"""The generator of R3GAN: a linear map of z and the class to 4×4 pixels, residual blocks, and a 1×1 image layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.models import fir
from noisytwins_jax.models.r3gan.architectures import block_gain, check_stages, stage_dtypes, stage_resolutions
from noisytwins_jax.models.r3gan.layers import Conv, Embedding, Linear, ResidualBlock

Array = jax.Array


class GeneratorStage(nn.Module):
    """The blocks of one resolution, which upsampling from the one below comes before."""

    features: int
    cardinality: int
    blocks: int
    gain: float
    is_first: bool
    up_impl: fir.UpImpl
    dtype: jnp.dtype
    remat: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map ``[N, H, W, C] → [N, 2H, 2W, features]``; at 4×4 keep height and width."""
        x = x.astype(self.dtype)
        if not self.is_first:
            if x.shape[-1] != self.features:
                x = Conv(self.features, 1, up_impl=self.up_impl, name="resize")(x)
            x = fir.upsample2d(x)
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        for i in range(self.blocks):
            x = block(self.cardinality, self.gain, self.up_impl, name=f"block{i}")(x)
        return x


class Generator(nn.Module, kw_only=True):
    """Generator of R3GAN.

    A linear map of w = ``[z | class embedding]`` scales the channels of a learnt image of 4×4 pixels, the basis. Every
    stage then doubles the resolution but the first, and the last is followed by a 1×1 convolution to the image, which is
    not bounded.

    Attributes:
      resolution: a power of two from 4.
      channels: image channels.
      num_classes: labels are 0 to `num_classes` - 1; 0 for none.
      z_dim: width of the latents and of the class embedding.
      widths: channels of each stage from 4 px, see `default_widths`.
      cardinality: groups of the 3×3 convolutions of each stage, see `default_cardinality`.
      blocks_per_stage: residual blocks a stage.
      up_impl: see `layers.Conv`.
      dtype: dtype of activations at the highest `half_resolutions`; those below, parameters and the image are float32.
      half_resolutions: published are 3 for 32 px, otherwise 4.
      remat: whether gradients compute a block's activations again rather than store them.
    """

    resolution: int
    channels: int = 3
    num_classes: int
    z_dim: int = 64
    widths: tuple[int, ...]
    cardinality: tuple[int, ...]
    blocks_per_stage: int = 2
    up_impl: fir.UpImpl = "conv"
    dtype: jnp.dtype = jnp.float32
    half_resolutions: int = 3
    remat: bool = False

    def setup(self) -> None:
        """Build the layers."""
        check_stages(self.resolution, self.widths, self.cardinality)
        if self.num_classes:
            self.embedding = Embedding(self.num_classes, self.z_dim)
        self.linear = Linear(self.widths[0])
        self.basis = self.param("basis", nn.initializers.normal(1.0), (4, 4, self.widths[0]))
        resolutions = stage_resolutions(self.resolution)
        dtypes = stage_dtypes(len(resolutions), self.dtype, self.half_resolutions)
        self.stages = [
            GeneratorStage(
                features=width,
                cardinality=groups,
                blocks=self.blocks_per_stage,
                gain=block_gain(len(resolutions), self.blocks_per_stage),
                is_first=resolution == 4,
                up_impl=self.up_impl,
                dtype=dtype,
                remat=self.remat,
                name=f"b{resolution}",
            )
            for resolution, width, groups, dtype in zip(resolutions, self.widths, self.cardinality, dtypes, strict=True)
        ]
        self.torgb = Conv(self.channels, 1, up_impl=self.up_impl)

    @property
    def embedding_dim(self) -> int:
        """Width of the class embedding and of `class_noise`; 0 without classes."""
        return self.z_dim if self.num_classes else 0

    def map(self, z: Array, labels: Array | None, class_noise: Array | None = None) -> Array:
        """Return w ``[N, z_dim + embedding_dim]``: z, followed by the class embedding plus noise ``[N, embedding_dim]``."""
        if not self.num_classes:
            return z
        embedding = self.embedding(labels)
        embedding = embedding if class_noise is None else embedding + class_noise
        return jnp.concatenate([z, embedding], axis=-1)

    def synthesize(self, w: Array) -> Array:
        """Generate images ``[N, resolution, resolution, channels]``, nominally in [-1, 1], float32, from w of `map`."""
        x = self.basis * self.linear(w)[:, None, None, :]
        for stage in self.stages:
            x = stage(x)
        image = self.torgb(x)
        return image.astype(jnp.promote_types(image.dtype, jnp.float32))

    def __call__(self, z: Array, labels: Array | None, class_noise: Array | None = None) -> Array:
        """Generate images from latents ``[N, z_dim]`` and labels ``[N]``; see `map` and `synthesize`."""
        return self.synthesize(self.map(z, labels, class_noise))
