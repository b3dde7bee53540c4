"""Adversarial losses on discriminator logits, unreduced.

Each loss is a pair of functions: ``discriminator(real_logits [N], fake_logits [N]) → [N]`` and
``generator(fake_logits [N]) → [N]``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.nn import relu, softplus

Array = jax.Array


class AdversarialLoss(NamedTuple):
    """The two sides of an adversarial game; see the module's docstring for shapes."""

    discriminator: Callable[[Array, Array], Array]
    generator: Callable[[Array], Array]


ADVERSARIAL_LOSSES: dict[str, AdversarialLoss] = {
    # Non-saturating logistic loss (Goodfellow et al., 2014; NoisyTwins eq. 1 and 2).
    "logistic": AdversarialLoss(
        discriminator=lambda real, fake: softplus(-real) + softplus(fake),
        generator=lambda fake: softplus(-fake),
    ),
    # Hinge loss (Lim & Ye, 2017; BigGAN Sec. 3).
    "hinge": AdversarialLoss(
        discriminator=lambda real, fake: relu(1.0 - real) + relu(1.0 + fake),
        generator=lambda fake: -fake,
    ),
}
