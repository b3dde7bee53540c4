"""LeCam against the official implementation, and from when on it counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import Golden, assert_close
from loss_contexts import discriminator_context, progress

from noisytwins_jax.losses.lecam import LeCam
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput


def see(real, fake, step: int = 0):
    return discriminator_context(
        real=DiscriminatorOutput(jnp.asarray(real)),
        fake=DiscriminatorOutput(jnp.asarray(fake)),
        progress=progress(step),
    )


def test_sequence():
    golden = Golden("losses")
    lecam = LeCam(weight=1.0, decay=golden.config["lecam"]["decay"], start_step=golden.config["lecam"]["start_iter"])
    state, values, averages = lecam.init({}, {}), [], []

    def loss(logits, state):
        return lecam.discriminator(see(*logits), state)

    for real, fake in zip(golden["in/lecam/real"][..., 0], golden["in/lecam/fake"][..., 0], strict=True):
        (value, state), gradients = jax.value_and_grad(loss, has_aux=True)((real, fake), state)
        values.append(value)
        averages.append(state)
    assert_close(values, golden["out/lecam/value"], 1e-6)
    assert_close(averages, golden["out/lecam/ema"], 1e-6)
    for gradient, side in zip(gradients, ("real", "fake"), strict=True):
        assert_close(gradient, golden[f"out/lecam/grad_{side}_last"][:, 0], 1e-6)


def test_averages_are_the_batchs_own_before_the_start_and_move_from_then_on():
    lecam = LeCam(weight=0.3, start_step=5, decay=0.9)
    state = lecam.init({}, {})
    assert all(x.shape == () and x == 0 for x in state)
    for step in (0, 4):
        _, state = lecam.discriminator(see([1.0 + step, 3.0 + step], [-2.0, -4.0], step), state)
        assert (float(state.real), float(state.fake)) == (2.0 + step, -3.0)
    _, state = lecam.discriminator(see([16.0, 16.0], [7.0, 7.0], 5), state)
    assert_close(state, [0.9 * 6 + 0.1 * 16, 0.9 * -3 + 0.1 * 7], 1e-6)


@pytest.mark.parametrize(("step", "scale"), [(0, 0.0), (4, 0.0), (5, 0.0), (6, 0.3), (99, 0.3)])
def test_the_term_counts_after_the_start(step, scale):
    assert float(LeCam(weight=0.3, start_step=5).scale(progress(step))) == pytest.approx(scale)


def test_at_the_published_start_of_zero_the_first_batch_moves_the_averages_from_zero_and_does_not_count():
    lecam = LeCam(weight=0.01)
    assert float(lecam.scale(progress(0))) == 0 and float(lecam.scale(progress(1))) == pytest.approx(0.01)
    _, state = lecam.discriminator(see([2.0], [-2.0]), lecam.init({}, {}))
    assert_close(state, [0.02, -0.02], 1e-5)


def test_logits_between_the_averages_are_not_pulled():
    lecam = LeCam(weight=1.0)
    state = lecam.init({}, {})._replace(real=jnp.float32(5.0), fake=jnp.float32(9.0))
    value, _ = lecam.discriminator(see(np.float32([8.0, 4.0]), np.float32([6.0, 7.0])), state)
    assert float(value) == 0  # real below the fakes' average, fakes above the reals': the roles reversed
