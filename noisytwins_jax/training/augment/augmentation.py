"""The augmentation of a run, for real and for generated images alike: ADA, or DiffAugment, or none."""

from typing import Any

import jax

from noisytwins_jax.config import RunConfig
from noisytwins_jax.training.augment import ada, diffaugment

Array = jax.Array
PyTree = Any


class Augmentation:
    """ADA where the configuration names operations of it, else DiffAugment with its policy, which may be empty.

    Attributes:
      ada: ADA's operations; none without it.
    """

    def __init__(self, config: RunConfig):
        self.policy = diffaugment.parse_policy(config.augment.diffaugment)
        self.ada = ada.parse_operations(config.ada.operations)
        self.ada_impl = "gather" if config.up_impl == "shift" else "matmul"
        self.dtype = config.dtype

    def draw(self, key: Array, shape: tuple[int, int, int, int]) -> PyTree:
        """Draws of the run's augmentation for images of `shape`."""
        return ada.draw(key, shape, self.ada) if self.ada else diffaugment.draw(key, shape)

    def apply(self, images: Array, draws: PyTree, p: Array) -> Array:
        """The images augmented; `p` is ADA's probability."""
        if self.ada:
            return ada.apply(images, draws, self.ada, p, self.ada_impl, self.dtype)
        return diffaugment.apply(images, draws, self.policy)
