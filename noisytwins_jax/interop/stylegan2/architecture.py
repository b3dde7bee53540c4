"""The architecture of a StyleGAN2 network from the keys and shapes of its state dict, and the reverse.

Keys are those of StyleGAN2-ADA in PyTorch (``nvidia``) or of StudioGAN and NoisyTwins (``studiogan``). Generators have
the same keys in both. A discriminator's output layer is ``b4.out`` in the former and ``linear1`` in the latter, which may
have a second one, ``linear2``. Shapes are PyTorch's: dense weights ``[out, in]``, convolutions OIHW.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from noisytwins_jax.models.stylegan2.resolutions import block_resolutions
from noisytwins_jax.utils.errors import UserError, did_you_mean

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Entries = Iterator[tuple[str, Shape]]

OUTPUTS = {"studiogan": "linear1", "nvidia": "b4.out"}  # a discriminator's output layer
EMBEDDING_OUTPUT = "linear2"
FILTER = "resample_filter"  # many copies of the one filter that all these networks have
WAY_OUT = (
    "give the whole state dict of a StyleGAN2 network as StudioGAN, NoisyTwins or StyleGAN2-ADA for PyTorch save it"
)

_BLOCK = re.compile(r"(?:synthesis\.)?b(\d{1,6})\.")
_LAYER = re.compile(r"mapping\.fc(\d+)\.")


@dataclass(frozen=True)
class Architecture:
    """The options that determine every key and shape of a network.

    Attributes:
      role: ``"generator"`` or ``"discriminator"``.
      resolution, channels, num_classes: of the images and labels.
      channel_base, channel_max: activations at resolution r have ``min(channel_base // r, channel_max)`` channels; the
        smallest base that gives them.
      blocks: ``"skip"``, ``"resnet"`` or ``"orig"``.
      mapping_layers: 0 for a discriminator without classes.
      z_dim, w_dim: of a generator.
      embedding_heads: whether a discriminator has the two outputs of D2D-CE and 2C.
      minibatch_stddev: whether a discriminator has the minibatch standard deviation channel.
    """

    role: str
    resolution: int
    channels: int
    num_classes: int
    channel_base: int
    channel_max: int
    blocks: str
    mapping_layers: int
    z_dim: int = 0
    w_dim: int = 0
    embedding_heads: bool = False
    minibatch_stddev: bool = True

    def features(self, resolution: int) -> int:
        """Return the number of channels of the activations at a resolution."""
        return min(self.channel_base // resolution, self.channel_max)

    def fields(self) -> dict[str, Any]:
        """Return the configuration fields that follow from the tensors, by dotted name.

        D2D-CE and 2C have the same tensors: for both, D2D-CE is set with its published weight.
        """
        fields = {"network": "stylegan2", "data.resolution": self.resolution}
        fields |= {
            f"{self.role}.channel_base": self.channel_base,
            f"{self.role}.channel_max": self.channel_max,
            f"{self.role}.architecture": self.blocks,
        }
        if self.role == "generator":
            fields |= {"generator.z_dim": self.z_dim, "generator.w_dim": self.w_dim}
        if self.role == "generator" or (self.num_classes and not self.embedding_heads):
            fields[f"{self.role}.mapping_layers"] = self.mapping_layers
        if self.embedding_heads:
            fields["d2dce.weight"] = 0.25
        if not self.minibatch_stddev:
            fields["discriminator.mbstd_group_size"] = 1
        return fields

    def shapes(self, naming: str) -> dict[str, Shape]:
        """Return the shape of every tensor of the state dict by key, in its order.

        Raises:
          UserError: the naming does not exist, or has no names for these heads.
        """
        check_naming(naming)
        if self.embedding_heads and naming != "studiogan":
            raise UserError(
                "StyleGAN2-ADA has no discriminator with the outputs of D2D-CE or 2C; choose the naming studiogan."
            )
        return dict(_generator(self) if self.role == "generator" else _discriminator(self, naming))


def check_naming(naming: str) -> None:
    """Raise a `UserError` unless the naming is known."""
    if naming not in OUTPUTS:
        raise UserError(f"There is no naming {naming!r} of StyleGAN2's tensors; {did_you_mean(naming, OUTPUTS)}")


def detect_naming(keys: Iterable[str]) -> str:
    """Return ``"nvidia"`` or ``"studiogan"``; for generators, whose keys are the same in both, the latter."""
    return "nvidia" if any(key.startswith("b4.out.") for key in keys) else "studiogan"


def matches(keys: Iterable[str]) -> bool:
    """Return whether the keys of a state dict are StyleGAN2's: named by resolution, ``b4.…`` or ``synthesis.b4.…``."""
    return any(_BLOCK.match(key) for key in keys)


def detect_architecture(shapes: Shapes) -> Architecture:
    """Return the architecture that fits a few decisive shapes; the others are not checked.

    Raises:
      UserError: a decisive tensor is missing, or this project has no such network.
    """
    role = "generator" if any(key.startswith("synthesis.") for key in shapes) else "discriminator"
    numbers = {int(match[1]) for match in map(_BLOCK.match, shapes) if match}
    resolution = max((n for n in numbers if n >= 8 and n.bit_count() == 1), default=8)
    return (_read_generator if role == "generator" else _read_discriminator)(_Sizes(role, shapes), resolution)


class _Sizes:
    """Sizes of tensors by key and axis; a missing tensor is a `UserError`."""

    def __init__(self, role: str, shapes: Shapes):
        self.role, self.shapes = role, shapes

    def __call__(self, key: str, axis: int) -> int:
        shape = self.shapes.get(key)
        if shape is None:
            raise UserError(f"The {self.role} lacks {key}; {WAY_OUT}.")
        if axis >= len(shape):
            raise UserError(f"The {self.role}'s {key} has shape {list(shape)}, too few dimensions; {WAY_OUT}.")
        return shape[axis]

    def has(self, module: str) -> bool:
        return any(key.startswith(f"{module}.") for key in self.shapes)

    def blocks(self, skip: str, image: str) -> str:
        """Return the kind of blocks; only ``resnet`` has the module `skip`, and of the others only ``skip`` has `image`."""
        return "resnet" if self.has(skip) else "skip" if self.has(image) else "orig"

    def classes(self) -> int:
        return self("mapping.embed.weight", 1) if self.has("mapping.embed") else 0

    def mapping_layers(self) -> int:
        return len({match[1] for match in map(_LAYER.match, self.shapes) if match})

    def channel_rule(self, features: dict[int, tuple[str, int]]) -> dict[str, int]:
        """Return channel_base and channel_max, given a key and its number of channels at each resolution."""
        base = max(resolution * count for resolution, (_, count) in features.items())
        maximum = max(count for _, count in features.values())
        for resolution, (key, count) in features.items():
            if count != min(base // resolution, maximum):
                raise UserError(
                    f"The {self.role}'s {key} says that there are {count} channels at {resolution}x{resolution}, which "
                    "no rule min(channel_base / resolution, channel_max) gives together with the others; this project has "
                    "no such network."
                )
        return {"channel_base": base, "channel_max": maximum}


def _read_generator(size: _Sizes, resolution: int) -> Architecture:
    features = {}
    for r in block_resolutions(resolution):
        key = f"synthesis.b{r}.conv1.weight"
        features[r] = (key, size(key, 0))
    num_classes, w_dim = size.classes(), size("mapping.w_avg", 0)
    z_dim = size("mapping.fc0.weight", 1) - (w_dim if num_classes else 0)
    if z_dim < 1:
        raise UserError(f"The generator's mapping.fc0.weight leaves no inputs for latents; {WAY_OUT}.")
    return Architecture(
        role="generator",
        resolution=resolution,
        channels=size(f"synthesis.b{resolution}.torgb.weight", 0),
        num_classes=num_classes,
        **size.channel_rule(features),
        blocks=size.blocks("synthesis.b8.skip", "synthesis.b4.torgb"),
        mapping_layers=size.mapping_layers(),
        z_dim=z_dim,
        w_dim=w_dim,
    )


def _read_discriminator(size: _Sizes, resolution: int) -> Architecture:
    features = {}
    for r in reversed(block_resolutions(resolution)):
        key, axis = ("b4.fc.weight", 0) if r == 4 else (f"b{r}.conv0.weight", 1)
        features[r] = (key, size(key, axis))
    num_classes, embedding_heads = size.classes(), size.has(EMBEDDING_OUTPUT)
    _check_heads(size, num_classes)
    return Architecture(
        role="discriminator",
        resolution=resolution,
        channels=size(f"b{resolution}.fromrgb.weight", 1),
        num_classes=num_classes,
        **size.channel_rule(features),
        blocks=size.blocks("b8.skip", "b4.fromrgb"),
        mapping_layers=0 if not num_classes else 1 if embedding_heads else size.mapping_layers(),
        embedding_heads=embedding_heads,
        minibatch_stddev=size("b4.conv.weight", 1) != features[4][1],
    )


def _check_heads(size: _Sizes, num_classes: int) -> None:
    """Raise a `UserError` for the outputs of StudioGAN's other ways to condition a discriminator."""
    key = f"{OUTPUTS[detect_naming(size.shapes)]}.weight"
    if num_classes:
        return
    if size.has(EMBEDDING_OUTPUT):
        key, what = f"{EMBEDDING_OUTPUT}.weight", "without mapping.embed.weight is an output of AC or PD"
    elif (count := size(key, 0)) != 1:
        what = f"has {count} outputs, as MD and MH have"
    else:
        return
    raise UserError(
        f"The discriminator's {key} {what}, which this project's discriminator does not have; take a model that is "
        "conditioned by SPD, D2DCE, 2C or not at all."
    )


def _filter(name: str) -> tuple[str, Shape]:
    return f"{name}.{FILTER}", (4, 4)


def _dense(name: str, inputs: int, outputs: int) -> Entries:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _conv(name: str, inputs: int, outputs: int, kernel: int, bias: bool = True) -> Entries:
    yield f"{name}.weight", (outputs, inputs, kernel, kernel)
    if bias:
        yield f"{name}.bias", (outputs,)
    yield _filter(name)


def _mapping(a: Architecture, inputs: int, width: int) -> Entries:
    if a.num_classes:
        yield from _dense("mapping.embed", a.num_classes, width)
        inputs += width
    for i in range(a.mapping_layers):
        yield from _dense(f"mapping.fc{i}", width if i else inputs, width)


def _modulated(name: str, inputs: int, outputs: int, resolution: int, w_dim: int) -> Entries:
    yield f"{name}.weight", (outputs, inputs, 3, 3)
    yield f"{name}.noise_strength", ()
    yield f"{name}.bias", (outputs,)
    yield _filter(name)
    yield f"{name}.noise_const", (resolution, resolution)
    yield from _dense(f"{name}.affine", w_dim, inputs)


def _generator(a: Architecture) -> Entries:
    for r in block_resolutions(a.resolution):
        name, features = f"synthesis.b{r}", a.features(r)
        if r == 4:
            yield f"{name}.const", (features, 4, 4)
        yield _filter(name)
        if r > 4:
            yield from _modulated(f"{name}.conv0", a.features(r // 2), features, r, a.w_dim)
        yield from _modulated(f"{name}.conv1", features, features, r, a.w_dim)
        if a.blocks == "skip" or r == a.resolution:
            yield f"{name}.torgb.weight", (a.channels, features, 1, 1)
            yield f"{name}.torgb.bias", (a.channels,)
            yield from _dense(f"{name}.torgb.affine", a.w_dim, features)
        if a.blocks == "resnet" and r > 4:
            yield from _conv(f"{name}.skip", a.features(r // 2), features, 1, bias=False)
    yield "mapping.w_avg", (a.w_dim,)
    yield from _mapping(a, a.z_dim, a.w_dim)


def _discriminator(a: Architecture, naming: str) -> Entries:
    width = a.features(4)
    for r in block_resolutions(a.resolution)[:0:-1]:
        name, features, halved = f"b{r}", a.features(r), a.features(r // 2)
        yield _filter(name)
        if a.blocks == "skip" or r == a.resolution:
            yield from _conv(f"{name}.fromrgb", a.channels, features, 1)
        yield from _conv(f"{name}.conv0", features, features, 3)
        yield from _conv(f"{name}.conv1", features, halved, 3)
        if a.blocks == "resnet":
            yield from _conv(f"{name}.skip", features, halved, 1, bias=False)
    mapping = list(_mapping(a, 0, width))
    if naming == "nvidia":  # which builds the mapping before the last block
        yield from mapping
    if a.blocks == "skip":
        yield from _conv("b4.fromrgb", a.channels, width, 1)
    yield from _conv("b4.conv", width + a.minibatch_stddev, width, 3)
    yield from _dense("b4.fc", 16 * width, width)
    yield from _dense(OUTPUTS[naming], width, width if a.num_classes and not a.embedding_heads else 1)
    if a.embedding_heads:
        yield from _dense(EMBEDDING_OUTPUT, width, width)
    if naming == "studiogan":
        yield from mapping
