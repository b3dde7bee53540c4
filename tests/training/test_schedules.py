"""Averaging and lazy-regularisation constants against tables of the official implementations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_numbers import Golden

from noisytwins_jax.config.groups import OptimizerConfig
from noisytwins_jax.training.augment.ada import adapt
from noisytwins_jax.training.ema import ema_decay, update_ema
from noisytwins_jax.training.optimizer import lazy_adam, lazy_rates
from noisytwins_jax.utils.schedules import cosine


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("tables")


def test_ema_decay(golden):
    rows, expected = golden["in/ema/rows"], golden["out/ema/beta_f64"]
    assert len(rows) == len(expected) == 45
    for (batch, kimg, rampup, step), beta in zip(rows, expected, strict=True):
        decay = ema_decay(jnp.int32(step), int(batch), float(kimg), None if rampup < 0 else float(rampup))
        assert abs(float(decay) - beta) < 1e-6, (batch, kimg, rampup, step)


def test_ema_decays_of_the_published_runs():
    assert float(ema_decay(jnp.int32(10**6), 128, 20.0, None)) == pytest.approx(0.9955737, abs=1e-6)
    assert float(ema_decay(jnp.int32(10**6), 128, 500.0, 0.05)) == pytest.approx(0.9998226, abs=1e-6)


def test_ema_averages_parameters_and_copies_statistics():
    old = {"params": {"a": jnp.array([0.0, 4.0])}, "buffers": {"w_avg": jnp.array([1.0])}}
    new = {"params": {"a": jnp.array([1.0, 0.0])}, "buffers": {"w_avg": jnp.array([7.0])}}
    averaged = update_ema(old, new, jnp.float32(0.75))
    np.testing.assert_allclose(averaged["params"]["a"], [0.25, 3.0])
    np.testing.assert_array_equal(averaged["buffers"]["w_avg"], [7.0])


def test_ema_starts_as_a_copy_while_ramping_up():
    old = {"params": jnp.array([5.0])}
    averaged = update_ema(old, {"params": jnp.array([2.0])}, ema_decay(jnp.int32(0), 128, 500.0, 0.05))
    np.testing.assert_array_equal(averaged["params"], [2.0])


def test_lazy_rates(golden):
    for row, expected in zip(golden["in/adam/rows"].astype(np.float64), golden["out/adam/values_f64"], strict=True):
        g_lr, d_lr, beta1, beta2, g_interval, d_interval = row
        g, d = lazy_rates(g_lr, beta1, beta2, g_interval), lazy_rates(d_lr, beta1, beta2, d_interval)
        np.testing.assert_allclose([g[0], d[0], *g[1:], *d[1:]], expected, rtol=1e-6)  # inputs are float32


def test_lazy_adam_uses_its_rates():
    config = OptimizerConfig(beta1=0.5, beta2=0.9, epsilon=1e-3)
    lr, beta1, beta2 = lazy_rates(0.01, 0.5, 0.9, 4)
    optimizer = lazy_adam(config, 0.01, 4)
    x = jnp.array(0.0)
    state, m, v = optimizer.init(x), 0.0, 0.0
    for t, gradient in enumerate([0.3, -2.0, 1.0], start=1):
        update, state = optimizer.update(jnp.array(gradient), state, x)
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2
        expected = -lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + 1e-3)
        assert float(update) == pytest.approx(expected, rel=1e-5)


def test_adam_with_a_schedule_of_beta2():
    """Moments and their correction by the β₂ of the update, as where an optimiser's option is changed while it is used."""
    optimizer = lazy_adam(OptimizerConfig(beta1=0.0, beta2=0.9, epsilon=1e-3), 0.01, 1)
    x = jnp.array(0.0)
    state, v = optimizer.init(x), 0.0
    for t, (gradient, beta2) in enumerate([(0.3, 0.9), (-2.0, 0.95), (1.0, 0.99)], start=1):
        update, state = jax.jit(lambda g, s, b: optimizer.update(g, s, x, beta2=b))(
            jnp.array(gradient), state, jnp.array(beta2)
        )
        v = beta2 * v + (1 - beta2) * gradient**2
        assert float(update) == pytest.approx(-0.01 * gradient / (np.sqrt(v / (1 - beta2**t)) + 1e-3), rel=1e-4)


def test_cosine():
    """The middle of R3GAN's CIFAR10 run: learning rate, β₂ and γ."""
    ends = [(2e-4, 5e-5, 1.25e-4), (0.9, 0.99, 0.945), (0.05, 0.005, 0.0275)]
    for start, end, middle in ends:
        values = [float(cosine(jnp.float32(kimg), start, end, 20_000.0)) for kimg in (0, 10_000, 20_000, 90_000)]
        np.testing.assert_allclose(values, [start, middle, end, end], rtol=1e-5)


def test_published_rates_are_the_defaults():
    config = OptimizerConfig()
    g = lazy_rates(config.generator_lr, config.beta1, config.beta2, 4)
    d = lazy_rates(config.discriminator_lr, config.beta1, config.beta2, 16)
    np.testing.assert_allclose(g, [0.002, 0.0, 0.99199197], rtol=1e-7)
    np.testing.assert_allclose(d, [0.00235294, 0.0, 0.99058546], rtol=2e-6)
    assert dataclasses.asdict(config)["epsilon"] == 1e-8


def test_a_regularisers_update_leaves_alone_what_it_does_not_reach():
    params = {"output": {"bias": jnp.array(1.0), "weight": jnp.array(1.0)}, "head": {"w": jnp.array(1.0)}}
    optimizer = lazy_adam(OptimizerConfig(beta1=0.5), 0.1, 16, unreached=(("output", "bias"), ("head",)))
    gradients = jax.tree.map(jnp.ones_like, params)
    _, state = optimizer.update(gradients, optimizer.init(params), params)
    updates, after = optimizer.update(gradients, state, params, regularization=True)
    assert updates["output"]["bias"] == updates["head"]["w"] == 0.0 != updates["output"]["weight"]
    before, after = (x.inner_states for x in (state, after))
    assert jax.tree.leaves(before["unreached"]) == jax.tree.leaves(after["unreached"])
    counts = [int(optax.tree_utils.tree_get(x["reached"], "count")) for x in (before, after)]
    assert counts == [1, 2]
    _, once_more = optimizer.update(gradients, state, params)
    assert jax.tree.leaves(once_more.inner_states["unreached"]) != jax.tree.leaves(before["unreached"])


@pytest.mark.parametrize("run", ["a", "b", "c"])
def test_ada_controller(golden, run):
    settings = golden.config[f"ada_{run}"]
    p, trace = jnp.float32(settings["p0"]), []
    for sign_sum, count in golden[f"in/ada/{run}/signs"]:
        p = adapt(p, jnp.float32(sign_sum), jnp.float32(count), settings["target"], settings["ada_kimg"])
        trace.append(float(p))
    np.testing.assert_allclose(trace, golden[f"out/ada/{run}/p"], atol=1e-6)
