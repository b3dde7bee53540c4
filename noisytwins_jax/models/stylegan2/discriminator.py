"""The discriminator of StyleGAN2: blocks, epilogue and the heads of each conditioning."""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.models import fir
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.models.layers import Conv2d, FullyConnected, minibatch_stddev
from noisytwins_jax.models.stylegan2.mapping import MappingNetwork
from noisytwins_jax.models.stylegan2.resolutions import Architecture, block_resolutions, check_low_resolution

Array = jax.Array
Heads = Literal["projection", "embedding", "transitional"]


class DiscriminatorBlock(nn.Module):
    """Block of one resolution of the discriminator, which halves it."""

    features: int
    out_features: int
    architecture: Architecture
    is_first: bool
    clamp: float | None
    up_impl: fir.UpImpl
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array | None, image: Array | None) -> tuple[Array, Array | None]:
        """Map activations and (where still needed) the image at this resolution → the same at half of it."""
        options = {"up_impl": self.up_impl, "clamp": self.clamp, "activation": "lrelu"}
        if self.is_first or self.architecture == "skip":
            y = Conv2d(self.features, 1, **options, name="fromrgb")(image.astype(self.dtype))
            x = y if x is None else x + y
            image = fir.downsample2d(image) if self.architecture == "skip" else None
        if self.architecture == "resnet":
            skip = Conv2d(
                self.out_features,
                1,
                resample="down",
                gain=math.sqrt(0.5),
                use_bias=False,
                up_impl=self.up_impl,
                name="skip",
            )(x)
            x = Conv2d(self.features, 3, **options, name="conv0")(x)
            x = Conv2d(self.out_features, 3, resample="down", gain=math.sqrt(0.5), **options, name="conv1")(x)
            return skip + x, image
        x = Conv2d(self.features, 3, **options, name="conv0")(x)
        return Conv2d(self.out_features, 3, resample="down", **options, name="conv1")(x), image


class DiscriminatorEpilogue(nn.Module):
    """Last block, 4×4 activations to a feature vector: minibatch standard deviation, convolution, dense layer; in float32."""

    features: int
    architecture: Architecture
    mbstd_group_size: int
    clamp: float | None
    up_impl: fir.UpImpl

    @nn.compact
    def __call__(self, x: Array, image: Array | None) -> Array:
        """Map ``[N, 4, 4, features] → [N, features]``."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.architecture == "skip":
            x = x + Conv2d(self.features, 1, activation="lrelu", up_impl=self.up_impl, name="fromrgb")(image)
        if self.mbstd_group_size > 1:
            x = minibatch_stddev(x, self.mbstd_group_size)
        x = Conv2d(self.features, 3, activation="lrelu", clamp=self.clamp, up_impl=self.up_impl, name="conv")(x)
        return FullyConnected(self.features, activation="lrelu", name="fc")(x.reshape(x.shape[0], -1))


class Discriminator(nn.Module):
    """Conditional StyleGAN2 discriminator.

    `heads` sets what is computed from the epilogue's features h and the label:

    * ``"projection"``: the logit is ``⟨output(h), class vector⟩ / √dim`` (or ``output(h)`` without classes).
    * ``"transitional"``: the logit is ``output(h)``; in addition a conditional logit,
      ``⟨conditional_output(h), class vector⟩ / √dim``.
    * ``"embedding"``: the logit is ``output(h)``; in addition ``embedding_output(h)`` and the class vector, each scaled
      to unit length.

    Class vectors come from a mapping network of the label, of `embedding_dim` = the channels at 4×4 (512 in every
    published configuration). With a low resolution, images of that size enter through ``low_fromrgb`` at the block of
    their resolution, and their unconditional logit is ``low_output`` of their features.

    Attributes:
      mbstd_group_size: samples a minibatch-standard-deviation group; 1 for none.
      mapping_layers: layers of the class mapping (8 in every published configuration); always 1 for ``"embedding"``.
      heads: see above; all but ``"projection"`` need classes.
      low_resolution: a power of two from 4, below `resolution`, or 0 for none; not for the architecture ``"skip"``.
      noise_after_normalization: see `MappingNetwork`.
      resolution, channels, num_classes, channel_base, channel_max, architecture, conv_clamp, up_impl, dtype, remat: as in
        `Generator`.
    """

    resolution: int
    channels: int
    num_classes: int
    channel_base: int = 16384
    channel_max: int = 512
    architecture: Architecture = "resnet"
    mbstd_group_size: int = 4
    mapping_layers: int = 8
    conv_clamp: float | None = None
    up_impl: fir.UpImpl = "conv"
    dtype: jnp.dtype = jnp.float32
    heads: Heads = "projection"
    low_resolution: int = 0
    noise_after_normalization: bool = False
    remat: bool = False

    def setup(self) -> None:
        """Build the blocks, the output layers and the class mapping."""
        if self.num_classes == 0 and self.heads != "projection":
            raise ValueError(f"A discriminator with heads {self.heads!r} needs classes; num_classes is 0.")

        def features(resolution: int) -> int:
            return min(self.channel_base // resolution, self.channel_max)

        block = nn.remat(DiscriminatorBlock) if self.remat else DiscriminatorBlock
        self.blocks = [
            block(
                features(resolution),
                features(resolution // 2),
                self.architecture,
                resolution == self.resolution,
                self.conv_clamp,
                self.up_impl,
                self.dtype,
                name=f"b{resolution}",
            )
            for resolution in block_resolutions(self.resolution)[:0:-1]
        ]
        self.b4 = DiscriminatorEpilogue(
            features(4), self.architecture, self.mbstd_group_size, self.conv_clamp, self.up_impl
        )
        self.output = FullyConnected(self.embedding_dim if self._projects else 1)
        if self.heads == "transitional":
            self.conditional_output = FullyConnected(self.embedding_dim)
        if self.heads == "embedding":
            self.embedding_output = FullyConnected(self.embedding_dim)
        if self.num_classes > 0:
            layers = 1 if self.heads == "embedding" else self.mapping_layers
            self.mapping = MappingNetwork(
                self.num_classes,
                self.embedding_dim,
                layers,
                noise_after_normalization=self.noise_after_normalization,
            )
        if self.low_resolution:
            check_low_resolution(self.low_resolution, self.resolution)
            if self.architecture == "skip":
                raise ValueError(
                    "A discriminator of architecture 'skip' takes no low_resolution: 'resnet' and 'orig' do."
                )
            self.low_fromrgb = Conv2d(features(self.low_resolution), 1, activation="lrelu", up_impl=self.up_impl)
            self.low_output = FullyConnected(1)

    @property
    def _projects(self) -> bool:
        return self.heads == "projection" and self.num_classes > 0

    @property
    def embedding_dim(self) -> int:
        """Width of the class vectors and of `class_noise`: the number of channels at 4×4."""
        return min(self.channel_base // 4, self.channel_max)

    @property
    def parameters_without_r1(self) -> tuple[tuple[str, ...], ...]:
        """Paths, or prefixes of paths, of the parameters that R1 does not depend on.

        The gradient of the logits with respect to the images does not contain them, whatever their values. PyTorch does
        not update such parameters nor their state in the optimiser.
        """
        paths = [("output", "bias")]  # adds a constant to all logits
        if self.heads == "transitional":
            paths += [("conditional_output",), ("mapping",)]
        if self.heads == "embedding":
            paths += [("embedding_output",), ("mapping",)]
        if self.low_resolution:
            paths += [("low_fromrgb",), ("low_output",)]
        return tuple(paths)

    def features(self, images: Array) -> Array:
        """Compute features h ``[N, channels at 4×4]`` of images ``[N, R, R, channels]`` in [-1, 1]."""
        x, image = None, images
        for block in self.blocks:
            x, image = block(x, image)
        return self.b4(x, image)

    def low_features(self, low_images: Array) -> Array:
        """Compute features h ``[N, channels at 4×4]`` of images ``[N, r, r, channels]`` of the low resolution."""
        x = self.low_fromrgb(low_images.astype(self.dtype))
        for block in self.blocks[int(math.log2(self.resolution // self.low_resolution)) :]:
            x, _ = block(x, None)
        return self.b4(x, None)

    def embed(self, labels: Array, class_noise: Array | None = None) -> Array:
        """Compute class vectors ``[N, embedding_dim]`` of labels ``[N]``."""
        return self.mapping(None, labels, class_noise)

    def __call__(
        self,
        images: Array,
        labels: Array,
        class_noise: Array | None = None,
        low_images: Array | None = None,
    ) -> DiscriminatorOutput:
        """Discriminate images.

        Args:
          images: ``[N, R, R, channels]`` in [-1, 1].
          labels: ``[N]`` int class ids, or ``None`` without classes.
          class_noise: ``[N, embedding_dim]`` as in `MappingNetwork`.
          low_images: ``[N, r, r, channels]`` of the low resolution; ``None`` omits their logits. ``init`` needs them if
            there is a low resolution.
        """
        h = self.features(images)
        logits, heads = self.output(h), {}
        class_vectors = self.embed(labels, class_noise) if self.num_classes > 0 else None
        if self._projects:
            logits = logits * class_vectors / math.sqrt(self.embedding_dim)
        elif self.heads == "transitional":
            projections = self.conditional_output(h) * class_vectors / math.sqrt(self.embedding_dim)
            heads = {"conditional_logits": projections.sum(axis=-1)}
        elif self.heads == "embedding":
            heads = {"embedding": _unit_length(self.embedding_output(h)), "proxy": _unit_length(class_vectors)}
        if low_images is not None:
            heads["low_logits"] = self.low_output(self.low_features(low_images)).sum(axis=-1)
        return DiscriminatorOutput(logits.sum(axis=-1), **heads)


def _unit_length(x: Array) -> Array:
    """Scale rows to length one."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))
