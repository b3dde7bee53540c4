"""Transitional training (Shahbazi et al., "Collapse by Conditioning: Training Class-conditional GANs with Limited Data",
ICLR 2022).

Training starts unconditional and becomes conditional: the generator's class projection is multiplied by t, which rises from
0 to 1, and so is the loss on the conditional logit that the discriminator has beside the unconditional one.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from typing_extensions import override

from noisytwins_jax.losses.base import DiscriminatorContext, GeneratorContext, Progress, WeightedLoss
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.utils.config_fields import number

Array = jax.Array


def transition(kimg: Array, start: float, end: float) -> Array:
    """Compute t: 0 until `start`, 1 from `end` on, linear in between; all in thousands of images."""
    return jnp.clip((kimg - start) / max(end - start, 1e-7), 0.0, 1.0)


@dataclass(frozen=True)
class Transitional(WeightedLoss):
    """The adversarial loss on conditional logits, in both networks' losses.

    Published with weight 1. Any weight above 0 also gives the generator its transition and the discriminator its second
    logit.
    """

    start_kimg: float = number(2000.0, at_least=0)  # T_s
    end_kimg: float = number(4000.0, at_least=0)  # T_e, not before T_s

    @override
    def scale(self, progress: Progress) -> Array:
        return super().scale(progress) * transition(progress.kimg, self.start_kimg, self.end_kimg)

    @override
    def generator(self, ctx: GeneratorContext, state: tuple) -> tuple[Array, tuple]:
        real = None if ctx.real is None else _logits(ctx.real)
        return ctx.adversarial.generator(_logits(ctx.fake), real).mean(), state

    @override
    def discriminator(self, ctx: DiscriminatorContext, state: tuple) -> tuple[Array, tuple]:
        return ctx.adversarial.discriminator(_logits(ctx.real), _logits(ctx.fake)).mean(), state


def _logits(images: DiscriminatorOutput) -> Array:
    if images.conditional_logits is None:
        raise ValueError("Transitional training needs a discriminator with conditional logits, but this one has none.")
    return images.conditional_logits
