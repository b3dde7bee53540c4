"""Stages of the networks: one for each resolution from 4 px, with its width, its cardinality and its dtype."""

import jax.numpy as jnp

from noisytwins_jax.utils.errors import UserError

_FULL_WIDTH_UP_TO = 32  # px; the published widths halve with every doubling from there


def default_widths(resolution: int, width: int = 768) -> tuple[int, ...]:
    """Return the channels of each stage from 4 px: `width` up to 32 px, then half of it for every doubling.

    With 768, the published widths for CIFAR-10 (32 px) and FFHQ (64 and 256 px). Those for ImageNet are 1536 everywhere.
    """
    return tuple(width * _FULL_WIDTH_UP_TO // max(size, _FULL_WIDTH_UP_TO) for size in stage_resolutions(resolution))


def default_cardinality(widths: tuple[int, ...]) -> tuple[int, ...]:
    """Return the groups of each stage's 3×3 convolutions: an eighth of its width, that is groups of 16 channels.

    So for CIFAR-10 and FFHQ; the published groups for ImageNet have 32 channels.
    """
    return tuple(max(width // 8, 1) for width in widths)


def stage_resolutions(resolution: int) -> tuple[int, ...]:
    """Return ``(4, 8, …, resolution)``.

    Raises:
      UserError: the resolution is not a power of two from 4.
    """
    if resolution < 4 or resolution & (resolution - 1):
        raise UserError(f"R3GAN has no networks for {resolution} px; give a power of two from 4.")
    return tuple(2**i for i in range(2, resolution.bit_length()))


def check_stages(resolution: int, widths: tuple[int, ...], cardinality: tuple[int, ...]) -> None:
    """Check that the widths and cardinalities make the stages of networks for `resolution`.

    Raises:
      UserError: they do not.
    """
    stages = len(stage_resolutions(resolution))
    for name, values in (("widths", widths), ("cardinality", cardinality)):
        if len(values) != stages:
            raise UserError(
                f"R3GAN at {resolution} px has {stages} stages, and {name} has {len(values)} values; "
                "give one for each resolution from 4 px."
            )
    for width, groups in zip(widths, cardinality, strict=True):
        if width < 1 or groups < 1 or 2 * width % groups:
            raise UserError(
                f"A cardinality of {groups} does not divide the {2 * width} channels of the 3×3 convolutions of a stage "
                f"of width {width}; give a divisor of {2 * width}."
            )


def stage_dtypes(stages: int, dtype: jnp.dtype, half_resolutions: int) -> tuple[jnp.dtype, ...]:
    """Return the dtype of each stage's activations from 4 px: `dtype` in the last `half_resolutions`, float32 below."""
    lower = jnp.promote_types(dtype, jnp.float32)
    return tuple(jnp.dtype(dtype) if stages - i <= half_resolutions else lower for i in range(stages))


def block_gain(stages: int, blocks_per_stage: int) -> float:
    """Compute the gain ``√(2/1.04) · L^(-1/4)`` of initial weights inside the blocks, L the network's number of blocks.

    The first factor is that of a leaky ReLU of slope 0.2, the second that of Fix-Up (Zhang et al., "Fixup Initialization:
    Residual Learning Without Normalization", ICLR 2019) for two layers before the last, which starts at zero.
    """
    return (2.0 / (1.0 + 0.2**2)) ** 0.5 * (stages * blocks_per_stage) ** -0.25
