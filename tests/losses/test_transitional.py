"""Transitional training: its schedule, and what it judges."""

import jax.numpy as jnp
import numpy as np
import pytest
from loss_contexts import discriminator_context, generator_context, jit, progress

from noisytwins_jax.losses.adversarial import ADVERSARIAL_LOSSES
from noisytwins_jax.losses.transitional import Transitional, transition
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput


@pytest.mark.parametrize(("kimg", "t"), [(0, 0), (2000, 0), (2500, 0.25), (3000, 0.5), (4000, 1), (1e5, 1)])
def test_transition(kimg, t):
    assert float(transition(jnp.float32(kimg), 2000.0, 4000.0)) == t


def test_a_transition_without_length_is_a_step():
    np.testing.assert_array_equal(transition(jnp.float32([0, 9.99, 10.01, 50]), 10.0, 10.0), [0, 0, 1, 1])


def test_scale_is_the_weight_times_t():
    objective = Transitional(weight=0.5, start_kimg=40.0, end_kimg=80.0)
    scales = [float(jit(objective.scale)(progress(0, kimg))) for kimg in (0, 40, 50, 60, 80, 99)]
    np.testing.assert_allclose(scales, [0, 0, 0.125, 0.25, 0.5, 0.5])


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_judges_conditional_logits(loss):
    rng = np.random.default_rng(0)
    real, fake = rng.standard_normal((2, 5)).astype(np.float32)
    seen = {"adversarial": ADVERSARIAL_LOSSES[loss], "fake": DiscriminatorOutput(7 * real, conditional_logits=fake)}
    value, state = Transitional().generator(generator_context(**seen), ())
    assert float(value) == pytest.approx(float(ADVERSARIAL_LOSSES[loss].generator(fake).mean())) and state == ()
    seen["real"] = DiscriminatorOutput(-fake, conditional_logits=real)
    value, state = Transitional().discriminator(discriminator_context(**seen), ())
    expected = ADVERSARIAL_LOSSES[loss].discriminator(real, fake).mean()
    assert float(value) == pytest.approx(float(expected)) and state == ()
