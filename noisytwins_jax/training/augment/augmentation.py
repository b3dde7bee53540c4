"""The augmentation of a run, the same for real and generated images: ADA, DiffAugment or none."""

from typing import Any

import jax

from noisytwins_jax.config import RunConfig
from noisytwins_jax.models.fir import resolve_up_impl
from noisytwins_jax.training.augment import ada, diffaugment

Array = jax.Array
PyTree = Any


class Augmentation:
    """ADA if the configuration names operations of it, otherwise DiffAugment with its policy, which may be empty.

    Attributes:
      ada: ADA's operations; empty without ADA.
      active: whether there is any operation.
    """

    def __init__(self, config: RunConfig):
        self.policy = diffaugment.parse_policy(config.augment.diffaugment)
        self.ada = ada.parse_operations(config.ada.operations)
        self.color_strength = config.ada.color_strength
        self.active = bool(self.policy or self.ada)
        self.ada_impl = "gather" if resolve_up_impl(config.up_impl) == "shift" else "matmul"
        self.dtype = config.dtype

    def sample_inputs(self, key: Array, shape: tuple[int, int, int, int]) -> PyTree:
        """Sample random inputs for images of `shape` ``(N, H, W, C)``: arrays ``[N, …]``."""
        return ada.sample_inputs(key, shape, self.ada) if self.ada else diffaugment.sample_inputs(key, shape)

    def apply(self, images: Array, inputs: PyTree, p: Array) -> Array:
        """Augment images ``[N, H, W, C]``, each by its own random inputs; `p` is ADA's probability."""
        if self.ada:
            return ada.apply(images, inputs, self.ada, p, self.ada_impl, self.dtype, self.color_strength)
        return diffaugment.apply(images, inputs, self.policy)
