"""The discriminator: blocks, epilogue and the heads of each conditioning."""

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
    """One resolution of the discriminator, halving it."""

    features: int
    out_features: int
    architecture: Architecture
    is_first: bool
    clamp: float | None
    up_impl: fir.UpImpl
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array | None, image: Array | None) -> tuple[Array, Array | None]:
        """Activations and (where still needed) the image at this resolution → the same at half of it."""
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
    """4×4 activations to a feature vector: minibatch standard deviation, convolution, dense layer; in float32."""

    features: int
    architecture: Architecture
    mbstd_group_size: int
    clamp: float | None

    @nn.compact
    def __call__(self, x: Array, image: Array | None) -> Array:
        """``[N, 4, 4, features] → [N, features]``."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.architecture == "skip":
            x = x + Conv2d(self.features, 1, activation="lrelu", name="fromrgb")(image)
        if self.mbstd_group_size > 1:
            x = minibatch_stddev(x, self.mbstd_group_size)
        x = Conv2d(self.features, 3, activation="lrelu", clamp=self.clamp, name="conv")(x)
        return FullyConnected(self.features, activation="lrelu", name="fc")(x.reshape(x.shape[0], -1))


class Discriminator(nn.Module):
    """Conditional StyleGAN2 discriminator.

    With h the epilogue's features, `heads` says what becomes of them and of the label:

    * ``"projection"``: the logit is ``⟨output(h), class vector⟩ / √dim`` (or ``output(h)`` without classes).
    * ``"transitional"``: the logit is ``output(h)``; beside it there is a conditional logit,
      ``⟨conditional_output(h), class vector⟩ / √dim``.
    * ``"embedding"``: the logit is ``output(h)``; beside it there are ``embedding_output(h)`` and the class vector,
      each scaled to unit length.

    Class vectors come from a mapping network of the label, of `embedding_dim` = the channels at 4×4 (512 in every
    published configuration). With a low resolution, images of that size enter through ``low_fromrgb`` at the block of
    their resolution, and ``low_output`` of their features is their logit; classes play no part in it.

    Attributes:
      mbstd_group_size: samples a minibatch-standard-deviation group; 1 for none.
      mapping_layers: layers of the class mapping (8 in every published configuration); always 1 for ``"embedding"``.
      heads: see above; all but ``"projection"`` need classes.
      low_resolution: a power of two from 4, below `resolution`, or 0 for none; not for the architecture ``"skip"``.
      others: as in `Generator`.
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

    def setup(self) -> None:
        """Builds the blocks, the output layers and the class mapping."""
        if self.num_classes == 0 and self.heads != "projection":
            raise ValueError(f"A discriminator with heads {self.heads!r} needs classes; num_classes is 0.")

        def features(resolution: int) -> int:
            return min(self.channel_base // resolution, self.channel_max)

        self.blocks = [
            DiscriminatorBlock(
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
        self.b4 = DiscriminatorEpilogue(features(4), self.architecture, self.mbstd_group_size, self.conv_clamp)
        self.output = FullyConnected(self.embedding_dim if self._projects else 1)
        if self.heads == "transitional":
            self.conditional_output = FullyConnected(self.embedding_dim)
        if self.heads == "embedding":
            self.embedding_output = FullyConnected(self.embedding_dim)
        if self.num_classes > 0:
            layers = 1 if self.heads == "embedding" else self.mapping_layers
            self.mapping = MappingNetwork(self.num_classes, self.embedding_dim, layers)
        if self.low_resolution:
            check_low_resolution(self.low_resolution, self.resolution)
            if self.architecture == "skip":
                raise ValueError(
                    "A discriminator of architecture 'skip' takes no low_resolution: 'resnet' and 'orig' do."
                )
            self.low_fromrgb = Conv2d(features(self.low_resolution), 1, activation="lrelu")
            self.low_output = FullyConnected(1)

    @property
    def _projects(self) -> bool:
        return self.heads == "projection" and self.num_classes > 0

    @property
    def embedding_dim(self) -> int:
        """Width of the class vectors and of `class_noise`: the channels at 4×4."""
        return min(self.channel_base // 4, self.channel_max)

    @property
    def parameters_without_r1(self) -> tuple[tuple[str, ...], ...]:
        """Paths, or their beginnings, of the parameters that R1 has nothing to do with.

        The gradient of the logits with respect to the images does not depend on them, by the formula and not by value.
        PyTorch leaves such parameters, and their place in the optimiser, alone.
        """
        paths = [("output", "bias")]  # moves logits by the same amount whatever the image
        if self.heads == "transitional":
            paths += [("conditional_output",), ("mapping",)]
        if self.heads == "embedding":
            paths += [("embedding_output",), ("mapping",)]
        if self.low_resolution:
            paths += [("low_fromrgb",), ("low_output",)]
        return tuple(paths)

    def features(self, images: Array) -> Array:
        """Images ``[N, R, R, channels]`` in [-1, 1] → features h ``[N, channels at 4×4]``."""
        x, image = None, images
        for block in self.blocks:
            x, image = block(x, image)
        return self.b4(x, image)

    def low_features(self, low_images: Array) -> Array:
        """Images ``[N, r, r, channels]`` of the low resolution → features h ``[N, channels at 4×4]``."""
        x = self.low_fromrgb(low_images.astype(self.dtype))
        for block in self.blocks[int(math.log2(self.resolution // self.low_resolution)) :]:
            x, _ = block(x, None)
        return self.b4(x, None)

    def embed(self, labels: Array, class_noise: Array | None = None) -> Array:
        """Labels ``[N]`` → class vectors ``[N, embedding_dim]``."""
        return self.mapping(None, labels, class_noise)

    def __call__(
        self,
        images: Array,
        labels: Array,
        class_noise: Array | None = None,
        low_images: Array | None = None,
    ) -> DiscriminatorOutput:
        """Discriminates.

        Args:
          images: ``[N, R, R, channels]`` in [-1, 1].
          labels: ``[N]`` int class ids, or ``None`` without classes.
          class_noise: ``[N, embedding_dim]`` as in `MappingNetwork`.
          low_images: ``[N, r, r, channels]`` of the low resolution; ``None`` leaves its logits out. To be given to
            ``init`` where there is one.
        """
        h = self.features(images)
        logits, found = self.output(h), {}
        class_vectors = self.embed(labels, class_noise) if self.num_classes > 0 else None
        if self._projects:
            logits = logits * class_vectors / math.sqrt(self.embedding_dim)
        elif self.heads == "transitional":
            projections = self.conditional_output(h) * class_vectors / math.sqrt(self.embedding_dim)
            found = {"conditional_logits": projections.sum(axis=-1)}
        elif self.heads == "embedding":
            found = {"embedding": _unit_length(self.embedding_output(h)), "proxy": _unit_length(class_vectors)}
        if low_images is not None:
            found["low_logits"] = self.low_output(self.low_features(low_images)).sum(axis=-1)
        return DiscriminatorOutput(logits.sum(axis=-1), **found)


def _unit_length(x: Array) -> Array:
    """Rows scaled to length one."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))
