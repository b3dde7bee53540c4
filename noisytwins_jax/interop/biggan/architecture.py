"""The architecture of a BigGAN network from its tensors: blocks from the names, widths from the shapes."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from noisytwins_jax.models.biggan import Discriminator, Generator
from noisytwins_jax.models.biggan.architectures import Block, discriminator_blocks, generator_blocks
from noisytwins_jax.utils.errors import UserError

Path = tuple[str, ...]  # of a Flax variable, with its collection: ("params", "blocks_0", "conv1", "weight")
Shape = tuple[int, ...]

_RESOLUTIONS = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Structure:
    """The part of an architecture that follows from the names of tensors.

    Attributes:
      role: ``"generator"`` or ``"discriminator"``.
      deep: BigGAN-deep rather than BigGAN.
      resolution: of the images.
      attention: as in `models.biggan.architectures.attention_resolutions`; True for the published place.
      spectral_norm: whether weights have the vectors of spectral normalisation.
      class_tables: whether every conditional BatchNorm has class tables of its own instead of a shared embedding.
    """

    role: str
    deep: bool
    resolution: int
    attention: bool | tuple[int, ...] = True
    spectral_norm: bool = True
    class_tables: bool = False

    @property
    def is_generator(self) -> bool:
        """Return whether this is a generator."""
        return self.role == "generator"

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return the blocks from first to last, with channels in multiples of the width."""
        return _get_blocks(self.role, self.resolution, self.deep, self.attention)

    @property
    def norms(self) -> tuple[str, ...]:
        """Return the names of the conditional BatchNorms of each block."""
        return tuple(f"bn{i + 1}" for i in range((4 if self.deep else 2) * self.is_generator))

    def convolutions(self, block: Block) -> tuple[str, ...]:
        """Return the names of a block's convolutions, the shortcut's last."""
        names = tuple(f"conv{i + 1}" for i in range(4 if self.deep else 2))
        shortcut = block.in_channels != block.out_channels
        shortcut = shortcut and not self.is_generator if self.deep else shortcut or block.resample
        return (*names, "conv_sc") if shortcut else names

    @property
    def title(self) -> str:
        """Return a description for messages: ``BigGAN-deep's generator of 128 px``."""
        return f"BigGAN{'-deep' * self.deep}'s {self.role} of {self.resolution} px"


@dataclass(frozen=True)
class Architecture:
    """The options that determine every tensor of a network, named as in `models.biggan.Generator`.

    z_dim and the attributes after it are of generators only.
    """

    structure: Structure
    width: int
    channels: int
    num_classes: int
    z_dim: int = 0
    embedding_dim: int = 0
    skip_z: bool = True
    wide_rgb: bool = False

    def fields(self) -> dict[str, Any]:
        """Return the configuration fields that follow from the tensors, by dotted name."""
        s = self.structure
        fields = {"network": "biggan_deep" if s.deep else "biggan", "data.resolution": s.resolution}
        presets = {True: "", False: "none"}
        fields["biggan.attention"] = presets[s.attention] if isinstance(s.attention, bool) else _join(s.attention)
        fields["biggan.spectral_norm"] = s.spectral_norm
        if not s.is_generator:
            return fields | {"biggan.discriminator_width": self.width}
        if not s.class_tables:
            fields["biggan.embedding_dim"] = self.embedding_dim
        return fields | {
            "generator.z_dim": self.z_dim,
            "biggan.generator_width": self.width,
            "biggan.shared_embedding": not s.class_tables,
            "biggan.skip_z": self.skip_z,
            "biggan.wide_rgb": self.wide_rgb,
        }

    def shapes(self) -> dict[Path, Shape]:
        """Return the shapes of all variables of the Flax module."""
        return _get_shapes(self)


def find_structure(role: str, deep: bool, count: int, attended: set[int] | None, **options: bool) -> Structure:
    """Return the structure with a number of blocks.

    Args:
      role, deep: see `Structure`.
      count: of blocks.
      attended: indices of the blocks that attention follows; None for the published ones.
      **options: further attributes of `Structure`.

    Raises:
      UserError: no BigGAN has this number of blocks or this attention.
    """
    kind = f"BigGAN{'-deep' * deep}'s {role}"
    resolution = next((r for r in _RESOLUTIONS if len(_get_blocks(role, r, deep, False)) == count), None)
    if resolution is None:
        raise UserError(
            f"The checkpoint has {count} blocks, which {kind} has at no resolution; give one of "
            f"{', '.join(map(str, _RESOLUTIONS))} px with the number of blocks of its paper."
        )
    if attended is None:
        return Structure(role, deep, resolution, **options)
    blocks = _get_blocks(role, resolution, deep, False)
    attended_resolutions = tuple(sorted({blocks[i].resolution for i in attended if i < count}, reverse=True))
    for attention in (True, False, attended_resolutions):
        candidate = _get_blocks(role, resolution, deep, attention)
        if {i for i, block in enumerate(candidate) if block.attention} == attended:
            return Structure(role, deep, resolution, attention, **options)
    raise UserError(
        f"The checkpoint has attention after {_list_blocks(attended)}, where {kind} of {resolution} px has it after every "
        "block of a resolution (BigGAN-deep: after the last) or none; give a checkpoint with attention at such a place."
    )


def infer_architecture(structure: Structure, get_shape: Callable[[Path], Shape], wide_rgb: bool) -> Architecture:
    """Infer the architecture from the shapes of a few variables in Flax's layout.

    Args:
      structure: see `Structure`.
      get_shape: returns the shape of the variable with a path; raises a `UserError` if it is missing or has the wrong
        number of axes.
      wide_rgb: whether the last convolution of a generator has more outputs than the image has channels.

    Raises:
      UserError: this project has no such network.
    """
    s, blocks = structure, structure.blocks
    convs = [_convolution_paths(s, i, block) for i, block in enumerate(blocks)]
    outs = [get_shape(paths[3 if s.deep else 1])[-1] for paths in convs]
    width = outs[-1] // blocks[-1].out_channels
    if outs != [width * block.out_channels for block in blocks] or not width:
        raise UserError(
            f"The checkpoint's blocks have {_join(outs)} channels, where those of {s.title} have "
            f"{_join(block.out_channels for block in blocks)} times a width; give a checkpoint with such blocks."
        )
    if not s.is_generator:
        image = ("params", "input_conv", "weight") if s.deep else convs[0][0]
        classes = get_shape(("params", "embed", "weight"))[0]
        return Architecture(s, width, get_shape(image)[2], classes)

    channels = 3 if wide_rgb else get_shape(("params", "output_conv", "weight"))[3]
    first = get_shape(("params", "linear", "weight"))[0]
    norm = ("params", "blocks_0", "bn1")
    if s.class_tables:
        classes = get_shape((*norm, "gain_table", "weight"))[0]
        return Architecture(s, width, channels, classes, first, 0, False, wide_rgb)
    classes, embedding_dim = get_shape(("params", "shared", "weight"))
    latents = get_shape((*norm, "gain", "weight"))[0] - embedding_dim
    z_dim = latents if s.deep else latents * (len(blocks) + 1)
    if latents < 0 or (latents and first != (latents + embedding_dim if s.deep else latents)):
        raise UserError(
            f"The checkpoint's first layer has {first} inputs and its conditional BatchNorms have "
            f"{latents + embedding_dim}, {embedding_dim} of them an embedding, which do not fit together in "
            f"{s.title}; give the whole state dict of one network."
        )
    if not latents:
        return Architecture(s, width, channels, classes, first, embedding_dim, False, wide_rgb)
    return Architecture(s, width, channels, classes, z_dim, embedding_dim, True, wide_rgb)


def _convolution_paths(s: Structure, i: int, block: Block) -> list[Path]:
    return [("params", f"blocks_{i}", name, "weight") for name in s.convolutions(block)]


def _get_blocks(role: str, resolution: int, deep: bool, attention: bool | tuple[int, ...]) -> tuple[Block, ...]:
    return (generator_blocks if role == "generator" else discriminator_blocks)(resolution, deep, attention)


def _join(values: Any) -> str:
    return ",".join(map(str, values))


def _list_blocks(attended: set[int]) -> str:
    return " and ".join(f"block {i}" for i in itertools.islice(sorted(attended), 3))


@functools.cache
def _get_shapes(architecture: Architecture) -> dict[Path, Shape]:
    s = architecture.structure
    shared = {
        "resolution": s.resolution,
        "channels": architecture.channels,
        "num_classes": architecture.num_classes,
        "width": architecture.width,
        "deep": s.deep,
        "attention": s.attention,
        "spectral_norm": s.spectral_norm,
    }
    labels = jnp.zeros(1, int)
    if s.is_generator:
        module = Generator(
            **shared,
            z_dim=architecture.z_dim,
            embedding_dim=architecture.embedding_dim,
            shared_embedding=not s.class_tables,
            skip_z=architecture.skip_z,
            wide_rgb=architecture.wide_rgb,
        )
        inputs = jnp.zeros((1, architecture.z_dim))
    else:
        module = Discriminator(**shared)
        inputs = jnp.zeros((1, s.resolution, s.resolution, architecture.channels))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), inputs, labels))
    return {path: leaf.shape for path, leaf in flatten_dict(variables).items()}
