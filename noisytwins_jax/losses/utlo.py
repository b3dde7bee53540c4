"""Unconditional training at low resolution, UTLO (Khorram et al., "Taming the Tail in Class-Conditional GANs: Knowledge
Sharing via Unconditional Training at Lower Resolutions", CVPR 2024, arXiv 2402.17065).

The generator's layers up to a low resolution do not depend on the class, and the low-resolution image is discriminated
without it: tail classes share what is learnt from all classes.
"""

from dataclasses import dataclass

import jax
from typing_extensions import override

from noisytwins_jax.losses.base import DiscriminatorContext, GeneratorContext, Progress, WeightedLoss
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.utils.config_fields import number

Array = jax.Array


@dataclass(frozen=True)
class UTLO(WeightedLoss):
    """Mixes the adversarial loss on low-resolution images, unconditional, into both networks' losses.

    As in the published code, the adversarial loss becomes ``(L + λ·L_low)/(1 + λ)`` with the weight λ, published as 1. As an
    added term that is ``λ/(1 + λ) · (L_low - L)``, whose logged value may be negative. Any weight above 0 also makes both
    networks unconditional up to `resolution`.
    """

    resolution: int = number(8, at_least=4)  # pixels, a power of two below the images' own

    @override
    def scale(self, progress: Progress) -> Array:
        weight = super().scale(progress)
        return weight / (1.0 + weight)

    @override
    def generator(self, ctx: GeneratorContext, state: tuple) -> tuple[Array, tuple]:
        low_real, real = (None, None) if ctx.real is None else (_logits(ctx.real), ctx.real.logits)
        low = ctx.adversarial.generator(_logits(ctx.fake), low_real)
        return (low - ctx.adversarial.generator(ctx.fake.logits, real)).mean(), state

    @override
    def discriminator(self, ctx: DiscriminatorContext, state: tuple) -> tuple[Array, tuple]:
        low = ctx.adversarial.discriminator(_logits(ctx.real), _logits(ctx.fake))
        return (low - ctx.adversarial.discriminator(ctx.real.logits, ctx.fake.logits)).mean(), state


def _logits(images: DiscriminatorOutput) -> Array:
    if images.low_logits is None:
        raise ValueError("UTLO needs a discriminator with logits at low resolution, but this one has none.")
    return images.low_logits
