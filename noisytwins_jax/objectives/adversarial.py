"""Adversarial losses on discriminator logits, unreduced.

Each loss is a pair of functions: ``discriminator(real_logits [N], fake_logits [N]) → [N]`` and
``generator(fake_logits [N]) → [N]``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import relu, softplus

Array = jax.Array


class AdversarialLoss(NamedTuple):
    """The two sides of an adversarial game; see the module's docstring for shapes."""

    discriminator: Callable[[Array, Array], Array]
    generator: Callable[[Array], Array]


ADVERSARIAL_LOSSES: dict[str, AdversarialLoss] = {
    # Non-saturating logistic loss (Goodfellow et al., 2014; NoisyTwins eq. 1 and 2), "vanilla" in StudioGAN.
    "logistic": AdversarialLoss(
        discriminator=lambda real, fake: softplus(-real) + softplus(fake),
        generator=lambda fake: softplus(-fake),
    ),
    # Hinge loss (Lim & Ye, 2017; BigGAN Sec. 3).
    "hinge": AdversarialLoss(
        discriminator=lambda real, fake: relu(1.0 - real) + relu(1.0 + fake),
        generator=lambda fake: -fake,
    ),
    # Wasserstein loss (Arjovsky et al., 2017, eq. 2); what bounds the discriminator's slope, such as R1, is apart.
    "wasserstein": AdversarialLoss(
        discriminator=lambda real, fake: fake - real,
        generator=lambda fake: -fake,
    ),
    # Least squares (Mao et al., 2017, eq. 9: targets 1 for real, 0 for generated, 1 for the generator).
    "least_squares": AdversarialLoss(
        discriminator=lambda real, fake: 0.5 * (jnp.square(real - 1.0) + jnp.square(fake)),
        generator=lambda fake: 0.5 * jnp.square(fake - 1.0),
    ),
}
