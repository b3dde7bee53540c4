"""Path-length regularisation (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", Sec. 3.2, eq. 4)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from typing_extensions import override

from noisytwins_jax.losses.base import GeneratorContext, Progress, PyTree, WeightedLoss
from noisytwins_jax.utils.config_fields import number

Array = jax.Array


def path_lengths(synthesize: Callable[[Array], Array], ws: Array, noise: Array) -> Array:
    """Compute ``|Jᵀ y|`` of every sample: how far images move with w, in a random direction y.

    Args:
      synthesize: ws to images ``[N, H, W, C]``.
      ws: ``[N, num_ws, w_dim]``.
      noise: standard normal ``[N, H, W, C]``; divided by √(H·W) here.

    Returns:
      ``[N]``: root of the mean over layers of squared lengths.
    """
    directions = noise / math.sqrt(noise.shape[1] * noise.shape[2])
    gradients = jax.grad(lambda v: (synthesize(v) * directions).sum())(ws)
    return jnp.sqrt(jnp.square(gradients).sum(axis=2).mean(axis=1))


def path_length_penalty(lengths: Array, running_mean: Array, decay: float = 0.01) -> tuple[Array, Array]:
    """Compute ``mean (length - a)²`` with the running mean a, without weights.

    The mean moves first, ``a ← a + decay·(mean length - a)``, and the gradient flows through it, as published.

    Returns:
      The penalty and the new running mean, scalars.
    """
    running_mean = running_mean + decay * (lengths.mean() - running_mean)
    return jnp.square(lengths - running_mean).mean(), running_mean


@dataclass(frozen=True)
class PathLength(WeightedLoss):
    """`path_length_penalty` as an update of its own every `interval` updates of the generator.

    State: the running mean of lengths, float32.
    """

    weight_twice: bool = True  # multiply by the weight a second time, as the published code does
    interval: int = number(4, at_least=1)
    decay: float = number(0.01, at_least=0, at_most=1)  # of the running mean of lengths
    batch_fraction: float = number(0.5, above=0)  # its batch, as a fraction of batch_size

    lazy: ClassVar[Literal["generator"]] = "generator"

    @override
    def scale(self, progress: Progress) -> float:
        return self.weight * self.interval * (self.weight if self.weight_twice else 1.0)

    @override
    def init(self, generator_params: PyTree, discriminator_params: PyTree) -> Array:
        return jnp.float32(0.0)

    @override
    def generator(self, ctx: GeneratorContext, state: Array) -> tuple[Array, Array]:
        return path_length_penalty(path_lengths(ctx.synthesize, ctx.conditioning, ctx.noise), state, self.decay)
