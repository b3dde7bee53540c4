"""Group spectral regularisation against the official implementation, singular values and effective numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import Golden, assert_close
from objective_passes import generator_pass, jit

from noisytwins_jax.noisytwins import effective_number
from noisytwins_jax.objectives import gsr
from noisytwins_jax.objectives.gsr import GroupSpectralNorm

CIFAR10_LT = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
SETS = ["gsr_a", "gsr_b", "gsr_c"]

iterate = jit(gsr.power_iteration, static_argnums=2)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("losses")


@pytest.mark.parametrize(
    ("dim", "shape"), [(64, (8, 8)), (128, (8, 16)), (384, (16, 24)), (512, (16, 32)), (7, (1, 7))]
)
def test_group_shape(dim, shape):
    assert gsr.group_shape(dim) == shape


@pytest.mark.parametrize("name", SETS)
def test_power_iteration(golden, name):
    matrices = gsr.group_matrices(jnp.asarray(golden[f"in/{name}/gain_embed"]))
    config = golden.config[name]
    assert matrices.shape[1:] == (config["h"], config["w"])
    for iterations in (1, 4):
        u, v = iterate(matrices, golden[f"in/{name}/u_init"][..., 0], iterations)
        assert_close(u, golden[f"out/{name}/power_u_it{iterations}"][..., 0], 2e-6)
        sigma = gsr.spectral_norms(matrices, u, v)
        assert_close(sigma, golden[f"out/{name}/power_sigma_it{iterations}"], 2e-6)


@pytest.mark.parametrize("name", SETS)
def test_penalty_and_gradients(golden, name):
    """The official penalty adds those of gains and biases; its weight is 0.5 and its α 0.99."""
    with jax.enable_x64(True):
        vectors = [jnp.asarray(golden[f"in/{name}/{kind}_embed"], float) for kind in ("gain", "bias")]
        weights = gsr.class_weights(jnp.asarray(golden[f"in/{name}/counts"], float), 0.99)
        start = jnp.asarray(golden[f"in/{name}/u_init"][..., 0], float)
        uv = [iterate(gsr.group_matrices(x), start, 3000) for x in vectors]

        def loss(vectors):
            sigmas = [gsr.spectral_norms(gsr.group_matrices(x), *uv) for x, uv in zip(vectors, uv, strict=True)]
            return 0.5 * sum(gsr.group_spectral_penalty(sigma, weights) for sigma in sigmas), sigmas

        (value, sigmas), gradients = jit(jax.value_and_grad(loss, has_aux=True))(vectors)
    assert_close(value, golden[f"out/{name}/reg_loss"], 1e-6)
    for kind, sigma, gradient in zip(("gain", "bias"), sigmas, gradients, strict=True):
        assert_close(sigma, golden[f"out/{name}/sigma_{kind}"], 1e-6)
        assert_close(gradient, golden[f"out/{name}/grad_{kind}"], 1e-5)


@pytest.mark.parametrize("alpha", [0.5, 0.99, 0.999, 0.99999])
def test_class_weights_are_inverse_effective_numbers_of_mean_one(alpha):
    counts = [*CIFAR10_LT, 3, 1]
    expected = 1 / effective_number(counts, alpha)
    weights = gsr.class_weights(jnp.asarray(counts, jnp.float32), alpha)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-6)
    assert float(weights.mean()) == pytest.approx(1.0, rel=1e-6)


def test_class_weights_of_cifar10_lt():
    expected = [0.783832] * 3 + [0.783848, 0.785034, 0.800201, 0.868159, 1.041415, 1.385429, 1.984417]
    np.testing.assert_allclose(gsr.class_weights(jnp.float32(CIFAR10_LT), 0.99), expected, atol=2e-6)


def test_without_alpha_every_class_weighs_the_same():
    np.testing.assert_array_equal(gsr.class_weights(jnp.float32([500, 3, 1]), 0.0), 1.0)


def generator_params(weight):
    return {"mapping": {"embed": {"weight": jnp.asarray(weight), "bias": jnp.ones(weight.shape[1])}}, "synthesis": {}}


@pytest.fixture(scope="module")
def embedding():
    return np.random.default_rng(0).standard_normal((4, 24)).astype(np.float32)


@pytest.mark.parametrize("scale", ["stored", "effective"])
def test_the_objective_finds_the_largest_singular_values_and_keeps_following_them(embedding, scale):
    objective = GroupSpectralNorm(alpha=0.9, embedding=scale)
    counts = jnp.float32([90, 30, 9, 1])
    state = jit(objective.init)(generator_params(embedding), {})
    assert state.shape == (4, 4)
    changed = embedding + 0.05 * np.random.default_rng(1).standard_normal((4, 24)).astype(np.float32)
    step = jit(lambda params, state: objective.generator(generator_pass(params=params, class_counts=counts), state))
    for weight in (embedding, *[changed] * 12):
        value, state = step(generator_params(weight), state)
        u, sigma, _ = np.linalg.svd(weight.reshape(4, 4, 6) / (2.0 if scale == "effective" else 1.0))
        penalty = (np.asarray(gsr.class_weights(counts, 0.9)) * sigma[:, 0] ** 2).mean()
        assert float(value) == pytest.approx(penalty, rel=1e-3)
    assert float(value) == pytest.approx(penalty, rel=1e-5)
    np.testing.assert_allclose(np.abs((np.asarray(state) * u[:, :, 0]).sum(axis=1)), 1.0, atol=1e-4)


def test_the_gradient_is_that_of_the_singular_value(embedding):
    objective = GroupSpectralNorm(alpha=0.9, power_iterations=1000)
    params, counts = generator_params(embedding), jnp.float32([90, 30, 9, 1])

    def loss(params):
        return objective.generator(generator_pass(params=params, class_counts=counts), objective.init(params, {}))[0]

    gradient = jit(jax.grad(loss))(params)["mapping"]["embed"]
    u, sigma, vt = np.linalg.svd(embedding.reshape(4, 4, 6))
    factor = 2 / 4 * np.asarray(gsr.class_weights(counts, 0.9)) * sigma[:, 0]
    expected = factor[:, None, None] * u[:, :, :1] * vt[:, :1]
    assert_close(gradient["weight"], expected.reshape(4, 24), 1e-4)
    np.testing.assert_array_equal(gradient["bias"], 0.0)


def test_a_generator_without_class_embedding():
    with pytest.raises(ValueError, match="gSR needs"):
        GroupSpectralNorm().init({"mapping": {"fc0": {}}}, {})
