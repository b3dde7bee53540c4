"""LeCam regularisation (Tseng et al., "Regularizing Generative Adversarial Networks under Limited Data", CVPR 2021).

Logits of real images are pulled towards the average logit of generated ones, and vice versa. As in the published NoisyTwins
code, the averages start at 0 without bias correction.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import relu
from typing_extensions import override

from noisytwins_jax.losses.base import DiscriminatorContext, Progress, PyTree, WeightedLoss
from noisytwins_jax.utils.config_fields import number

Array = jax.Array


class LogitAverages(NamedTuple):
    """Running means of the discriminator's logits, scalars: α_R and α_F of the paper."""

    real: Array
    fake: Array


def update_averages(averages: LogitAverages, real: Array, fake: Array, decay: float | Array) -> LogitAverages:
    """Move the averages towards those of logits ``[N]`` of a batch: ``a ← decay·a + (1 - decay)·mean``; no gradient."""
    means = LogitAverages(real.mean(), fake.mean())
    return jax.tree.map(lambda a, mean: jax.lax.stop_gradient(decay * a + (1.0 - decay) * mean), averages, means)


def lecam_penalty(real: Array, fake: Array, averages: LogitAverages) -> Array:
    """Compute ``mean relu(D(real) - α_F)² + mean relu(α_R - D(fake))²`` of logits ``[N]``; a scalar.

    The paper's formula is without relu; with it, as in the published code, only logits beyond the other average are pulled.
    """
    return jnp.square(relu(real - averages.fake)).mean() + jnp.square(relu(averages.real - fake)).mean()


@dataclass(frozen=True)
class LeCam(WeightedLoss):
    """`lecam_penalty` in the discriminator's loss.

    Averages are updated before they are used. Before `start_step` they are the means of the current batch; the term
    counts from ``start_step + 1`` on.
    """

    decay: float = number(0.99, at_least=0, at_most=1)

    @override
    def scale(self, progress: Progress) -> Array:
        return jnp.where(progress.step > self.start_step, self.weight, 0.0)

    @override
    def init(self, generator_params: PyTree, discriminator_params: PyTree) -> LogitAverages:
        return LogitAverages(jnp.zeros(()), jnp.zeros(()))

    @override
    def discriminator(self, ctx: DiscriminatorContext, state: LogitAverages) -> tuple[Array, LogitAverages]:
        real, fake = ctx.real.logits, ctx.fake.logits
        decay = jnp.where(ctx.progress.step < self.start_step, 0.0, self.decay)
        state = update_averages(state, real, fake, decay)
        return lecam_penalty(real, fake, state), state
