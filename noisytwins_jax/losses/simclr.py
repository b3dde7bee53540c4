"""SimCLR between twins, the contrastive loss that NoisyTwins is compared with (Sec. 6).

NT-Xent of Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (ICML 2020, eq. 1), on W.
The code of that comparison was not published: acting on W itself without a projection head, the temperature and the weight
are our choice, not a reproduction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from typing_extensions import override

from noisytwins_jax.losses.base import GeneratorContext, WeightedLoss
from noisytwins_jax.utils.config_fields import number

Array = jax.Array


def nt_xent_loss(w: Array, temperature: float, replicate: Callable[[Array], Array] = lambda x: x) -> Array:
    """Compute NT-Xent: of all other w in the batch, a w's twin should be the most similar.

    With cosines c_ij and temperature τ, the mean over i of ``-c_it/τ + log Σ_{j≠i} exp(c_ij/τ)``, where t is the twin of i.

    Args:
      w: mapping outputs ``[2N, D]`` in the layout of `noisytwins.twins`: rows i and i + N are twins.
      temperature: τ, above 0.
      replicate: gathers `w` to every device of a mesh, once.

    Returns:
      A scalar.
    """
    n = w.shape[0]
    w = replicate(w)
    w = w * jax.lax.rsqrt(jnp.square(w).sum(axis=1, keepdims=True) + 1e-12)
    similarity = jnp.matmul(w, w.T, precision="highest") / temperature  # a TPU would multiply in bfloat16 by default
    itself = jnp.eye(n, dtype=bool)
    twin = jnp.where(jnp.roll(itself, n // 2, axis=1), similarity, 0).sum(axis=1)  # indexing is a gather, slow on TPUs
    return (logsumexp(similarity, axis=1, where=~itself) - twin).mean()


@dataclass(frozen=True)
class SimCLR(WeightedLoss):
    """`nt_xent_loss` of the twins' w, in the generator's loss."""

    temperature: float = number(0.5, above=0)  # τ

    twins: ClassVar[bool] = True

    @override
    def generator(self, ctx: GeneratorContext, state: tuple) -> tuple[Array, tuple]:
        return nt_xent_loss(ctx.w, self.temperature, ctx.replicate), state
