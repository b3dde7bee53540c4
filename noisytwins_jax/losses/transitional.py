"""Transitional training (Shahbazi et al., "Collapse by Conditioning: Training Class-conditional GANs with Limited Data",
ICLR 2022).

Training starts unconditional and turns conditional: the class enters the generator in proportion to t, which rises from
0 to 1, and the discriminator has a conditional logit beside the unconditional one whose loss counts t times.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from noisytwins_jax.losses.base import DiscriminatorContext, GeneratorContext, Loss, Progress
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.utils.config_fields import number

Array = jax.Array


def transition(kimg: Array, start: float, end: float) -> Array:
    """t: 0 until `start`, 1 from `end` on, linear between; all in thousands of images."""
    return jnp.clip((kimg - start) / max(end - start, 1e-7), 0.0, 1.0)


@dataclass(frozen=True)
class Transitional(Loss):
    """The adversarial loss on conditional logits, in both networks' losses.

    Published with weight 1: any weight above 0 also gives the generator its transition and the discriminator its second
    logit.
    """

    start_kimg: float = number(2000.0, at_least=0)  # T_s
    end_kimg: float = number(4000.0, at_least=0)  # T_e, not before T_s

    def scale(self, progress: Progress) -> Array:
        """See `Loss`."""
        return super().scale(progress) * transition(progress.kimg, self.start_kimg, self.end_kimg)

    def generator(self, seen: GeneratorContext, state: tuple) -> tuple[Array, tuple]:
        """See `Loss`."""
        return seen.loss.generator(_logits(seen.fake)).mean(), state

    def discriminator(self, seen: DiscriminatorContext, state: tuple) -> tuple[Array, tuple]:
        """See `Loss`."""
        return seen.loss.discriminator(_logits(seen.real), _logits(seen.fake)).mean(), state


def _logits(images: DiscriminatorOutput) -> Array:
    if images.conditional_logits is None:
        raise ValueError("Transitional training needs a discriminator with conditional logits, but this one has none.")
    return images.conditional_logits
