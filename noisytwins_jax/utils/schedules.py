"""Schedules over training."""

import math

import jax
import jax.numpy as jnp

Array = jax.Array


def cosine(kimg: Array, start: float, end: float, over_kimg: float) -> Array:
    """Compute ``start + (end - start)·½(1 - cos(π t))`` with t = kimg / over_kimg, at most 1 (R3GAN's training code)."""
    t = jnp.clip(kimg / over_kimg, 0.0, 1.0)
    return start + (end - start) * 0.5 * (1.0 - jnp.cos(math.pi * t))
