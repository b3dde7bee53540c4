"""SimCLR on W: its sum, and what it prefers."""

import jax
import numpy as np
import pytest
from golden_numbers import assert_close
from loss_contexts import generator_context, jit

from noisytwins_jax.losses.noisytwins import twins
from noisytwins_jax.losses.simclr import SimCLR, nt_xent_loss

LOSS = jit(nt_xent_loss, static_argnums=1)


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_against_its_sums(temperature):
    w = np.random.default_rng(0).standard_normal((10, 7))
    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    total = 0.0
    for i in range(10):
        similarity = [unit[i] @ unit[j] / temperature for j in range(10)]
        total -= similarity[(i + 5) % 10] - np.log(sum(np.exp(s) for j, s in enumerate(similarity) if j != i))
    assert_close(LOSS(w.astype(np.float32), temperature), total / 10, 1e-6)


def test_twins_that_agree_and_differ_from_the_rest_are_best():
    directions = np.eye(8, dtype=np.float32)
    assert float(LOSS(twins(directions), 0.05)) == pytest.approx(0.0, abs=1e-6)
    collapsed = float(LOSS(np.ones((16, 8), np.float32), 0.05))
    assert collapsed == pytest.approx(np.log(15))
    swapped = np.concatenate([directions, np.roll(directions, 1, axis=0)])
    assert float(LOSS(swapped, 0.05)) > collapsed


def test_length_does_not_count_and_zeros_do_not_break_it():
    w = random(6, 5)
    assert_close(LOSS(w * np.arange(1, 7, dtype=np.float32)[:, None], 0.5), LOSS(w, 0.5), 1e-6)
    w[2] = 0.0
    assert np.isfinite(jit(jax.grad(lambda w: nt_xent_loss(w, 0.5)))(w)).all()


def test_the_objective_gathers_w_once():
    w, gathered = random(6, 5), []

    def replicate(x):
        gathered.append(x.shape)
        return x[::-1]  # something that the loss would show if it came later

    value, state = jit(lambda: SimCLR(temperature=0.2).generator(generator_context(w=w, replicate=replicate), ()))()
    assert gathered == [(6, 5)] and state == () and SimCLR.twins
    assert float(value) == pytest.approx(float(LOSS(w[::-1], 0.2)))
