# SPDX-License-Identifier: Apache-2.0
"""BigGAN and BigGAN-deep in plain PyTorch: one long file, self-contained so that it can be copied; needs only PyTorch.

    generator = Generator(resolution=128, num_classes=1000, z_dim=120, width=96).eval()
    generator.load_state_dict(torch.load("generator.pt"), strict=True)
    images = generator(torch.randn(8, 120), torch.randint(1000, (8,)))

Keys, shapes and their order are those of BigGAN-PyTorch. Images are float32 ``[N, channels, R, R]`` in [-1, 1].

Every weight except the shared class embedding is spectrally normalised, and comes with the vector ``u0`` of its power
iteration and its last singular value ``sv0``. Each call makes one step from ``u0``, which only training mode stores.
BatchNorm uses batch statistics in training mode and the stored statistics in eval mode.

To load a large network without initialising it first, build it under ``torch.device("meta")`` and load with
``assign=True``.

Source: Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis" (ICLR 2019).
"""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels, as multiples of the width: at 4×4 and after each doubling.
_GENERATOR = {
    8: (4, 4),
    16: (4, 4, 4),
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}
# After each block of BigGAN; after the first convolution and each pair of blocks of BigGAN-deep.
_DISCRIMINATOR = {
    8: (2, 2),
    16: (2, 2, 2),
    32: (2, 2, 2, 2),
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
    512: (1, 1, 2, 4, 8, 8, 16, 16),
}
_DEEP_DISCRIMINATOR = _DISCRIMINATOR | {8: (4, 4), 16: (4, 4, 4), 32: (4, 4, 4, 4)}


class Generator(nn.Module):
    """The generator: latents and labels to images.

    BigGAN splits z into equal chunks, one for the first layer and one for the condition of each block; BigGAN-deep gives
    all of z to each. Conditions are ``[class embedding | latents]``.

    Args:
      resolution: 8 to 512, a power of two.
      num_classes: labels are 0 to `num_classes` - 1.
      z_dim: for BigGAN, a multiple of the number of chunks (4 at 32 px, one more at each doubling).
      width: ch, of which all channel counts are multiples (a multiple of 4 in BigGAN-deep).
      channels: of the images.
      deep: BigGAN-deep rather than BigGAN.
      embedding_dim: of the class embedding.
      attention: whether self-attention is at its published places, or the resolutions whose blocks it follows.
      sn_epsilon: lower bound of norms in spectral normalisation.
      bn_epsilon: added to variances.
      output_bn_epsilon: the same in the last batch normalisation; ``None`` for `bn_epsilon`. Always 1e-5 in
        BigGAN-PyTorch.
      bn_decay: of the stored statistics in training mode.
      standing_statistics: whether checkpoints have statistics as BigGAN-PyTorch stores them with ``--mybn``: sums and
        a count of batches (0: not sums).
    """

    def __init__(
        self,
        resolution: int,
        num_classes: int,
        z_dim: int,
        width: int,
        channels: int = 3,
        deep: bool = False,
        embedding_dim: int = 128,
        attention: bool | tuple[int, ...] = True,
        sn_epsilon: float = 1e-4,
        bn_epsilon: float = 1e-4,
        output_bn_epsilon: float | None = None,
        bn_decay: float = 0.9,
        standing_statistics: bool = False,
    ):
        super().__init__()
        table = _generator_table(resolution, deep, attention)
        chunks = 1 if deep else len(table) + 1
        if z_dim % chunks:
            raise ValueError(f"BigGAN at {resolution} px cuts z into {chunks} equal chunks; z_dim={z_dim} does not do.")
        self.deep, self.chunk = deep, z_dim // chunks
        condition = embedding_dim + self.chunk
        first, last = table[0].in_multiple * width, table[-1].multiple * width
        options = (condition, sn_epsilon, bn_epsilon, bn_decay, standing_statistics)
        self.shared = nn.Embedding(num_classes, embedding_dim)
        nn.init.orthogonal_(self.shared.weight)
        self.linear = Linear(condition if deep else self.chunk, 16 * first, sn_epsilon)
        make = DeepGeneratorBlock if deep else GeneratorBlock
        self.blocks = nn.ModuleList()
        for block in table:
            layers = [make(block.in_multiple * width, block.multiple * width, block.resample, *options)]
            self.blocks.append(_with_attention(layers, block, width, sn_epsilon))
        epsilon = bn_epsilon if output_bn_epsilon is None else output_bn_epsilon
        norm = BatchNorm(last, epsilon, bn_decay, standing_statistics)
        self.output_layer = nn.Sequential(norm, nn.ReLU(), Conv(last, channels, 3, sn_epsilon))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Generate images from latents ``[N, z_dim]`` and class ids ``[N]``."""
        return self.synthesize(z, self.shared(labels))

    def synthesize(self, z: Tensor, embedding: Tensor) -> Tensor:
        """Generate images from class embeddings ``[N, embedding_dim]``: those of ``shared``, or interpolations."""
        if self.deep:
            condition = torch.cat([embedding, z], dim=1)
            first, conditions = condition, [condition] * len(self.blocks)
        else:
            first, *chunks = z.split(self.chunk, dim=1)
            conditions = [torch.cat([embedding, chunk], dim=1) for chunk in chunks]
        x = self.linear(first).view(len(z), -1, 4, 4)
        for (block, *attention), condition in zip(self.blocks, conditions, strict=True):
            x = block(x, condition)
            for layer in attention:
                x = layer(x)
        return torch.tanh(self.output_layer(x))


class Discriminator(nn.Module):
    """The discriminator: images and labels to logits ``[N, 1]``, positive for real: ``linear(h) + ⟨embed(label), h⟩``.

    Args:
      resolution, num_classes, width, channels, deep, attention, sn_epsilon: see `Generator`. BigGAN's channels at 32 px
        (and less) are 2 · `width`, as in PyTorch-StudioGAN; BigGAN-PyTorch has 4 · ch.
    """

    def __init__(
        self,
        resolution: int,
        num_classes: int,
        width: int,
        channels: int = 3,
        deep: bool = False,
        attention: bool | tuple[int, ...] = True,
        sn_epsilon: float = 1e-4,
    ):
        super().__init__()
        table = _discriminator_table(resolution, deep, attention)
        if deep:
            self.input_conv = Conv(channels, table[0].in_multiple * width, 3, sn_epsilon)
        self.deep, self.blocks = deep, nn.ModuleList()
        for i, block in enumerate(table):
            out = block.multiple * width
            if deep:  # each resolution has two blocks, the first of which changes it
                layers = [
                    DeepDiscriminatorBlock(block.in_multiple * width, out, block.resample, sn_epsilon),
                    DeepDiscriminatorBlock(out, out, False, sn_epsilon),
                ]
            else:
                in_width = block.in_multiple * width if i else channels
                layers = [DiscriminatorBlock(in_width, out, block.resample, sn_epsilon, first=i == 0)]
            self.blocks.append(_with_attention(layers, block, width, sn_epsilon))
        self.linear = Linear(out, 1, sn_epsilon)
        self.embed = Embedding(num_classes, out, sn_epsilon)

    def features(self, images: Tensor) -> Tensor:
        """Compute features: images ``[N, channels, R, R]`` → h ``[N, channels of the last block]``."""
        x = self.input_conv(images) if self.deep else images
        for layer in itertools.chain.from_iterable(self.blocks):
            x = layer(x)
        return F.relu(x).sum(dim=(2, 3))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Compute logits of images ``[N, channels, R, R]`` in [-1, 1] with class ids ``[N]``."""
        h = self.features(images)
        return self.linear(h) + (self.embed(labels) * h).sum(dim=1, keepdim=True)


class GeneratorBlock(nn.Module):
    """Block of BigGAN's generator: two 3×3 convolutions and a 1×1 convolution as the shortcut."""

    def __init__(
        self,
        in_width: int,
        width: int,
        resample: bool,
        condition: int,
        sn_epsilon: float,
        bn_epsilon: float,
        bn_decay: float,
        standing_statistics: bool,
    ):
        super().__init__()
        norm = (condition, sn_epsilon, bn_epsilon, bn_decay, standing_statistics)
        self.resample = resample
        self.conv1 = Conv(in_width, width, 3, sn_epsilon)
        self.conv2 = Conv(width, width, 3, sn_epsilon)
        self.conv_sc = Conv(in_width, width, 1, sn_epsilon)
        self.bn1 = ConditionalBatchNorm(in_width, *norm)
        self.bn2 = ConditionalBatchNorm(width, *norm)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Apply to ``[N, in_width, H, W]`` with conditions ``[N, E + L]``; returns ``[N, width, H', W']``."""
        h = F.relu(self.bn1(x, condition))
        h = self.conv1(_upsample(h) if self.resample else h)
        h = self.conv2(F.relu(self.bn2(h, condition)))
        # The 1×1 convolution commutes with upsampling, and costs a quarter before it.
        x = self.conv_sc(x)
        return h + (_upsample(x) if self.resample else x)


class DeepGeneratorBlock(nn.Module):
    """Block of BigGAN-deep's generator: a bottleneck of a quarter of the channels; the shortcut drops channels."""

    def __init__(
        self,
        in_width: int,
        width: int,
        resample: bool,
        condition: int,
        sn_epsilon: float,
        bn_epsilon: float,
        bn_decay: float,
        standing_statistics: bool,
    ):
        super().__init__()
        norm = (condition, sn_epsilon, bn_epsilon, bn_decay, standing_statistics)
        hidden, self.width, self.resample = in_width // 4, width, resample
        self.conv1 = Conv(in_width, hidden, 1, sn_epsilon)
        self.conv2 = Conv(hidden, hidden, 3, sn_epsilon)
        self.conv3 = Conv(hidden, hidden, 3, sn_epsilon)
        self.conv4 = Conv(hidden, width, 1, sn_epsilon)
        self.bn1 = ConditionalBatchNorm(in_width, *norm)
        self.bn2 = ConditionalBatchNorm(hidden, *norm)
        self.bn3 = ConditionalBatchNorm(hidden, *norm)
        self.bn4 = ConditionalBatchNorm(hidden, *norm)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Apply to ``[N, in_width, H, W]`` with conditions ``[N, E + L]``; returns ``[N, width, H', W']``."""
        h = self.conv1(F.relu(self.bn1(x, condition)))
        h = F.relu(self.bn2(h, condition))
        h = self.conv2(_upsample(h) if self.resample else h)
        h = self.conv3(F.relu(self.bn3(h, condition)))
        h = self.conv4(F.relu(self.bn4(h, condition)))
        x = x[:, : self.width]
        return h + (_upsample(x) if self.resample else x)


class DiscriminatorBlock(nn.Module):
    """Block of BigGAN's discriminator: two 3×3 convolutions; the shortcut is 1×1 if channels or resolution change."""

    def __init__(self, in_width: int, width: int, resample: bool, sn_epsilon: float, first: bool):
        super().__init__()
        self.resample, self.first = resample, first
        self.conv1 = Conv(in_width, width, 3, sn_epsilon)
        self.conv2 = Conv(width, width, 3, sn_epsilon)
        if resample or in_width != width:
            self.conv_sc = Conv(in_width, width, 1, sn_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``[N, in_width, H, W]``; returns ``[N, width, H', W']``."""
        h = self.conv1(x if self.first else F.relu(x))  # no ReLU before the image
        h = self.conv2(F.relu(h))
        if self.resample:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + (self.conv_sc(x) if hasattr(self, "conv_sc") else x)


class DeepDiscriminatorBlock(nn.Module):
    """Block of BigGAN-deep's discriminator: a bottleneck of a quarter of the channels; the shortcut adds channels."""

    def __init__(self, in_width: int, width: int, resample: bool, sn_epsilon: float):
        super().__init__()
        hidden, self.resample = width // 4, resample
        self.conv1 = Conv(in_width, hidden, 1, sn_epsilon)
        self.conv2 = Conv(hidden, hidden, 3, sn_epsilon)
        self.conv3 = Conv(hidden, hidden, 3, sn_epsilon)
        self.conv4 = Conv(hidden, width, 1, sn_epsilon)
        if width > in_width:
            self.conv_sc = Conv(in_width, width - in_width, 1, sn_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``[N, in_width, H, W]``; returns ``[N, width, H', W']``."""
        h = self.conv1(F.relu(x))
        h = self.conv2(F.relu(h))
        h = F.relu(self.conv3(F.relu(h)))
        if self.resample:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if hasattr(self, "conv_sc"):
            x = torch.cat([x, self.conv_sc(x)], dim=1)
        return self.conv4(h) + x


class Attention(nn.Module):
    """Self-attention over pixels: ``x + gamma · o(attention)``; keys and values are max-pooled 2×2.

    Source: Zhang et al., "Self-Attention Generative Adversarial Networks" (ICML 2019).
    """

    def __init__(self, width: int, sn_epsilon: float):
        super().__init__()
        if width < 8:
            raise ValueError(f"Attention needs at least 8 channels, not {width}.")
        self.theta = Conv(width, width // 8, 1, sn_epsilon, bias=False)
        self.phi = Conv(width, width // 8, 1, sn_epsilon, bias=False)
        self.g = Conv(width, width // 2, 1, sn_epsilon, bias=False)
        self.o = Conv(width // 2, width, 1, sn_epsilon, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``[N, width, H, W]``; the shape stays."""
        queries = self.theta(x).flatten(2)
        keys, values = (F.max_pool2d(layer(x), 2).flatten(2) for layer in (self.phi, self.g))
        weights = torch.softmax(queries.transpose(1, 2) @ keys, dim=-1)
        attended = (values @ weights.transpose(1, 2)).view(len(x), -1, *x.shape[2:])
        return x + self.gamma * self.o(attended)


class _BatchNorm(nn.Module):
    """Standardisation of channels by batch statistics in training mode and by stored statistics in eval mode."""

    def __init__(self, epsilon: float, decay: float):
        super().__init__()
        self.epsilon, self.decay = epsilon, decay

    def add_statistics(self, width: int, standing_statistics: bool) -> None:
        """Add the buffers; to be called last, since the keys of ``bn`` come after ``gain`` and ``bias``."""
        if standing_statistics:
            self.bn = StandingStatistics(width, self.epsilon, self.decay)
        else:
            self.register_buffer("stored_mean", torch.zeros(width))
            self.register_buffer("stored_var", torch.ones(width))

    def standardize(self, x: Tensor) -> Tensor:
        """Compute ``(x - mean) / √(var + epsilon)``; stored variances are unbiased."""
        if hasattr(self, "bn"):
            return self.bn(x)
        stored = (self.stored_mean, self.stored_var)
        return F.batch_norm(x, *stored, training=self.training, momentum=1 - self.decay, eps=self.epsilon)


class StandingStatistics(nn.Module):
    """Standardisation by statistics that may be sums over `accumulation_counter` batches; stored variances are biased."""

    def __init__(self, width: int, epsilon: float, decay: float):
        super().__init__()
        self.epsilon, self.decay = epsilon, decay
        self.register_buffer("stored_mean", torch.zeros(width))
        self.register_buffer("stored_var", torch.ones(width))
        self.register_buffer("accumulation_counter", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise ``[N, width, H, W]``. Training replaces sums by their means and continues from them."""
        count = self.accumulation_counter.clamp(min=1)
        stored = (self.stored_mean / count, self.stored_var / count)
        if not self.training:
            return F.batch_norm(x, *stored, eps=self.epsilon)
        with torch.no_grad():
            var, mean = torch.var_mean(x, dim=(0, 2, 3), unbiased=False)
            self.stored_mean.copy_(mean.lerp(stored[0], self.decay))
            self.stored_var.copy_(var.lerp(stored[1], self.decay))
            self.accumulation_counter.zero_()
        return F.batch_norm(x, None, None, training=True, eps=self.epsilon)


class BatchNorm(_BatchNorm):
    """Batch normalisation: ``gain · standardized + bias``."""

    def __init__(self, width: int, epsilon: float, decay: float, standing_statistics: bool):
        super().__init__(epsilon, decay)
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.add_statistics(width, standing_statistics)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``[N, width, H, W]``; the shape stays."""
        return torch.addcmul(self.bias[:, None, None], self.standardize(x), self.gain[:, None, None])


class ConditionalBatchNorm(_BatchNorm):
    """Conditional batch normalisation: ``(1 + gain(condition)) · standardized + bias(condition)``."""

    def __init__(
        self, width: int, condition: int, sn_epsilon: float, epsilon: float, decay: float, standing_statistics: bool
    ):
        super().__init__(epsilon, decay)
        self.gain = Linear(condition, width, sn_epsilon, bias=False)
        self.bias = Linear(condition, width, sn_epsilon, bias=False)
        self.add_statistics(width, standing_statistics)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Apply to ``[N, width, H, W]`` with conditions ``[N, E + L]``; the shape stays."""
        gain, bias = (layer(condition)[:, :, None, None] for layer in (self.gain, self.bias))
        return torch.addcmul(bias, self.standardize(x), 1 + gain)


class _SpectralNorm(nn.Module):
    """A weight divided by an estimate of its largest singular value (Miyato et al., ICLR 2018).

    The weight's matrix is ``[outputs, all inputs]``. Weights are initialised orthogonal, biases to zero.
    """

    def __init__(self, shape: tuple[int, ...], epsilon: float, bias: bool):
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(shape)))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.register_buffer("u0", torch.randn(1, shape[0]))
        self.register_buffer("sv0", torch.ones(1))

    def normalized(self) -> Tensor:
        """Divide the weight by ``σ = u W vᵀ`` after one step of power iteration; no gradient flows into the vectors."""
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(self.u0 @ matrix, eps=self.epsilon)
        product = v @ matrix.T
        u = F.normalize(product.detach(), eps=self.epsilon)
        sigma = (product * u).sum()
        if self.training:
            with torch.no_grad():
                self.u0.copy_(u)
                self.sv0.copy_(sigma)
        return self.weight / sigma


class Linear(_SpectralNorm):
    """Dense layer ``x · Wᵀ (+ bias)``."""

    def __init__(self, in_width: int, width: int, sn_epsilon: float, bias: bool = True):
        super().__init__((width, in_width), sn_epsilon, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``[N, in_width]``; returns ``[N, width]``."""
        return F.linear(x, self.normalized(), self.bias)


class Conv(_SpectralNorm):
    """1×1 or 3×3 convolution with zero padding."""

    def __init__(self, in_width: int, width: int, kernel: int, sn_epsilon: float, bias: bool = True):
        super().__init__((width, in_width, kernel, kernel), sn_epsilon, bias)
        self.padding = kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``[N, in_width, H, W]``; returns ``[N, width, H, W]``."""
        return F.conv2d(x, self.normalized(), self.bias, padding=self.padding)


class Embedding(_SpectralNorm):
    """Class embedding."""

    def __init__(self, num_classes: int, width: int, sn_epsilon: float):
        super().__init__((num_classes, width), sn_epsilon, bias=False)

    def forward(self, labels: Tensor) -> Tensor:
        """Look up class ids ``[N]``; returns ``[N, width]``."""
        return F.embedding(labels, self.normalized())


class _Stage(NamedTuple):
    """One entry of ``blocks``."""

    in_multiple: int  # input channels, in multiples of the width
    multiple: int  # output channels
    resample: bool
    attention: bool  # whether self-attention follows


def _generator_table(resolution: int, deep: bool, attention: bool | tuple[int, ...]) -> list[_Stage]:
    channels = _look_up(_GENERATOR, resolution)
    attended = _attention_resolutions(resolution, attention, 128 if resolution == 256 and not deep else 64)
    table, size = [], 4
    for before, after in itertools.pairwise(channels):
        if deep:
            table.append(_Stage(before, before, False, False))
        size *= 2
        table.append(_Stage(before, after, True, size in attended))
    return table


def _discriminator_table(resolution: int, deep: bool, attention: bool | tuple[int, ...]) -> list[_Stage]:
    channels = _look_up(_DEEP_DISCRIMINATOR if deep else _DISCRIMINATOR, resolution)
    attended = _attention_resolutions(resolution, attention, 64)
    table, size = [], resolution
    for before, after in itertools.pairwise(channels if deep else (0, *channels)):
        halve = size > (8 if resolution == 32 else 4)
        size = size // 2 if halve else size
        table.append(_Stage(before, after, halve, size in attended))
    return table


def _attention_resolutions(resolution: int, attention: bool | tuple[int, ...], published: int) -> tuple[int, ...]:
    """Return the resolutions with attention; published up to 64 px is half the resolution, and nothing at 8 px."""
    if not isinstance(attention, bool):
        return tuple(attention)
    if not attention or resolution == 8:
        return ()
    return (resolution // 2,) if resolution <= 64 else (published,)


def _look_up(table: dict[int, tuple[int, ...]], resolution: int) -> tuple[int, ...]:
    if resolution not in table:
        raise ValueError(f"BigGAN has no networks for {resolution} px; choose among {', '.join(map(str, table))}.")
    return table[resolution]


def _with_attention(layers: list[nn.Module], stage: _Stage, width: int, sn_epsilon: float) -> nn.ModuleList:
    return nn.ModuleList([*layers, Attention(stage.multiple * width, sn_epsilon)] if stage.attention else layers)


def _upsample(x: Tensor) -> Tensor:
    """Double the resolution by repeating pixels."""
    return F.interpolate(x, scale_factor=2, mode="nearest")
