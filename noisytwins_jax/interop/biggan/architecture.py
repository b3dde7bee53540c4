"""Which BigGAN network a set of tensors is: its blocks from the names, its widths from the shapes."""

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

Path = tuple[str, ...]  # of a variable in Flax, its collection first: ("params", "blocks_0", "conv1", "weight")
Shape = tuple[int, ...]

_RESOLUTIONS = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Structure:
    """What the names of tensors say.

    Attributes:
      role: ``"generator"`` or ``"discriminator"``.
      deep: BigGAN-deep rather than BigGAN.
      resolution: of the images.
      attention: as in `networks.biggan.architectures.attention_resolutions`; True where it is at the published place.
      spectral_norm: whether weights have the vectors of spectral normalisation.
      class_tables: whether every conditional BatchNorm has tables of its own instead of an embedding that all share.
    """

    role: str
    deep: bool
    resolution: int
    attention: bool | tuple[int, ...] = True
    spectral_norm: bool = True
    class_tables: bool = False

    @property
    def is_generator(self) -> bool:
        """Whether it is a generator."""
        return self.role == "generator"

    @property
    def blocks(self) -> tuple[Block, ...]:
        """From the first to the last, with channels in multiples of the width."""
        return _table(self.role, self.resolution, self.deep, self.attention)

    @property
    def norms(self) -> tuple[str, ...]:
        """Conditional BatchNorms of each block."""
        return tuple(f"bn{i + 1}" for i in range((4 if self.deep else 2) * self.is_generator))

    def convolutions(self, block: Block) -> tuple[str, ...]:
        """Of a block, the one beside the others last."""
        names = tuple(f"conv{i + 1}" for i in range(4 if self.deep else 2))
        beside = block.in_channels != block.out_channels
        beside = beside and not self.is_generator if self.deep else beside or block.resample
        return (*names, "conv_sc") if beside else names

    @property
    def title(self) -> str:
        """For messages: ``BigGAN-deep's generator of 128 px``."""
        return f"BigGAN{'-deep' * self.deep}'s {self.role} of {self.resolution} px"


@dataclass(frozen=True)
class Architecture:
    """What fixes every tensor of a network; attributes as in `networks.biggan.Generator`, z_dim and further its alone."""

    structure: Structure
    width: int
    channels: int
    num_classes: int
    z_dim: int = 0
    embedding_dim: int = 0
    skip_z: bool = True
    wide_rgb: bool = False

    def fields(self) -> dict[str, Any]:
        """Of the configuration, by dotted name."""
        s = self.structure
        fields = {"network": "biggan_deep" if s.deep else "biggan", "data.resolution": s.resolution}
        words = {True: "", False: "none"}
        fields["biggan.attention"] = words[s.attention] if isinstance(s.attention, bool) else _words(s.attention)
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
        """Of all variables, as the network's module makes them."""
        return _shapes(self)


def find_structure(role: str, deep: bool, count: int, attended: set[int] | None, **options: bool) -> Structure:
    """The structure with so many blocks.

    Args:
      role, deep: see `Structure`.
      count: of blocks.
      attended: the blocks, from 0, that attention follows; None for the published.
      **options: further attributes of `Structure`.

    Raises:
      UserError: there is none.
    """
    kind = f"BigGAN{'-deep' * deep}'s {role}"
    resolution = next((r for r in _RESOLUTIONS if len(_table(role, r, deep, False)) == count), None)
    if resolution is None:
        raise UserError(
            f"The checkpoint has {count} blocks, which {kind} has at no resolution; give one of "
            f"{', '.join(map(str, _RESOLUTIONS))} px with the number of blocks of its paper."
        )
    if attended is None:
        return Structure(role, deep, resolution, **options)
    blocks = _table(role, resolution, deep, False)
    reached = tuple(sorted({blocks[i].resolution for i in attended if i < count}, reverse=True))
    for attention in (True, False, reached):
        table = _table(role, resolution, deep, attention)
        if {i for i, block in enumerate(table) if block.attention} == attended:
            return Structure(role, deep, resolution, attention, **options)
    raise UserError(
        f"The checkpoint has attention after {_blocks(attended)}, where {kind} of {resolution} px has it after every "
        "block of a resolution (BigGAN-deep: after the last) or none; give a checkpoint with attention at such a place."
    )


def measure(structure: Structure, shape_of: Callable[[Path], Shape], wide_rgb: bool) -> Architecture:
    """The architecture, from shapes of a few variables in our layout.

    Args:
      structure: see `Structure`.
      shape_of: of the variable with a path; raises a `UserError` if it is missing or no weight of its kind.
      wide_rgb: whether the last convolution of a generator makes more than the image.

    Raises:
      UserError: it is none that the networks of this project have.
    """
    s, blocks = structure, structure.blocks
    convs = [_convolutions(s, i, block) for i, block in enumerate(blocks)]
    outs = [shape_of(paths[3 if s.deep else 1])[-1] for paths in convs]
    width = outs[-1] // blocks[-1].out_channels
    if outs != [width * block.out_channels for block in blocks] or not width:
        raise UserError(
            f"The checkpoint's blocks have {_words(outs)} channels, where those of {s.title} have "
            f"{_words(block.out_channels for block in blocks)} times a width; give a checkpoint with such blocks."
        )
    if not s.is_generator:
        image = ("params", "input_conv", "weight") if s.deep else convs[0][0]
        classes = shape_of(("params", "embed", "weight"))[0]
        return Architecture(s, width, shape_of(image)[2], classes)

    channels = 3 if wide_rgb else shape_of(("params", "output_conv", "weight"))[3]
    first = shape_of(("params", "linear", "weight"))[0]
    norm = ("params", "blocks_0", "bn1")
    if s.class_tables:
        classes = shape_of((*norm, "gain_table", "weight"))[0]
        return Architecture(s, width, channels, classes, first, 0, False, wide_rgb)
    classes, embedding_dim = shape_of(("params", "shared", "weight"))
    latents = shape_of((*norm, "gain", "weight"))[0] - embedding_dim
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


def _convolutions(s: Structure, i: int, block: Block) -> list[Path]:
    return [("params", f"blocks_{i}", name, "weight") for name in s.convolutions(block)]


def _table(role: str, resolution: int, deep: bool, attention: bool | tuple[int, ...]) -> tuple[Block, ...]:
    return (generator_blocks if role == "generator" else discriminator_blocks)(resolution, deep, attention)


def _words(values: Any) -> str:
    return ",".join(map(str, values))


def _blocks(attended: set[int]) -> str:
    return " and ".join(f"block {i}" for i in itertools.islice(sorted(attended), 3))


@functools.cache
def _shapes(architecture: Architecture) -> dict[Path, Shape]:
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
