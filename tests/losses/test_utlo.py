"""UTLO: the mixture of the two losses."""

import numpy as np
import pytest
from loss_contexts import discriminator_context, generator_context, progress

from noisytwins_jax.losses.adversarial import ADVERSARIAL_LOSSES
from noisytwins_jax.losses.utlo import UTLO
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_mixes_the_losses_of_both_resolutions(loss, weight):
    """``(L + λ·L_low)/(1 + λ)``, in both networks' losses."""
    rng = np.random.default_rng(0)
    real, fake, low_real, low_fake = rng.standard_normal((4, 5)).astype(np.float32)
    adversarial, utlo = ADVERSARIAL_LOSSES[loss], UTLO(weight=weight)
    seen = {
        "adversarial": adversarial,
        "real": DiscriminatorOutput(real, low_logits=low_real),
        "fake": DiscriminatorOutput(fake, low_logits=low_fake),
    }
    terms = [
        (
            utlo.discriminator(discriminator_context(**seen), ()),
            adversarial.discriminator,
            (real, fake),
            (low_real, low_fake),
        ),
        (
            utlo.generator(generator_context(adversarial=adversarial, fake=seen["fake"]), ()),
            adversarial.generator,
            (fake,),
            (low_fake,),
        ),
    ]
    for (value, state), side, full_logits, low_logits in terms:
        full, low = side(*full_logits).mean(), side(*low_logits).mean()
        total = full + utlo.scale(progress(0)) * value
        assert float(total) == pytest.approx(float((full + weight * low) / (1 + weight)), rel=1e-5) and state == ()
