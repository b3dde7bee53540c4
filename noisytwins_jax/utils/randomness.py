"""Named randomness: every random number comes from a key folded from (seed, step, purpose)."""

import zlib

import jax

Array = jax.Array


def purpose_key(key: Array, step: Array | int, purpose: str) -> Array:
    """Derive the key for one purpose at one step: a pure function of (seed, step, purpose), the same on every device."""
    return jax.random.fold_in(jax.random.fold_in(key, step), zlib.crc32(purpose.encode()))


def sample_keys(seed: Array | int, indices: Array) -> Array:
    """Derive one key per sample from its global index ``[n]``: samples depend on neither batch size nor device count."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), indices)
