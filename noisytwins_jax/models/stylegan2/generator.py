"""The generator of StyleGAN2: mapping, synthesis blocks and the w of each layer."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.models import fir
from noisytwins_jax.models.layers import Conv2d, ModulatedConv, ToRGB
from noisytwins_jax.models.rows import Rows
from noisytwins_jax.models.stylegan2.mapping import Conditioning, MappingNetwork, truncate
from noisytwins_jax.models.stylegan2.resolutions import Architecture, block_resolutions, check_low_resolution

Array = jax.Array


class SynthesisBlock(nn.Module):
    """Block of one resolution of the generator: (up-convolution,) convolution, and the image so far."""

    features: int
    resolution: int
    channels: int
    architecture: Architecture
    is_last: bool
    clamp: float | None
    up_impl: fir.UpImpl
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Array | None, image: Array | None, ws: Array, noise_mode: str, rows: Rows | None
    ) -> tuple[Array, Array | None]:
        """Return activations and image; `ws` ``[N, 2 or 3, w_dim]``: one per convolution, the last for the image layer."""

        def conv(name: str, **options) -> ModulatedConv:
            options |= {"clamp": self.clamp, "up_impl": self.up_impl, "name": name}
            return ModulatedConv(self.features, self.resolution, **options)

        if x is None:
            const = self.param("const", nn.initializers.normal(1.0), (4, 4, self.features))
            # Cast after the broadcast, so that its gradient is summed over the batch in float32.
            x = jnp.broadcast_to(const, (ws.shape[0], *const.shape)).astype(self.dtype)
            x = conv("conv1")(x, ws[:, 0], noise_mode, rows)
        elif self.architecture == "resnet":
            skip = Conv2d(
                self.features, 1, resample="up", gain=math.sqrt(0.5), use_bias=False, up_impl=self.up_impl, name="skip"
            )(x)
            x = conv("conv0", upsample=True)(x, ws[:, 0], noise_mode, rows)
            x = skip + conv("conv1", gain=math.sqrt(0.5))(x, ws[:, 1], noise_mode, rows)
        else:
            x = conv("conv0", upsample=True)(x, ws[:, 0], noise_mode, rows)
            x = conv("conv1")(x, ws[:, 1], noise_mode, rows)

        if image is not None:
            image = fir.upsample2d(image)
        if self.architecture == "skip" or self.is_last:
            rgb = ToRGB(self.channels, self.clamp, self.up_impl, name="torgb")(x, ws[:, -1])
            image = rgb if image is None else image + rgb
        return x, image


class SynthesisNetwork(nn.Module):
    """Synthesis network, from W to images. See `Generator` for the attributes."""

    resolution: int
    channels: int
    channel_base: int
    channel_max: int
    architecture: Architecture
    clamp: float | None
    up_impl: fir.UpImpl
    dtype: jnp.dtype
    low_resolution: int = 0
    remat: bool = False

    @nn.compact
    def __call__(self, ws: Array, noise_mode: str, rows: Rows | None = None) -> tuple[Array, Array | None]:
        """Map `ws` ``[N, num_ws, w_dim]`` to images ``[N, R, R, channels]`` of the full and, if any, the low resolution."""
        x = image = low_image = None
        first = 0
        block = nn.remat(SynthesisBlock, static_argnums=(4,)) if self.remat else SynthesisBlock
        for resolution in block_resolutions(self.resolution):
            count = 2 if resolution == 4 else 3
            x, image = block(
                features=min(self.channel_base // resolution, self.channel_max),
                resolution=resolution,
                channels=self.channels,
                architecture=self.architecture,
                is_last=resolution == self.resolution,
                clamp=self.clamp,
                up_impl=self.up_impl,
                dtype=self.dtype,
                name=f"b{resolution}",
            )(x, image, ws[:, first : first + count], noise_mode, rows)
            first += count - 1  # an image layer shares its w with the next block's first convolution
            if resolution == self.low_resolution:
                low_image = image
                first += 1  # but not where the conditional layers begin
        return image, low_image


class Generator(nn.Module):
    """Conditional StyleGAN2 generator.

    Attributes:
      resolution: power of two, at least 8.
      channels: image channels, 1 or 3.
      num_classes: 0 for an unconditional generator.
      z_dim, w_dim: widths of the latents and of W.
      mapping_layers: layers of the mapping network.
      channel_base, channel_max: channels at resolution r are ``min(channel_base / r, channel_max)``.
      architecture: ``"skip"`` (images of all blocks are summed, default), ``"resnet"`` or ``"orig"``.
      conv_clamp: clamp of activations to ± this value, or ``None``.
      w_avg_decay: decay of the running mean of w (0.998 as published; 0.995 in StyleGAN2-ADA).
      up_impl: see `fir`.
      dtype: dtype of the synthesis blocks' activations; the mapping and the image stay float32.
      conditioning: how the class enters the mapping; see `MappingNetwork`.
      low_resolution: layers up to this resolution take w without a class (UTLO); 0 for none. A power of two from 4,
        below `resolution`; needs the architecture ``"skip"``.
      remat: whether gradients compute a block's activations again rather than store them.
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
    conditioning: Conditioning = "concat"
    low_resolution: int = 0
    remat: bool = False

    def setup(self) -> None:
        """Build the mapping and the synthesis network."""
        if self.low_resolution:
            check_low_resolution(self.low_resolution, self.resolution)
            if self.architecture != "skip":
                raise ValueError(
                    f"A generator of architecture {self.architecture!r} has no intermediate images; "
                    "low_resolution needs 'skip'."
                )
        self.mapping = MappingNetwork(
            self.num_classes,
            self.w_dim,
            self.mapping_layers,
            self.w_avg_decay,
            self.conditioning,
            noise_after_normalization=self.conditioning == "content_style",
        )
        self.synthesis = SynthesisNetwork(
            self.resolution,
            self.channels,
            self.channel_base,
            self.channel_max,
            self.architecture,
            self.conv_clamp,
            self.up_impl,
            self.dtype,
            self.low_resolution,
            self.remat,
        )

    @property
    def num_ws(self) -> int:
        """Number of layers that take a w: ``2·log2(resolution) - 2``, and one more with a low resolution."""
        return 2 * int(math.log2(self.resolution)) - 2 + (self.low_resolution > 0)

    @property
    def num_low_ws(self) -> int:
        """Number of these, from the first, that take w without a class: ``2·log2(low_resolution) - 2``, or 0."""
        return 2 * int(math.log2(self.low_resolution)) - 2 if self.low_resolution else 0

    def map(self, z: Array, labels: Array, class_noise: Array | None = None, update_w_avg: bool = False) -> Array:
        """Map z ``[N, z_dim]`` and labels ``[N]`` to w ``[N, w_dim]``; see `MappingNetwork`."""
        return self.mapping(z, labels, class_noise, update_w_avg)

    def style(self, z: Array, labels: Array, class_noise: Array | None = None) -> Array:
        """Return the style ``[N, z_dim/2 + w_dim]`` of the conditioning ``"content_style"``."""
        return self.mapping(z, labels, class_noise, style_only=True)

    def broadcast(self, w: Array) -> Array:
        """Repeat w for every layer: ``[N, w_dim] → [N, num_ws, w_dim]``."""
        return jnp.broadcast_to(w[:, None, :], (w.shape[0], self.num_ws, w.shape[1]))

    def styles(
        self, z: Array, labels: Array, class_noise: Array | None = None, update_w_avg: bool = False
    ) -> tuple[Array, Array]:
        """Return w of `map` ``[N, w_dim]``, and that of each layer ``[N, num_ws, w_dim]``: without a class in low layers."""
        w = self.map(z, labels, class_noise, update_w_avg)
        ws = self.broadcast(w)
        if self.low_resolution:
            low = self.broadcast(self.mapping(z, labels, unconditional=True))
            ws = jnp.concatenate([low[:, : self.num_low_ws], ws[:, self.num_low_ws :]], axis=1)
        return w, ws

    def synthesize(self, ws: Array, noise_mode: str = "random") -> Array:
        """Generate images ``[N, resolution, resolution, channels]``, nominally in [-1, 1], from ``[N, num_ws, w_dim]``."""
        return self.synthesis(ws, noise_mode)[0]

    def synthesize_both(
        self, ws: Array, noise_mode: str = "random", rows: Rows | None = None
    ) -> tuple[Array, Array | None]:
        """Generate images as `synthesize`, and the same at the low resolution, ``None`` if there is none.

        `rows` says which rows of a batch a micro-batch is, for its noise.
        """
        return self.synthesis(ws, noise_mode, rows)

    def __call__(
        self,
        z: Array,
        labels: Array,
        class_noise: Array | None = None,
        psi: float | Array | None = None,
        noise_mode: str = "random",
    ) -> Array:
        """Generate images from latents and labels; `psi` truncates in W. Class noise is off unless given."""
        _, ws = self.styles(z, labels, class_noise)
        if psi is not None:
            ws = truncate(ws, self.mapping.get_variable("buffers", "w_avg"), psi)
        return self.synthesize(ws, noise_mode)
