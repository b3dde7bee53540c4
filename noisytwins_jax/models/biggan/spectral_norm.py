"""Spectral normalisation: a weight divided by an estimate of its largest singular value (Miyato et al., ICLR 2018).

The estimate is one step of power iteration away from a stored vector u. Norms are floored, ``x / max(‖x‖, ε)``; ε is 1e-4
in BigGAN. The singular vectors count as constants: ``∂σ/∂W = u vᵀ``.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.models.layers import FULL_PRECISION

Array = jax.Array


def normalize(x: Array, epsilon: float) -> Array:
    """``x / max(‖x‖, epsilon)`` of a vector."""
    return x / jnp.maximum(jnp.linalg.norm(x), epsilon)


def power_iteration(matrix: Array, u: Array, epsilon: float) -> tuple[Array, Array]:
    """One step: the right singular vector belonging to u, and the next u.

    Args:
      matrix: ``[I, O]``, inputs by outputs: the transpose of the W of the papers, whose rows are outputs.
      u: left singular vector of W, ``[O]``.
      epsilon: floor of norms.

    Returns:
      v = ``normalize(Wᵀu)`` ``[I]`` and ``normalize(Wv)`` ``[O]``.
    """
    v = normalize(jnp.matmul(matrix, u, precision=FULL_PRECISION), epsilon)
    return v, normalize(jnp.matmul(v, matrix, precision=FULL_PRECISION), epsilon)


def spectral_norm(matrix: Array, u: Array, epsilon: float, iterate: bool) -> tuple[Array, Array]:
    """The estimate ``σ = uᵀWv`` of the largest singular value, differentiable in the matrix alone.

    Args:
      matrix, u, epsilon: see `power_iteration`.
      iterate: whether to use the u that a step of power iteration makes of the given one.

    Returns:
      σ, and the u that it was computed with.
    """
    v, following = power_iteration(*jax.lax.stop_gradient((matrix, u)), epsilon)
    u = following if iterate else jax.lax.stop_gradient(u)
    return jnp.vdot(jnp.matmul(v, matrix, precision=FULL_PRECISION), u, precision=FULL_PRECISION), u


def normalized(
    module: nn.Module, weight: Array, epsilon: float | None, update_stats: bool, outputs_first: bool = False
) -> Array:
    """A weight of `module`, spectrally normalised; its u is the variable ``u`` of the collection ``spectral``.

    Args:
      module: whose ``__call__`` asks.
      weight: ``[..., outputs]``, or ``[outputs, inputs]`` if `outputs_first`.
      epsilon: floor of norms, or ``None`` to leave the weight as it is.
      update_stats: whether u makes a step, which this call then uses, if its collection is mutable.
      outputs_first: as of class embeddings, whose rows are what the papers call outputs.
    """
    if epsilon is None:
        return weight
    matrix = weight.T if outputs_first else weight.reshape(-1, weight.shape[-1])
    u = module.variable("spectral", "u", lambda: _random_direction(module.make_rng("params"), matrix.shape[1]))
    update_stats = update_stats and module.is_mutable_collection("spectral")
    sigma, following = spectral_norm(matrix, u.value, epsilon, update_stats)
    if update_stats:
        u.value = following
    return weight / sigma


def _random_direction(key: Array, size: int) -> Array:
    x = jax.random.normal(key, (size,))
    return x / jnp.maximum(jnp.linalg.norm(x), math.sqrt(jnp.finfo(x.dtype).tiny))
