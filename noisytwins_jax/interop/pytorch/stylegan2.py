# SPDX-License-Identifier: Apache-2.0
"""Conditional StyleGAN2 in plain PyTorch: one long file, self-contained so that it can be copied; needs only PyTorch.

    generator = Generator(resolution=64, num_classes=1010, mapping_layers=2)
    generator.load_state_dict(torch.load("generator.pt"), strict=True)
    images = generator(torch.randn(8, 512), torch.randint(1010, (8,)), truncation_psi=0.7)

Keys, shapes and their order are those of NoisyTwins, PyTorch-StudioGAN and stylegan2-ada-pytorch. Images are float32
``[N, channels, R, R]``, nominally in [-1, 1]. Channels at resolution r: ``min(channel_base / r, channel_max)``. Weights
are stored raw and scaled at run time (equalised learning rate); filters are stored in every layer that resamples.

Sources: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (CVPR 2020); Karras et al., "Training
Generative Adversarial Networks with Limited Data" (NeurIPS 2020); Rangwani et al., "NoisyTwins" (CVPR 2023).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Architecture = Literal["orig", "skip", "resnet"]


class Generator(nn.Module):
    """The generator: latents and labels to images.

    Its parts can be called separately: ``ws = generator.mapping(z, labels)`` and ``generator.synthesis(ws)``. To mix
    styles, concatenate `ws` of several calls: ``torch.cat([ws1[:, :4], ws2[:, 4:]], dim=1)``.

    Args:
      resolution: of the images, a power of two from 8.
      num_classes: 0 for an unconditional generator.
      channels: of the images.
      z_dim, w_dim: dimensions of the latents and of W.
      mapping_layers: number of layers of the mapping network.
      channel_base, channel_max: see the module's docstring.
      architecture: the output of the blocks: ``"skip"`` (images are summed), ``"resnet"`` or ``"orig"`` (the last block's).
      conv_clamp: activations are clamped to ± this value, or ``None``.
      w_avg_decay: decay of the running mean of w (0.998 in NoisyTwins, 0.995 in stylegan2-ada-pytorch).
    """

    def __init__(
        self,
        resolution: int,
        num_classes: int,
        channels: int = 3,
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_layers: int = 8,
        channel_base: int = 16384,
        channel_max: int = 512,
        architecture: Architecture = "skip",
        conv_clamp: float | None = None,
        w_avg_decay: float = 0.998,
    ):
        super().__init__()
        widths = _widths(resolution, channel_base, channel_max, architecture)
        self.num_ws = 2 * len(widths)
        self.synthesis = SynthesisNetwork(widths, channels, w_dim, architecture, conv_clamp)
        self.mapping = MappingNetwork(z_dim, num_classes, w_dim, mapping_layers, self.num_ws, w_avg_decay)

    def forward(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: str = "random",
        class_noise: Tensor | None = None,
    ) -> Tensor:
        """Generate images from latents ``[N, z_dim]`` and labels; see `MappingNetwork` and `SynthesisNetwork`."""
        ws = self.mapping(z, labels, truncation_psi, truncation_cutoff, class_noise)
        return self.synthesis(ws, noise_mode)


class Discriminator(nn.Module):
    """The discriminator: images and labels to logits ``[N, 1]``, positive for real.

    The logit is ``⟨out(h), class vector⟩ / √dim``, where h are the image's features (``out(h)`` without classes).

    Args:
      architecture: of the blocks: ``"resnet"``, ``"orig"`` (no shortcuts) or ``"skip"`` (images enter every block).
      mapping_layers: number of layers of the class mapping (8 in every published configuration).
      mbstd_group_size: group size of the minibatch standard deviation; divides the batch size or exceeds it.
      naming: name and position of the last layer: ``linear1`` in ``"studiogan"`` (and NoisyTwins), ``b4.out`` in
        ``"nvidia"``.
      others: see `Generator`.
    """

    def __init__(
        self,
        resolution: int,
        num_classes: int,
        channels: int = 3,
        channel_base: int = 16384,
        channel_max: int = 512,
        architecture: Architecture = "resnet",
        mapping_layers: int = 8,
        mbstd_group_size: int = 4,
        conv_clamp: float | None = None,
        naming: Literal["studiogan", "nvidia"] = "studiogan",
    ):
        super().__init__()
        if naming not in ("studiogan", "nvidia"):
            raise ValueError(f"naming is 'studiogan' or 'nvidia', not {naming!r}.")
        widths = _widths(resolution, channel_base, channel_max, architecture)
        width = widths[4]
        self.num_classes, self.resolutions, self.nvidia = num_classes, list(widths)[:0:-1], naming == "nvidia"
        for r in self.resolutions:
            first = r == resolution
            block = DiscriminatorBlock(channels, widths[r], widths[r // 2], architecture, first, conv_clamp)
            self.add_module(f"b{r}", block)
        outputs = width if num_classes else 1
        epilogue = DiscriminatorEpilogue(channels, width, architecture, mbstd_group_size, conv_clamp)
        mapping = MappingNetwork(0, num_classes, width, mapping_layers) if num_classes else None
        # Their order decides the order of the keys, and so of the parameters in an optimiser's state.
        if self.nvidia:
            if mapping is not None:
                self.mapping = mapping
            self.b4 = epilogue
            self.b4.out = FullyConnected(width, outputs)
        else:
            self.b4 = epilogue
            self.linear1 = FullyConnected(width, outputs)
            if mapping is not None:
                self.mapping = mapping

    def features(self, images: Tensor) -> Tensor:
        """Compute features: images ``[N, channels, R, R]`` → h ``[N, channels at 4×4]``."""
        x, image = None, images
        for r in self.resolutions:
            x, image = getattr(self, f"b{r}")(x, image)
        return self.b4(x, image)

    def forward(self, images: Tensor, labels: Tensor | None = None, class_noise: Tensor | None = None) -> Tensor:
        """Compute logits of images ``[N, channels, R, R]``; for labels and class noise see `MappingNetwork`."""
        output = (self.b4.out if self.nvidia else self.linear1)(self.features(images))
        if not self.num_classes:
            return output
        class_vectors = self.mapping(None, labels, class_noise=class_noise)
        return (output * class_vectors).sum(dim=1, keepdim=True) / math.sqrt(output.shape[1])


class MappingNetwork(nn.Module):
    """The mapping network: latents and class to W.

    Args:
      z_dim: 0 for none (the discriminator's mapping).
      num_classes: 0 for none.
      w_dim: width of the class embedding, of every layer and of the result.
      num_layers: leaky-ReLU layers with learning-rate multiplier 0.01.
      num_ws: copies of w to return, or ``None`` for one without an axis of copies and without truncation.
      w_avg_decay: decay of the running mean of w.
    """

    def __init__(
        self,
        z_dim: int,
        num_classes: int,
        w_dim: int,
        num_layers: int,
        num_ws: int | None = None,
        w_avg_decay: float = 0.998,
    ):
        super().__init__()
        self.num_classes, self.num_layers, self.num_ws, self.w_avg_decay = num_classes, num_layers, num_ws, w_avg_decay
        if num_classes:
            self.embed = FullyConnected(num_classes, w_dim)
        width = z_dim + (w_dim if num_classes else 0)
        for i in range(num_layers):
            self.add_module(f"fc{i}", FullyConnected(width, w_dim, lrelu=True, lr_multiplier=0.01))
            width = w_dim
        if num_ws is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor | None,
        labels: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        class_noise: Tensor | None = None,
        update_w_avg: bool = False,
    ) -> Tensor:
        """Compute w ``[N, num_ws, w_dim]``, or ``[N, w_dim]`` without `num_ws`.

        Args:
          z: ``[N, z_dim]`` standard normal, or ``None``.
          labels: class ids ``[N]``, or weights of the classes ``[N, num_classes]`` (one-hot); ``None`` without classes.
          truncation_psi: moves w to ``w_avg + truncation_psi · (w - w_avg)``.
          truncation_cutoff: truncates only this many copies, from the first; ``None`` for all.
          class_noise: ``[N, w_dim]``, added to the class embedding before it is normalised (NoisyTwins, eq. 3).
          update_w_avg: whether to move w_avg towards the mean of this batch.
        """
        inputs = [] if z is None else [_normalize(z)]
        if self.num_classes:
            if labels.ndim == 1:
                labels = F.one_hot(labels.long(), self.num_classes).to(self.embed.weight.dtype)
            embedding = self.embed(labels)
            inputs.append(_normalize(embedding if class_noise is None else embedding + class_noise))
        w = torch.cat(inputs, dim=1)
        for i in range(self.num_layers):
            w = getattr(self, f"fc{i}")(w)
        if update_w_avg:
            self.w_avg.copy_(w.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_decay))
        if self.num_ws is None:
            return w
        ws = w[:, None].expand(-1, self.num_ws, -1)
        if truncation_psi == 1.0:
            return ws
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], truncation_psi), ws[:, cutoff:]], dim=1)


class SynthesisNetwork(nn.Module):
    """The synthesis network: W to images; `widths` maps each block's resolution, from 4 on, to its channels."""

    def __init__(
        self, widths: dict[int, int], channels: int, w_dim: int, architecture: Architecture, clamp: float | None
    ):
        super().__init__()
        self.resolutions = list(widths)
        for r in self.resolutions:
            to_rgb = architecture == "skip" or r == self.resolutions[-1]
            block = SynthesisBlock(r, widths.get(r // 2), widths[r], w_dim, channels, architecture, to_rgb, clamp)
            self.add_module(f"b{r}", block)

    def forward(self, ws: Tensor, noise_mode: str = "random") -> Tensor:
        """Synthesise images ``[N, channels, R, R]`` from `ws` ``[N, num_ws, w_dim]``.

        `noise_mode` is ``"random"`` (new noise), ``"const"`` (the stored noise) or ``"none"``.
        """
        if noise_mode not in ("random", "const", "none"):
            raise ValueError(f"noise_mode is 'random', 'const' or 'none', not {noise_mode!r}.")
        x = image = None
        for i, r in enumerate(self.resolutions):
            # Two convolutions per block (one at 4×4); the image layer shares its w with the next block's first.
            x, image = getattr(self, f"b{r}")(x, image, ws[:, max(2 * i - 1, 0) : 2 * i + 2], noise_mode)
        return image


class SynthesisBlock(nn.Module):
    """One resolution of the generator."""

    def __init__(
        self,
        resolution: int,
        in_width: int | None,
        width: int,
        w_dim: int,
        channels: int,
        architecture: Architecture,
        to_rgb: bool,
        clamp: float | None,
    ):
        super().__init__()
        self.resnet, self.to_rgb, self.first = architecture == "resnet", to_rgb, in_width is None
        if self.first:
            self.const = nn.Parameter(torch.randn(width, resolution, resolution))
        _register_filter(self)
        if not self.first:
            self.conv0 = SynthesisLayer(in_width, width, w_dim, resolution, clamp, up=True)
        self.conv1 = SynthesisLayer(width, width, w_dim, resolution, clamp)
        if to_rgb:
            self.torgb = ToRGB(width, channels, w_dim, clamp)
        if self.resnet and not self.first:
            self.skip = Conv(in_width, width, 1, bias=False, resample="up")

    def forward(self, x: Tensor | None, image: Tensor | None, ws: Tensor, noise_mode: str) -> tuple[Tensor, Tensor]:
        """Return activations and image, given both at half the resolution and w ``[N, 2 or 3, w_dim]`` of each layer."""
        if self.first:
            x = self.conv1(self.const.expand(len(ws), -1, -1, -1), ws[:, 0], noise_mode)
        elif self.resnet:
            skip = self.skip(x, gain=math.sqrt(0.5))
            x = self.conv0(x, ws[:, 0], noise_mode)
            x = skip + self.conv1(x, ws[:, 1], noise_mode, gain=math.sqrt(0.5))
        else:
            x = self.conv1(self.conv0(x, ws[:, 0], noise_mode), ws[:, 1], noise_mode)
        if image is not None:
            image = _upsample(image, self.resample_filter)
        if self.to_rgb:
            rgb = self.torgb(x, ws[:, -1])
            image = rgb if image is None else image + rgb
        return x, image


class SynthesisLayer(nn.Module):
    """Style-modulated 3×3 convolution with noise, bias and leaky ReLU.

    Scaling, a convolution shared by the batch and demodulation are together equivalent to one kernel per sample.
    """

    def __init__(self, in_width: int, width: int, w_dim: int, resolution: int, clamp: float | None, up: bool = False):
        super().__init__()
        self.clamp, self.up = clamp, up
        self.weight = nn.Parameter(torch.randn(width, in_width, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(width))
        _register_filter(self)
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.affine = FullyConnected(w_dim, in_width, bias_init=1.0)

    def forward(self, x: Tensor, w: Tensor, noise_mode: str, gain: float = 1.0) -> Tensor:
        """Apply to ``[N, in_width, H, W]`` and w ``[N, w_dim]``; returns ``[N, width, H', W']``."""
        style = self.affine(w)
        demodulation = torch.rsqrt(style.square() @ self.weight.square().sum(dim=(2, 3)).T + 1e-8)
        x = x * style[:, :, None, None]
        x = _conv_up(x, self.weight, self.resample_filter) if self.up else F.conv2d(x, self.weight, padding=1)
        x = x * demodulation[:, :, None, None]
        if noise_mode == "random":
            x = x + torch.randn_like(x[:, :1]) * self.noise_strength
        elif noise_mode == "const":
            x = x + self.noise_const * self.noise_strength
        return _activate(x, self.bias, True, gain, self.clamp)


class ToRGB(nn.Module):
    """Modulated 1×1 convolution to image channels, without demodulation or noise."""

    def __init__(self, in_width: int, channels: int, w_dim: int, clamp: float | None):
        super().__init__()
        self.clamp = clamp
        self.weight = nn.Parameter(torch.randn(channels, in_width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.affine = FullyConnected(w_dim, in_width, bias_init=1.0)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Apply to ``[N, in_width, H, W]`` and w ``[N, w_dim]``; returns ``[N, channels, H, W]``."""
        # With few outputs, one kernel per sample costs less than scaling all activations.
        n, in_width, height, width = x.shape
        style = self.affine(w) / math.sqrt(in_width)
        kernels = self.weight[:, :, 0, 0] * style[:, None]
        rgb = (kernels @ x.flatten(2)).view(n, -1, height, width)
        return _activate(rgb, self.bias, False, 1.0, self.clamp)


class DiscriminatorBlock(nn.Module):
    """One resolution of the discriminator, which halves it."""

    def __init__(
        self,
        channels: int,
        width: int,
        out_width: int,
        architecture: Architecture,
        first: bool,
        clamp: float | None,
    ):
        super().__init__()
        self.architecture = architecture
        _register_filter(self)
        if first or architecture == "skip":
            self.fromrgb = Conv(channels, width, 1, lrelu=True, clamp=clamp)
        self.conv0 = Conv(width, width, 3, lrelu=True, clamp=clamp)
        self.conv1 = Conv(width, out_width, 3, lrelu=True, clamp=clamp, resample="down")
        if architecture == "resnet":
            self.skip = Conv(width, out_width, 1, bias=False, resample="down")

    def forward(self, x: Tensor | None, image: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return activations and (if still needed) the image at half the resolution, given both at this one."""
        if hasattr(self, "fromrgb"):
            y = self.fromrgb(image)
            x = y if x is None else x + y
            image = _downsample(image, self.resample_filter) if self.architecture == "skip" else None
        if self.architecture != "resnet":
            return self.conv1(self.conv0(x)), image
        return self.skip(x, gain=math.sqrt(0.5)) + self.conv1(self.conv0(x), gain=math.sqrt(0.5)), image


class DiscriminatorEpilogue(nn.Module):
    """The last layers: activations ``[N, width, 4, 4]`` to features ``[N, width]``."""

    def __init__(
        self, channels: int, width: int, architecture: Architecture, mbstd_group_size: int, clamp: float | None
    ):
        super().__init__()
        self.mbstd_group_size = mbstd_group_size
        if architecture == "skip":
            self.fromrgb = Conv(channels, width, 1, lrelu=True)
        self.conv = Conv(width + (mbstd_group_size > 1), width, 3, lrelu=True, clamp=clamp)
        self.fc = FullyConnected(16 * width, width, lrelu=True)

    def forward(self, x: Tensor, image: Tensor | None) -> Tensor:
        """Compute features; `image` ``[N, channels, 4, 4]`` is used by ``"skip"``."""
        if hasattr(self, "fromrgb"):
            x = x + self.fromrgb(image)
        if self.mbstd_group_size > 1:
            x = _append_minibatch_stddev(x, self.mbstd_group_size)
        return self.fc(self.conv(x).flatten(1))


class Conv(nn.Module):
    """3×3 or 1×1 convolution with equalised learning rate, which may double or halve the resolution."""

    def __init__(
        self,
        in_width: int,
        width: int,
        kernel: int,
        bias: bool = True,
        lrelu: bool = False,
        clamp: float | None = None,
        resample: Literal["up", "down"] | None = None,
    ):
        super().__init__()
        self.resample, self.lrelu, self.clamp = resample, lrelu, clamp
        self.weight = nn.Parameter(torch.randn(width, in_width, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        _register_filter(self)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """Apply to ``[N, in_width, H, W]``; returns ``[N, width, H', W']`` times `gain`."""
        weight = self.weight / math.sqrt(self.weight[0].numel())
        kernel = weight.shape[-1]
        if self.resample is None:
            x = F.conv2d(x, weight, padding=kernel // 2)
        elif self.resample == "down":
            # A 1×1 convolution needs only every second pixel of the filtered activations.
            x = _filter(x, self.resample_filter, kernel // 2 + 1, stride=1 if kernel == 3 else 2)
            x = F.conv2d(x, weight, stride=2 if kernel == 3 else 1)
        elif kernel == 1:
            x = _upsample(F.conv2d(x, weight), self.resample_filter)
        else:
            x = _conv_up(x, weight, self.resample_filter)
        return _activate(x, self.bias, self.lrelu, gain, self.clamp)


class FullyConnected(nn.Module):
    """Dense layer ``x · (weight · lr_multiplier / √in)ᵀ + bias · lr_multiplier``, optionally with leaky ReLU."""

    def __init__(
        self,
        in_width: int,
        width: int,
        lrelu: bool = False,
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ):
        super().__init__()
        self.lrelu, self.lr_multiplier = lrelu, lr_multiplier
        self.weight = nn.Parameter(torch.randn(width, in_width) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((width,), bias_init))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``[N, in_width]``; returns ``[N, width]``."""
        weight = self.weight * (self.lr_multiplier / math.sqrt(x.shape[1]))
        x = F.linear(x, weight, self.bias * self.lr_multiplier)
        return _activate(x, None, self.lrelu, 1.0, None)


def _widths(resolution: int, channel_base: int, channel_max: int, architecture: str) -> dict[int, int]:
    """Return the channels at each resolution, from 4 on."""
    if resolution < 8 or resolution & (resolution - 1):
        raise ValueError(f"resolution is a power of two from 8, not {resolution}.")
    if architecture not in ("orig", "skip", "resnet"):
        raise ValueError(f"architecture is 'orig', 'skip' or 'resnet', not {architecture!r}.")
    return {2**i: min(channel_base // 2**i, channel_max) for i in range(2, resolution.bit_length())}


def _register_filter(module: nn.Module) -> None:
    """Add the low-pass filter, ``[1, 3, 3, 1]`` along each axis with sum 1, which public checkpoints have in every layer."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    module.register_buffer("resample_filter", torch.outer(taps, taps) / 64)


def _filter(x: Tensor, taps: Tensor, padding: int, stride: int = 1, gain: float = 1.0) -> Tensor:
    """Filter each channel, with zero padding."""
    kernel = (taps * gain).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, kernel, stride=stride, padding=padding, groups=x.shape[1])


def _downsample(x: Tensor, taps: Tensor) -> Tensor:
    """Filter, and halve height and width."""
    return _filter(x, taps, padding=1, stride=2)


def _upsample(x: Tensor, taps: Tensor) -> Tensor:
    """Double height and width by inserting zeros, and filter."""
    kernel = (taps * 4).expand(x.shape[1], 1, -1, -1)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


def _conv_up(x: Tensor, weight: Tensor, taps: Tensor) -> Tensor:
    """Double height and width by a transposed 3×3 convolution, and filter."""
    return _filter(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), taps, padding=1, gain=4)


def _activate(x: Tensor, bias: Tensor | None, lrelu: bool, gain: float, clamp: float | None) -> Tensor:
    """Add a bias to each channel, apply leaky ReLU (slope 0.2, gain √2) and `gain`, clamp to ± `clamp` · `gain`."""
    if bias is not None:
        x = x + bias[:, None, None]
    if lrelu:
        x, scale = F.leaky_relu(x, 0.2), gain * math.sqrt(2)
    else:
        scale = gain
    if scale != 1.0:
        x = x * scale
    return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)


def _normalize(x: Tensor) -> Tensor:
    """Scale each row to a mean square of 1."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def _append_minibatch_stddev(x: Tensor, group_size: int) -> Tensor:
    """Append a channel: the standard deviation within groups of samples, averaged over channels and pixels.

    With n groups, group j consists of the samples j, j + n, j + 2n, ….
    """
    size = len(x)
    group = min(group_size, size)
    if size % group:
        raise ValueError(f"A batch of {size} cannot be cut into groups of mbstd_group_size={group_size}.")
    variance = x.view(group, -1, *x.shape[1:]).var(dim=0, unbiased=False)
    deviation = (variance + 1e-8).sqrt().mean(dim=(1, 2, 3)).repeat(group)
    return torch.cat([x, deviation[:, None, None, None].expand(-1, 1, *x.shape[2:])], dim=1)
