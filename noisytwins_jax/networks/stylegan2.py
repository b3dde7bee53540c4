"""Conditional StyleGAN2 generator and discriminator (Karras et al., CVPR 2020; conditioning of StyleGAN2-ADA).

Pure functions of a global batch, through Flax: ``module.apply(variables, ...)``. Collections: ``params`` (trained) and
``buffers`` (`w_avg`, fixed noise images). Channels at resolution r: ``min(channel_base / r, channel_max)``.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.networks import fir
from noisytwins_jax.networks.layers import (
    Conv2d,
    FullyConnected,
    ModulatedConv,
    ToRGB,
    minibatch_stddev,
    normalize_2nd_moment,
)

Array = jax.Array
Architecture = Literal["orig", "skip", "resnet"]


def block_resolutions(resolution: int) -> list[int]:
    """``[4, 8, …, resolution]``."""
    return [2**i for i in range(2, int(math.log2(resolution)) + 1)]


def truncate(ws: Array, w_avg: Array, psi: float | Array, cutoff: int | None = None) -> Array:
    """Truncation in W: moves `ws` ``[N, num_ws, w_dim]`` to ``w_avg + psi·(ws - w_avg)``, in the first `cutoff` layers."""
    truncated = w_avg + psi * (ws - w_avg)
    if cutoff is None:
        return truncated
    return jnp.where(jnp.arange(ws.shape[1])[:, None] < cutoff, truncated, ws)


class MappingNetwork(nn.Module):
    """Latents and class to W: normalised z beside the normalised class embedding, through `num_layers` dense layers.

    Attributes:
      num_classes: 0 for none.
      w_dim: width of the embedding, of every layer and of the output.
      num_layers: leaky-ReLU layers with learning-rate multiplier 0.01.
      w_avg_decay: decay of the running mean of w, or ``None`` for none kept.
    """

    num_classes: int
    w_dim: int
    num_layers: int
    w_avg_decay: float | None = None

    @nn.compact
    def __call__(
        self, z: Array | None, labels: Array | None, class_noise: Array | None = None, update_w_avg: bool = False
    ) -> Array:
        """Maps to ``[N, w_dim]``.

        Args:
          z: ``[N, z_dim]`` standard normal latents, or ``None`` (the discriminator's mapping).
          labels: ``[N]`` int class ids, or ``None`` without classes.
          class_noise: ``[N, w_dim]`` added to the class embedding before it is normalised (NoisyTwins eq. 3).
          update_w_avg: moves the running mean of w; needs the ``"buffers"`` collection to be mutable.
        """
        inputs = [] if z is None else [normalize_2nd_moment(z)]
        if self.num_classes > 0:
            # As a matrix product with the one-hot label: row `weight[y]/√num_classes + bias`. The gain fixes the scale
            # that class noise is measured against: coordinates start with standard deviation 1/√num_classes.
            embedding = FullyConnected(self.w_dim, name="embed")(jax.nn.one_hot(labels, self.num_classes))
            if class_noise is not None:
                embedding = embedding + class_noise
            inputs.append(normalize_2nd_moment(embedding))
        w = jnp.concatenate(inputs, axis=-1)
        for i in range(self.num_layers):
            w = FullyConnected(self.w_dim, activation="lrelu", lr_multiplier=0.01, name=f"fc{i}")(w)
        if self.w_avg_decay is not None:
            w_avg = self.variable("buffers", "w_avg", jnp.zeros, (self.w_dim,))
            if update_w_avg:
                w_avg.value = self.w_avg_decay * w_avg.value + (1.0 - self.w_avg_decay) * w.mean(axis=0)
        return w


class SynthesisBlock(nn.Module):
    """One resolution of the generator: (up-convolution,) convolution, and the image so far."""

    features: int
    resolution: int
    channels: int
    architecture: Architecture
    is_last: bool
    clamp: float | None
    up_impl: fir.UpImpl
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array | None, image: Array | None, ws: Array, noise_mode: str) -> tuple[Array, Array | None]:
        """`ws` ``[N, 2 or 3, w_dim]``: one a convolution, the last for the image layer. → (activations, image)."""

        def conv(name: str, **options) -> ModulatedConv:
            options |= {"clamp": self.clamp, "up_impl": self.up_impl, "name": name}
            return ModulatedConv(self.features, self.resolution, **options)

        if x is None:
            const = self.param("const", nn.initializers.normal(1.0), (4, 4, self.features))
            # Cast after the broadcast, so that its gradient is summed over the batch in float32.
            x = jnp.broadcast_to(const, (ws.shape[0], *const.shape)).astype(self.dtype)
            x = conv("conv1")(x, ws[:, 0], noise_mode)
        elif self.architecture == "resnet":
            skip = Conv2d(
                self.features, 1, resample="up", gain=math.sqrt(0.5), use_bias=False, up_impl=self.up_impl, name="skip"
            )(x)
            x = conv("conv0", upsample=True)(x, ws[:, 0], noise_mode)
            x = skip + conv("conv1", gain=math.sqrt(0.5))(x, ws[:, 1], noise_mode)
        else:
            x = conv("conv0", upsample=True)(x, ws[:, 0], noise_mode)
            x = conv("conv1")(x, ws[:, 1], noise_mode)

        if image is not None:
            image = fir.upsample2d(image)
        if self.architecture == "skip" or self.is_last:
            rgb = ToRGB(self.channels, self.clamp, name="torgb")(x, ws[:, -1])
            image = rgb if image is None else image + rgb
        return x, image


class SynthesisNetwork(nn.Module):
    """W to image. See `Generator` for the attributes."""

    resolution: int
    channels: int
    channel_base: int
    channel_max: int
    architecture: Architecture
    clamp: float | None
    up_impl: fir.UpImpl
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, ws: Array, noise_mode: str) -> Array:
        """`ws` ``[N, num_ws, w_dim]`` → image ``[N, resolution, resolution, channels]``."""
        x = image = None
        first = 0
        for resolution in block_resolutions(self.resolution):
            count = 2 if resolution == 4 else 3
            x, image = SynthesisBlock(
                features=min(self.channel_base // resolution, self.channel_max),
                resolution=resolution,
                channels=self.channels,
                architecture=self.architecture,
                is_last=resolution == self.resolution,
                clamp=self.clamp,
                up_impl=self.up_impl,
                dtype=self.dtype,
                name=f"b{resolution}",
            )(x, image, ws[:, first : first + count], noise_mode)
            first += count - 1  # an image layer shares its w with the next block's first convolution
        return image


class Generator(nn.Module):
    """Conditional StyleGAN2 generator.

    Attributes:
      resolution: power of two, at least 8.
      channels: image channels, 1 or 3.
      num_classes: 0 for an unconditional generator.
      z_dim, w_dim: widths of the latents and of W.
      mapping_layers: layers of the mapping network.
      channel_base, channel_max: see the module's docstring.
      architecture: how images leave the blocks: ``"skip"`` (summed up, default), ``"resnet"``, ``"orig"``.
      conv_clamp: clamp of activations to ± this value, or ``None``.
      w_avg_decay: decay of the running mean of w (0.998 as published; 0.995 in StyleGAN2-ADA).
      up_impl: see `fir`.
      dtype: dtype of the synthesis blocks' activations; the mapping and the image stay float32.
    """

    resolution: int
    channels: int
    num_classes: int
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    channel_base: int = 16384
    channel_max: int = 512
    architecture: Architecture = "skip"
    conv_clamp: float | None = None
    w_avg_decay: float = 0.998
    up_impl: fir.UpImpl = "conv"
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Builds the mapping and the synthesis network."""
        self.mapping = MappingNetwork(self.num_classes, self.w_dim, self.mapping_layers, self.w_avg_decay)
        self.synthesis = SynthesisNetwork(
            self.resolution,
            self.channels,
            self.channel_base,
            self.channel_max,
            self.architecture,
            self.conv_clamp,
            self.up_impl,
            self.dtype,
        )

    @property
    def num_ws(self) -> int:
        """Layers that take their own w: ``2·log2(resolution) - 2``."""
        return 2 * int(math.log2(self.resolution)) - 2

    def map(self, z: Array, labels: Array, class_noise: Array | None = None, update_w_avg: bool = False) -> Array:
        """``[N, z_dim]``, ``[N]`` → w ``[N, w_dim]``. See `MappingNetwork`."""
        return self.mapping(z, labels, class_noise, update_w_avg)

    def broadcast(self, w: Array) -> Array:
        """One w for every layer: ``[N, w_dim] → [N, num_ws, w_dim]``."""
        return jnp.broadcast_to(w[:, None, :], (w.shape[0], self.num_ws, w.shape[1]))

    def synthesize(self, ws: Array, noise_mode: str = "random") -> Array:
        """``[N, num_ws, w_dim]`` → images ``[N, resolution, resolution, channels]``, nominally in [-1, 1]."""
        return self.synthesis(ws, noise_mode)

    def __call__(
        self,
        z: Array,
        labels: Array,
        class_noise: Array | None = None,
        psi: float | Array | None = None,
        noise_mode: str = "random",
    ) -> Array:
        """Latents and labels to images; `psi` truncates in W. Class noise is off unless given."""
        ws = self.broadcast(self.map(z, labels, class_noise))
        if psi is not None:
            ws = truncate(ws, self.mapping.get_variable("buffers", "w_avg"), psi)
        return self.synthesize(ws, noise_mode)


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
    """Conditional StyleGAN2 discriminator; the class enters by projection on its own mapping of the label.

    The logit is ``⟨output(h), mapping(class)⟩ / √dim`` with h the epilogue's features.

    Attributes:
      mbstd_group_size: samples a minibatch-standard-deviation group; 1 for none.
      mapping_layers: layers of the class mapping (8 in every published configuration).
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

    def setup(self) -> None:
        """Builds the blocks, the output layer and the class mapping."""

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
        self.output = FullyConnected(features(4) if self.num_classes > 0 else 1)
        if self.num_classes > 0:
            self.mapping = MappingNetwork(self.num_classes, self.embedding_dim, self.mapping_layers)

    @property
    def embedding_dim(self) -> int:
        """Width of the class embedding, and so of `class_noise`: the channels at 4×4."""
        return min(self.channel_base // 4, self.channel_max)

    def features(self, images: Array) -> Array:
        """Images ``[N, R, R, channels]`` in [-1, 1] → features h ``[N, channels at 4×4]``."""
        x, image = None, images
        for block in self.blocks:
            x, image = block(x, image)
        return self.b4(x, image)

    def embed(self, labels: Array, class_noise: Array | None = None) -> Array:
        """Labels ``[N]`` → the class vectors that features are projected on, ``[N, embedding_dim]``."""
        return self.mapping(None, labels, class_noise)

    def __call__(self, images: Array, labels: Array, class_noise: Array | None = None) -> Array:
        """Logits ``[N]``, positive for real; `class_noise` ``[N, embedding_dim]`` as in `MappingNetwork`."""
        logits = self.output(self.features(images))
        if self.num_classes > 0:
            logits = logits * self.embed(labels, class_noise) / math.sqrt(self.embedding_dim)
        return logits.sum(axis=-1)
