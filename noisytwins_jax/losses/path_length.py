"""Path-length regularisation (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", Sec. 3.2, eq. 4)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def path_lengths(synthesize: Callable[[Array], Array], ws: Array, noise: Array) -> Array:
    """``|Jᵀ y|`` for every sample: how far images move when w does, in a random direction y.

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
    """``mean (length - a)²`` with the running mean a, without weights.

    The mean moves first, ``a ← a + decay·(mean length - a)``, and the gradient flows through it, as published.

    Returns:
      The penalty and the new running mean, scalars.
    """
    running_mean = running_mean + decay * (lengths.mean() - running_mean)
    return jnp.square(lengths - running_mean).mean(), running_mean
