"""R1 gradient penalty (Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018, eq. 9)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from typing_extensions import override

from noisytwins_jax.losses.base import DiscriminatorContext, Loss, Progress, Term
from noisytwins_jax.utils.config_fields import number

Array = jax.Array


def r1_penalty(discriminate: Callable[[Array], Array], images: Array) -> tuple[Array, Array]:
    """Compute ``½ · mean_n |∂ Σ logits / ∂ images_n|²``, without γ, and the logits ``[N]``.

    The sum over the batch is differentiated, not each sample alone: minibatch standard deviation couples samples.

    Args:
      discriminate: images to logits ``[N]``, augmentation included.
      images: real images ``[N, H, W, C]``.
    """

    def total(x: Array) -> tuple[Array, Array]:
        logits = discriminate(x)
        return logits.sum(), logits

    gradients, logits = jax.grad(total, has_aux=True)(images)
    return 0.5 * jnp.square(gradients).sum(axis=(1, 2, 3)).mean(), logits


@dataclass(frozen=True)
class R1(Loss):
    """`r1_penalty` of real images, as an update of its own every `interval` updates of the discriminator."""

    gamma: float = number(0.01, at_least=0)  # γ of γ/2·|∇|²; 0 for none
    interval: int = number(16, at_least=1)

    lazy: ClassVar[Literal["discriminator"]] = "discriminator"

    @property
    @override
    def active(self) -> bool:
        return self.gamma > 0

    @override
    def scale(self, progress: Progress) -> float:
        return self.gamma * self.interval

    @override
    def discriminator(self, ctx: DiscriminatorContext, state: tuple) -> Term:
        penalty, logits = r1_penalty(ctx.discriminate, ctx.real_images)
        return Term(penalty, state, logits)
