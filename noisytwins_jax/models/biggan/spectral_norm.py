"""Spectral normalisation: a weight divided by an estimate of its largest singular value (Miyato et al., ICLR 2018).

The estimate is one step of power iteration away from a stored vector u. Norms have a lower bound, ``x / max(‖x‖, ε)``; ε is
1e-4 in BigGAN. The singular vectors are treated as constants: ``∂σ/∂W = u vᵀ``.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.models.layers import FULL_PRECISION

Array = jax.Array


def normalize(x: Array, epsilon: float) -> Array:
    """Normalise a vector: ``x / max(‖x‖, epsilon)``."""
    return x / jnp.maximum(jnp.linalg.norm(x), epsilon)


def power_iteration(matrix: Array, u: Array, epsilon: float) -> tuple[Array, Array]:
    """Do one step: compute the right singular vector for u, and the next u.

    Args:
      matrix: ``[I, O]``, inputs by outputs: the transpose of the W of the papers, whose rows are outputs.
      u: left singular vector of W, ``[O]``.
      epsilon: lower bound of norms.

    Returns:
      v = ``normalize(Wᵀu)`` ``[I]`` and ``normalize(Wv)`` ``[O]``.
    """
    v = normalize(jnp.matmul(matrix, u, precision=FULL_PRECISION), epsilon)
    return v, normalize(jnp.matmul(v, matrix, precision=FULL_PRECISION), epsilon)


def spectral_norm(matrix: Array, u: Array, epsilon: float, iterate: bool) -> tuple[Array, Array]:
    """Estimate the largest singular value as ``σ = uᵀWv``, differentiable in the matrix only.

    Args:
      matrix, u, epsilon: see `power_iteration`.
      iterate: whether to use the u after a step of power iteration, rather than the given one.

    Returns:
      σ, and the u that it was computed with.
    """
    v, following = power_iteration(*jax.lax.stop_gradient((matrix, u)), epsilon)
    u = following if iterate else jax.lax.stop_gradient(u)
    return jnp.vdot(jnp.matmul(v, matrix, precision=FULL_PRECISION), u, precision=FULL_PRECISION), u


def normalize_weight(
    module: nn.Module, weight: Array, epsilon: float | None, update_stats: bool, outputs_first: bool = False
) -> Array:
    """Spectrally normalise a weight of `module`; its u is the variable ``u`` of the collection ``spectral``.

    Args:
      module: the calling module, inside its ``__call__``.
      weight: ``[..., outputs]``, or ``[outputs, inputs]`` if `outputs_first`.
      epsilon: lower bound of norms, or ``None`` to return the weight unchanged.
      update_stats: whether to do a step of power iteration and use the new u, if its collection is mutable.
      outputs_first: for class embeddings, whose rows are what the papers call outputs.
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
