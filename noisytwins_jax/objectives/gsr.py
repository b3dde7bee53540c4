"""Group spectral regularisation, gSR (Rangwani et al., "Improving GANs for Long-Tailed Data through Group Spectral
Regularization", ECCV 2022).

Where a tail class collapses, the spectral norm of its own parameters explodes: each class's vector, reshaped into a
matrix of groups, has its largest singular value σ penalised, the rarer the class the more.

The paper has the gains and biases of BigGAN's class-conditional normalisation. For StyleGAN2 it is, as in the comparisons
of NoisyTwins, the class embedding of the generator's mapping network; how exactly was not published, so that part is ours.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from noisytwins_jax.fields import choice, number
from noisytwins_jax.objectives.objective import GeneratorPass, Objective, PyTree

Array = jax.Array

FIRST_ITERATIONS = 40  # of power iteration, from a random start

# Small products in full precision: a TPU would multiply in bfloat16 by default.
_einsum = functools.partial(jnp.einsum, precision="highest")


def group_shape(dim: int) -> tuple[int, int]:
    """The matrix that a vector of `dim` entries is reshaped into: the squarest, no taller than wide (512: 16 × 32)."""
    rows = next(n for n in range(math.isqrt(dim), 0, -1) if dim % n == 0)
    return rows, dim // rows


def group_matrices(vectors: Array) -> Array:
    """One matrix a class, filled row by row: ``[C, d] → [C, a, b]``."""
    return vectors.reshape(vectors.shape[0], *group_shape(vectors.shape[1]))


def power_iteration(matrices: Array, u: Array, iterations: int) -> tuple[Array, Array]:
    """Moves u ``[C, a]`` towards the leading left singular vectors of ``[C, a, b]``: ``v ← Mᵀu/|Mᵀu|, u ← Mv/|Mv|``.

    Returns:
      u ``[C, a]`` and v ``[C, b]``, without gradient.
    """
    matrices = jax.lax.stop_gradient(matrices)

    def step(_: int, uv: tuple[Array, Array]) -> tuple[Array, Array]:
        v = _normalize(_einsum("cab,ca->cb", matrices, uv[0]))
        return _normalize(_einsum("cab,cb->ca", matrices, v)), v

    return jax.lax.fori_loop(0, iterations, step, (u, jnp.zeros_like(matrices[:, 0])))


def spectral_norms(matrices: Array, u: Array, v: Array) -> Array:
    """``uᵀMv`` ``[C]``: the largest singular values, differentiable in the matrices only, if u and v have converged."""
    return _einsum("ca,cab,cb->c", u, matrices, v)


def class_weights(counts: Array, alpha: float) -> Array:
    """λ_c ``[C]``: inverse effective numbers of samples, ``(1 - α)/(1 - αⁿ)``, scaled to mean one.

    Args:
      counts: training images of each class ``[C]``, at least 1.
      alpha: α in [0, 1); 0 weighs every class the same.
    """
    if alpha == 0:
        return jnp.ones_like(counts)
    inverse = -1.0 / jnp.expm1(counts * math.log(alpha))  # 1 - αⁿ cancels in float32
    return inverse / inverse.mean()


def group_spectral_penalty(sigma: Array, weights: Array) -> Array:
    """``1/C · Σ_c λ_c σ_c²`` of spectral norms ``[C]`` and class weights ``[C]``; a scalar."""
    return (weights * jnp.square(sigma)).mean()


@dataclass(frozen=True)
class GroupSpectralNorm(Objective):
    """`group_spectral_penalty` of the StyleGAN2 generator's class embeddings, in the generator's loss.

    Published with weight 0.5 on CIFAR10-LT and 0.01 on large data sets. State: u ``[C, a]`` of power iteration.
    """

    alpha: float = number(0.99, at_least=0, below=1)  # α of the effective number of samples
    power_iterations: int = number(4, at_least=1)  # a step
    # NoisyTwins speaks of "embedding parameters": those "stored". The penalty's pull on a class, against that of the
    # adversarial loss, is then the same for any number of classes C. On embeddings as they are in "effect", divided by √C
    # at run time, it shrinks with 1/C.
    embedding: str = choice("stored", "effective")

    def init(self, generator_params: PyTree, discriminator_params: PyTree) -> Array:
        """The leading left singular vectors, after `FIRST_ITERATIONS` from a fixed start."""
        del discriminator_params
        matrices = self._matrices(generator_params)
        start = _normalize(jax.random.normal(jax.random.key(0), matrices.shape[:2], matrices.dtype))
        return power_iteration(matrices, start, FIRST_ITERATIONS)[0]

    def generator(self, seen: GeneratorPass, state: Array) -> tuple[Array, Array]:
        """See `Objective`."""
        matrices = self._matrices(seen.params)
        u, v = power_iteration(matrices, state, self.power_iterations)
        weights = class_weights(seen.class_counts, self.alpha)
        return group_spectral_penalty(spectral_norms(matrices, u, v), weights), u

    def _matrices(self, params: PyTree) -> Array:
        try:
            weight = params["mapping"]["embed"]["weight"]  # [C, w_dim]
        except KeyError:
            raise ValueError(
                "gSR needs a generator whose mapping network embeds classes; this one's does not."
            ) from None
        return group_matrices(weight / math.sqrt(weight.shape[0]) if self.embedding == "effective" else weight)


def _normalize(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-3)
