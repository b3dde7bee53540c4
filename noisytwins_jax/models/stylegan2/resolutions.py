"""Resolutions and architectures of the blocks of generator and discriminator, and downsampling of images."""

import math
from typing import Literal

import jax

from noisytwins_jax.models import fir

Array = jax.Array
Architecture = Literal["orig", "skip", "resnet"]


def block_resolutions(resolution: int) -> list[int]:
    """Return ``[4, 8, …, resolution]``."""
    return [2**i for i in range(2, int(math.log2(resolution)) + 1)]


def shrink(images: Array, resolution: int) -> Array:
    """Downsample images ``[N, R, R, C]`` to a lower power of two `resolution` with the [1, 3, 3, 1] filter."""
    while images.shape[1] > resolution:
        images = fir.downsample2d(images)
    return images


def check_low_resolution(low: int, resolution: int) -> None:
    """Raise a `ValueError` unless a network of this `resolution` has a block for `low` before its last."""
    if low not in block_resolutions(resolution)[:-1]:
        raise ValueError(f"low_resolution={low} must be a power of two from 4 to {resolution // 2}.")
