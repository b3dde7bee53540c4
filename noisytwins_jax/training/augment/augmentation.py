"""The augmentation of a run, the same for real and generated images: ADA, DiffAugment or none."""

import jax

from noisytwins_jax.config import RunConfig
from noisytwins_jax.models.fir import resolve_up_impl
from noisytwins_jax.training.augment import ada, diffaugment

Array = jax.Array


class Augmentation:
    """ADA if the configuration names operations of it, otherwise DiffAugment with its policy, which may be empty.

    Attributes:
      ada: ADA's operations; empty without ADA.
    """

    def __init__(self, config: RunConfig):
        self.policy = diffaugment.parse_policy(config.augment.diffaugment)
        self.ada = ada.parse_operations(config.ada.operations)
        self.ada_impl = "gather" if resolve_up_impl(config.up_impl) == "shift" else "matmul"
        self.dtype = config.dtype

    def __call__(self, key: Array, images: Array, p: Array) -> Array:
        """Augment images ``[N, H, W, C]``; `p` is ADA's probability."""
        if self.ada:
            inputs = ada.sample_inputs(key, images.shape, self.ada)
            return ada.apply(images, inputs, self.ada, p, self.ada_impl, self.dtype)
        return diffaugment.apply(images, diffaugment.sample_inputs(key, images.shape), self.policy)
