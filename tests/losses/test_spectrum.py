"""The penalty on first singular values: its value, its gradient, and that it holds them down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import assert_close
from loss_contexts import discriminator_context, generator_context, jit

from noisytwins_jax.losses.spectrum import Spectrum
from noisytwins_jax.models import singular_values

CONVERGED = 100  # iterations


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = {"linear": (6, 20), "conv": (3, 3, 4, 5), "output": (9, 1)}
    return {
        name: {"weight": rng.standard_normal(shape).astype(np.float32), "bias": np.ones(shape[-1], np.float32)}
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def start(params):
    return jit(Spectrum(network="both").init)(params, params)


def svds(params):
    return {
        name: np.linalg.svd(np.float64(x), full_matrices=False)
        for name, x in singular_values.weight_matrices(params).items()
    }


def targets(objective, sigma):
    if objective.target == "value":
        return objective.sigma
    return objective.ratio * sigma[1] if len(sigma) > 1 else np.inf


def penalty(objective, network):
    """(params, state) → (value, state) of the term in the loss of `network`."""
    make = generator_context if network == "generator" else discriminator_context
    return lambda params, state: getattr(objective, network)(make(params=params), state)


OBJECTIVES = [
    Spectrum(target="value", sigma=5.0, network="both", iterations=CONVERGED),
    Spectrum(target="ratio", ratio=1.05, network="both", iterations=CONVERGED),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda x: x.target)
@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_value_and_gradient(objective, network, params, start):
    """The gradient of σ0 is u0 v0ᵀ; the target has none, though it depends on the weight."""
    (value, state), gradients = jit(jax.value_and_grad(penalty(objective, network), has_aux=True))(params, start)
    expected, acted = 0.0, 0
    for name, (u, sigma, vt) in svds(params).items():
        excess = max(0.0, sigma[0] - targets(objective, sigma))
        acted += excess > 0
        expected += excess**2
        layer = name.removesuffix("/weight")
        direction = 2 * excess * np.outer(u[:, 0], vt[0]).reshape(params[layer]["weight"].shape)
        np.testing.assert_allclose(gradients[layer]["weight"], direction, atol=2e-3 * max(excess, 1e-6), err_msg=name)
        np.testing.assert_array_equal(gradients[layer]["bias"], 0.0)
    assert 1 <= acted < 3
    assert float(value) == pytest.approx(expected, rel=1e-4)
    other = {"generator": "discriminator", "discriminator": "generator"}[network]
    assert jax.tree.structure(state) == jax.tree.structure(start)
    for name in start[other]:
        np.testing.assert_array_equal(state[other][name], start[other][name])


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_one_network_alone(network, params):
    objective = Spectrum(network=network)
    other = {"generator": "discriminator", "discriminator": "generator"}[network]
    shapes = jax.eval_shape(objective.init, params, params)
    assert set(shapes) == {network}
    assert penalty(objective, other)(params, shapes) is None
    value, state = jax.eval_shape(penalty(objective, network), params, shapes)
    assert value.shape == ()
    assert state == shapes


@pytest.mark.parametrize(
    ("objective", "first"), [(Spectrum(sigma=4.0), 4.0), (Spectrum(target="ratio", ratio=1.5), 3.0)]
)
def test_descending_takes_the_first_value_to_the_target_and_leaves_the_others(objective, first):
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.standard_normal((n, 3)))[0] for n in (7, 12))
    params = {"w": jnp.asarray(u * [8.0, 2.0, 1.0] @ v.T, jnp.float32)}

    @jit
    def step(params, state):
        (_, state), gradients = jax.value_and_grad(penalty(objective, "generator"), has_aux=True)(params, state)
        return jax.tree.map(lambda x, g: x - 0.1 * g, params, gradients), state

    state = jit(objective.init)(params, {})
    for _ in range(60):
        params, state = step(params, state)
    assert_close(np.linalg.svd(params["w"])[1][:3], [first, 2.0, 1.0], 1e-3)


def test_below_the_target_nothing_happens(params, start):
    objective = Spectrum(sigma=1000.0)
    (value, _), gradients = jit(jax.value_and_grad(penalty(objective, "generator"), has_aux=True))(params, start)
    assert float(value) == 0.0
    assert not any(np.any(x) for x in jax.tree.leaves(gradients))


def test_zero_weights_are_no_trouble():
    params = {"w": jnp.zeros((4, 5)), "v": jnp.ones((4, 5))}
    for objective in (Spectrum(sigma=1.0), Spectrum(target="ratio")):
        state = jit(objective.init)(params, {})
        (value, state), gradients = jit(jax.value_and_grad(penalty(objective, "generator"), has_aux=True))(
            params, state
        )
        assert float(value) > 0.0
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((gradients, state)))
        np.testing.assert_array_equal(gradients["w"], 0.0)
