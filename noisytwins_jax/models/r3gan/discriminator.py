"""The discriminator of R3GAN: the generator's stages in reverse, and a projection on the class."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.models import fir
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.models.layers import FULL_PRECISION
from noisytwins_jax.models.r3gan.architectures import block_gain, check_stages, stage_dtypes, stage_resolutions
from noisytwins_jax.models.r3gan.layers import Conv, Embedding, Linear, ResidualBlock

Array = jax.Array


class DiscriminatorStage(nn.Module):
    """The blocks of one resolution, which downsampling to the one below follows."""

    out_features: int
    cardinality: int
    blocks: int
    gain: float
    is_last: bool
    up_impl: fir.UpImpl
    dtype: jnp.dtype
    remat: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map ``[N, H, W, C] → [N, H/2, W/2, out_features]``; at 4×4 keep the shape."""
        x = x.astype(self.dtype)
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        for i in range(self.blocks):
            x = block(self.cardinality, self.gain, self.up_impl, name=f"block{i}")(x)
        if not self.is_last:
            x = fir.downsample2d(x, self.up_impl)
            if x.shape[-1] != self.out_features:
                x = Conv(self.out_features, 1, up_impl=self.up_impl, name="resize")(x)
        return x


class Discriminator(nn.Module, kw_only=True):
    """Discriminator of R3GAN: the logit is ``⟨h, class embedding⟩``, or h itself without classes.

    h is a linear map of sums over the 4×4 pixels, weighted for each channel and pixel. There is no bias that adds a
    constant to all logits, so that R1 depends on every parameter.

    Attributes:
      resolution, channels, num_classes, widths, cardinality, blocks_per_stage, up_impl, dtype, half_resolutions, remat: as
        in `Generator`.
    """

    resolution: int
    channels: int = 3
    num_classes: int
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
        self.fromrgb = Conv(self.widths[-1], 1, up_impl=self.up_impl)
        resolutions = stage_resolutions(self.resolution)
        self.dtypes = stage_dtypes(len(resolutions), self.dtype, self.half_resolutions)
        self.stages = [
            DiscriminatorStage(
                out_features=self.widths[max(i - 1, 0)],
                cardinality=self.cardinality[i],
                blocks=self.blocks_per_stage,
                gain=block_gain(len(resolutions), self.blocks_per_stage),
                is_last=i == 0,
                up_impl=self.up_impl,
                dtype=self.dtypes[i],
                remat=self.remat,
                name=f"b{resolutions[i]}",
            )
            for i in reversed(range(len(resolutions)))
        ]
        # A depthwise convolution of all pixels.
        self.pixel_weights = self.param("pixel_weights", nn.initializers.normal(0.25), (4, 4, self.widths[0]))
        self.linear = Linear(self.embedding_dim or 1)
        if self.num_classes:
            dim = self.embedding_dim
            self.embedding = Embedding(self.num_classes, dim, gain=1.0 / math.sqrt(dim))

    @property
    def embedding_dim(self) -> int:
        """Width of the class embedding and of `class_noise`: the channels at 4×4, or 0 without classes."""
        return self.widths[0] if self.num_classes else 0

    def features(self, images: Array) -> Array:
        """Compute features h ``[N, embedding_dim or 1]``, float32, of images ``[N, R, R, channels]`` in [-1, 1]."""
        x = self.fromrgb(images.astype(self.dtypes[-1]))
        for stage in self.stages:
            x = stage(x)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return self.linear(jnp.einsum("nhwc,hwc->nc", x, self.pixel_weights, precision=FULL_PRECISION))

    def __call__(self, images: Array, labels: Array | None, class_noise: Array | None = None) -> DiscriminatorOutput:
        """Discriminate images.

        Args:
          images: ``[N, R, R, channels]`` in [-1, 1].
          labels: ``[N]`` int class ids, or ``None`` without classes.
          class_noise: ``[N, embedding_dim]``, added to the class embedding in units of 1/√embedding_dim: its coordinates
            start with standard deviation 1/√(classes · embedding_dim), those of the generator's with 1/√classes.
        """
        h = self.features(images)
        if self.num_classes:
            embedding = self.embedding(labels)
            if class_noise is not None:
                embedding = embedding + class_noise / math.sqrt(self.embedding_dim)
            h = h * embedding
        return DiscriminatorOutput(h.sum(axis=-1))
