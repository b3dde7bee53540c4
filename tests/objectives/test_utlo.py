"""UTLO: what it judges."""

import numpy as np
import pytest
from objective_passes import discriminator_pass, generator_pass, progress

from noisytwins_jax.networks.discrimination import Discrimination
from noisytwins_jax.objectives.adversarial import ADVERSARIAL_LOSSES
from noisytwins_jax.objectives.utlo import UTLO


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_judges_low_resolution_logits(loss):
    rng = np.random.default_rng(0)
    real, fake = rng.standard_normal((2, 5)).astype(np.float32)
    seen = {"loss": ADVERSARIAL_LOSSES[loss], "fake": Discrimination(7 * real, low_logits=fake)}
    value, state = UTLO().generator(generator_pass(**seen), ())
    assert float(value) == pytest.approx(float(ADVERSARIAL_LOSSES[loss].generator(fake).mean())) and state == ()
    seen["real"] = Discrimination(-fake, low_logits=real)
    value, state = UTLO().discriminator(discriminator_pass(**seen), ())
    expected = ADVERSARIAL_LOSSES[loss].discriminator(real, fake).mean()
    assert float(value) == pytest.approx(float(expected)) and state == ()


def test_counts_from_the_first_step():
    assert float(UTLO(weight=1.0).scale(progress(0))) == 1.0
