"""Exponential moving average of the generator (Karras et al., Progressive GAN; ramp-up of StyleGAN2-ADA)."""

import jax
import jax.numpy as jnp

Array = jax.Array


def ema_decay(step: Array, batch_size: int, kimg: Array | float, rampup: float | None, start_step: int = 0) -> Array:
    """Compute the decay ``0.5^(batch_size / half-life)``; the half-life is `kimg` thousand images, less in the ramp-up.

    Args:
      step: updates before this one, int.
      batch_size: images a step.
      kimg: half-life in thousands of images.
      rampup: the half-life is at most this fraction of the images so far, or None. At step 0 the decay is then 0.
      start_step: the decay is 0 before it: the average is the generator itself (BigGAN starts late).
    """
    half_life = jnp.asarray(kimg * 1000.0)
    if rampup is not None:
        half_life = jnp.minimum(half_life, step * (batch_size * rampup))
    decay = 0.5 ** (batch_size / jnp.maximum(half_life, 1e-8))
    return jnp.where(step < start_step, 0.0, decay) if start_step else decay


def update_ema(ema: dict, variables: dict, decay: Array) -> dict:
    """Average the ``params`` collection and copy the others (running statistics)."""
    params = jax.tree.map(lambda a, b: b + decay.astype(b.dtype) * (a - b), ema["params"], variables["params"])
    return {**variables, "params": params}
