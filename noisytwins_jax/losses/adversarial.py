"""Adversarial losses on discriminator logits, unreduced.

Each loss is a pair of functions: ``discriminator(real_logits [N], fake_logits [N]) → [N]`` and
``generator(fake_logits [N], real_logits [N] or None) → [N]``. Only losses of pairs use the generator's real logits.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.nn import relu, softplus
from typing_extensions import override

from noisytwins_jax.losses.base import AdversarialLoss, DiscriminatorContext, GeneratorContext, Loss, Progress

Array = jax.Array


def _hinge(margin: float) -> AdversarialLoss:
    return AdversarialLoss(
        discriminator=lambda real, fake: relu(margin - real) + relu(margin + fake),
        generator=lambda fake, real=None: -fake,
    )


ADVERSARIAL_LOSSES: dict[str, AdversarialLoss] = {
    # Non-saturating logistic loss (Goodfellow et al., 2014; NoisyTwins eq. 1 and 2), "vanilla" in StudioGAN.
    "logistic": AdversarialLoss(
        discriminator=lambda real, fake: softplus(-real) + softplus(fake),
        generator=lambda fake, real=None: softplus(-fake),
    ),
    # Hinge loss (Lim & Ye, 2017; BigGAN Sec. 3).
    "hinge": _hinge(1.0),
    # Wasserstein loss (Arjovsky et al., 2017, eq. 2). R1 or the like must bound the discriminator's slope.
    "wasserstein": AdversarialLoss(
        discriminator=lambda real, fake: fake - real,
        generator=lambda fake, real=None: -fake,
    ),
    # Least squares (Mao et al., 2017, eq. 9: targets 1 for real, 0 for generated, 1 for the generator).
    "least_squares": AdversarialLoss(
        discriminator=lambda real, fake: 0.5 * (jnp.square(real - 1.0) + jnp.square(fake)),
        generator=lambda fake, real=None: 0.5 * jnp.square(fake - 1.0),
    ),
    # Relativistic pairing loss (Jolicoeur-Martineau, 2019; R3GAN): each image against one of the other kind and its class.
    "relativistic": AdversarialLoss(
        discriminator=lambda real, fake: softplus(fake - real),
        generator=lambda fake, real: softplus(real - fake),
        pairs=True,
    ),
}


def adversarial_loss(name: str, margin: float = 1.0) -> AdversarialLoss:
    """Return one of `ADVERSARIAL_LOSSES`; the hinge loss also with another margin: ``relu(m - real) + relu(m + fake)``.

    BigGAN (appendix H) tried margins of 0.5 (worse), up to 3 (no gain) and beyond (unstable); they have a meaning only
    with spectral normalisation.

    Raises:
      ValueError: unknown name, a margin that is not above 0, or one other than 1 for a loss that has none.
    """
    if name not in ADVERSARIAL_LOSSES:
        raise ValueError(f"no adversarial loss {name!r}; there are {', '.join(ADVERSARIAL_LOSSES)}.")
    if not 0 < margin < math.inf:
        raise ValueError(f"a margin must be above 0 and finite, but it is {margin}.")
    if name == "hinge":
        return _hinge(margin)
    if margin != 1:
        raise ValueError(f"only the hinge loss has a margin; {name} has none, so leave it at 1, not {margin}.")
    return ADVERSARIAL_LOSSES[name]


@dataclass(frozen=True)
class Adversarial(Loss):
    """The adversarial loss on the logits of both networks' updates; always active, with weight 1."""

    name: str  # of `ADVERSARIAL_LOSSES`
    margin: float = 1.0  # of the hinge loss

    @property
    @override
    def active(self) -> bool:
        return True

    @override
    def scale(self, progress: Progress) -> float:
        return 1.0

    @override
    def generator(self, ctx: GeneratorContext, state: tuple) -> tuple[Array, tuple]:
        real = None if ctx.real is None else ctx.real.logits
        return ctx.adversarial.generator(ctx.fake.logits, real).mean(), state

    @override
    def discriminator(self, ctx: DiscriminatorContext, state: tuple) -> tuple[Array, tuple]:
        return ctx.adversarial.discriminator(ctx.real.logits, ctx.fake.logits).mean(), state
