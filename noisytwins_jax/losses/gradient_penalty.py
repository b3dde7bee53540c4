"""Zero-centred gradient penalties on real and generated images, R1 and R2, in every update (R3GAN).

Huang et al., "The GAN is dead; long live the GAN! A Modern Baseline GAN", NeurIPS 2024; R1 and R2 are of Mescheder et al.,
"Which Training Methods for GANs do actually Converge?", ICML 2018.
"""

from dataclasses import dataclass

import jax
from typing_extensions import override

from noisytwins_jax.losses.base import DiscriminatorContext, Loss, Progress, Term
from noisytwins_jax.losses.r1 import r1_penalty
from noisytwins_jax.utils.config_fields import number
from noisytwins_jax.utils.schedules import cosine

Array = jax.Array


@dataclass(frozen=True)
class GradientPenalty(Loss):
    """R1 + R2 in the discriminator's loss; `losses.r1` is R1 alone, now and then, in updates of its own.

    γ of γ/2·|∇|² goes from `gamma` to `final_gamma` by a cosine over the first `anneal_kimg`.
    """

    gamma: float = number(0.0, at_least=0)  # 0 for none
    final_gamma: float = number(0.0, at_least=0)
    anneal_kimg: float = number(0.0, at_least=0)  # 0: γ stays

    @property
    @override
    def active(self) -> bool:
        return self.gamma > 0

    @override
    def scale(self, progress: Progress) -> Array | float:
        if not self.anneal_kimg:
            return self.gamma
        return cosine(progress.kimg, self.gamma, self.final_gamma, self.anneal_kimg)

    @override
    def discriminator(self, ctx: DiscriminatorContext, state: tuple) -> Term:
        of_real, logits = r1_penalty(ctx.discriminate, ctx.real_images)
        of_fake, _ = r1_penalty(ctx.discriminate_fake, ctx.fake_images)
        return Term(of_real + of_fake, state, logits)
