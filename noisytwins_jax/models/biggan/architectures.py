"""Tables of the blocks of each network: channels, resolutions and attention.

Channels are multiples of the width (``ch``: 96 for BigGAN, 128 for BigGAN-deep). From 128 px on the tables are those of
the paper (tables 4 to 9); 64 px follows BigGAN-PyTorch, 32 px StudioGAN, whose discriminator of BigGAN is half as wide as
BigGAN-PyTorch's. No paper has networks for 16 and 8 px: these continue those of 32 px, for tests and small images.
"""

import itertools
from typing import NamedTuple

from noisytwins_jax.utils.errors import UserError

# Channels at 4×4 and after each doubling; BigGAN-deep has two blocks where BigGAN has one.
_GENERATOR = {
    8: (4, 4),
    16: (4, 4, 4),
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}
# Channels after each block of BigGAN; after the first convolution and each pair of blocks of BigGAN-deep.
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
_LAST_RESOLUTION = {32: 8}  # of the discriminator; 4 for all others
_CHUNK = 20  # latents a block of BigGAN


class Block(NamedTuple):
    """One residual block and the attention that may follow it."""

    in_channels: int  # multiples of the width; 0 for the image
    out_channels: int
    resample: bool  # whether the block doubles (generator) or halves (discriminator) the resolution
    resolution: int  # after the block
    attention: bool  # whether self-attention follows


def generator_blocks(resolution: int, deep: bool, attention: bool | tuple[int, ...]) -> tuple[Block, ...]:
    """Return the blocks from 4×4 to the image; `attention` as in `attention_resolutions`."""
    channels = _look_up(_GENERATOR, resolution)
    attended = attention_resolutions(resolution, deep, attention, generator=True)
    blocks, size = [], 4
    for before, after in itertools.pairwise(channels):
        if deep:
            blocks.append(Block(before, before, False, size, False))
        size *= 2
        blocks.append(Block(before, after, True, size, size in attended))
    return tuple(blocks)


def discriminator_blocks(resolution: int, deep: bool, attention: bool | tuple[int, ...]) -> tuple[Block, ...]:
    """Return the blocks from the image (BigGAN-deep: from its first convolution) to the last; `attention` likewise."""
    channels = _look_up(_DEEP_DISCRIMINATOR if deep else _DISCRIMINATOR, resolution)
    attended = attention_resolutions(resolution, deep, attention, generator=False)
    blocks, size = [], resolution
    if not deep:
        channels = (0, *channels)
    for before, after in itertools.pairwise(channels):
        halve = size > _LAST_RESOLUTION.get(resolution, 4)
        size = size // 2 if halve else size
        blocks.append(Block(before, after, halve, size, not deep and size in attended))
        if deep:
            blocks.append(Block(after, after, False, size, size in attended))
    return tuple(blocks)


def attention_resolutions(
    resolution: int, deep: bool, attention: bool | tuple[int, ...], generator: bool
) -> tuple[int, ...]:
    """Return the resolutions whose blocks are followed by self-attention.

    Args:
      resolution: of the images.
      deep: BigGAN-deep rather than BigGAN.
      attention: ``True`` for the published places (64 px; 128 px in the generator of BigGAN at 256 px; half of the
        resolution for images of 16 to 64 px; nowhere for 8 px), ``False`` for none, or resolutions. A network may not
        have blocks at all of these: the generator's end at 8 px to the full resolution, the discriminator's at half of
        it to 4 or 8 px.
      generator: generator rather than discriminator.

    Raises:
      UserError: no block can end at one of the resolutions.
    """
    if isinstance(attention, bool):
        if not attention or resolution == 8:
            return ()
        if resolution <= 64:
            return (resolution // 2,)
        return (128,) if generator and not deep and resolution == 256 else (64,)
    possible = [2**i for i in range(2, resolution.bit_length())]
    wrong = [r for r in attention if r not in possible]
    if wrong:
        raise UserError(
            f"Networks for {resolution} px have no block at {wrong[0]} px for attention to follow; "
            f"choose among {', '.join(map(str, possible))}."
        )
    return tuple(attention)


def default_z_dim(resolution: int, deep: bool) -> int:
    """Return the published width of z: 20 per chunk of BigGAN (first layer and each block), 128 for BigGAN-deep."""
    return 128 if deep else _CHUNK * len(_look_up(_GENERATOR, resolution))


def check_width(width: int, deep: bool) -> None:
    """Raise a `UserError` if BigGAN-deep cannot divide the channels of this width by four."""
    if deep and width % 4:
        raise UserError(
            f"BigGAN-deep has layers of a quarter of its channels; give a multiple of 4 as width, not {width}."
        )


def discriminator_stem(resolution: int) -> int:
    """Return the channels of the first convolution of BigGAN-deep's discriminator, as a multiple of the width."""
    return _look_up(_DEEP_DISCRIMINATOR, resolution)[0]


def _look_up(table: dict[int, tuple[int, ...]], resolution: int) -> tuple[int, ...]:
    if resolution not in table:
        raise UserError(f"BigGAN has no networks for {resolution} px; choose among {', '.join(map(str, table))}.")
    return table[resolution]
