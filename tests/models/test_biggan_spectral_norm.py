"""Power iteration against the official implementation, and what it means for a weight."""

import jax
import numpy as np
import pytest
from golden_numbers import Golden, assert_close

from noisytwins_jax.models.biggan.layers import Conv, Dense, Embedding
from noisytwins_jax.models.biggan.spectral_norm import power_iteration, spectral_norm


@pytest.fixture(scope="module")
def golden():
    return Golden("biggan_spectral_norm")


@pytest.mark.parametrize("epsilon", ["1e-12", "1e-06", "0.0001", "0.01"])
@pytest.mark.parametrize("case", ["conv", "linear", "embed", "tiny_norm"])
def test_power_iteration_reproduces_the_reference(golden, case, epsilon):
    weight, u = golden[f"in/{case}/W"], golden[f"in/{case}/u"][0]
    matrix, expected = weight.reshape(len(weight), -1).T, f"out/{case}/eps{epsilon}"
    v, following = power_iteration(matrix, u, float(epsilon))
    sigma, used = spectral_norm(matrix, u, float(epsilon), iterate=True)
    assert_close(v, golden[f"{expected}/v"][0], 1e-5)
    for found in (following, used):
        assert_close(found, golden[f"{expected}/u_new"][0], 1e-5)
    assert_close(sigma, golden[f"{expected}/sigma"], 1e-5)


def test_sigma_without_a_step_uses_the_stored_vector():
    matrix, u = np.diag([3.0, 1.0]).astype(np.float32), np.array([0.6, 0.8], np.float32)
    sigma, used = spectral_norm(matrix, u, 1e-4, iterate=False)
    assert_close(sigma, np.linalg.norm([1.8, 0.8]), 1e-6)  # ‖Wᵀu‖
    assert_close(used, u, 0)


def test_singular_vectors_are_constants():
    matrix, u = jax.random.normal(jax.random.key(0), (5, 3)), np.array([0.6, 0.0, 0.8], np.float32)
    v, following = power_iteration(matrix, u, 1e-4)
    gradient = jax.grad(lambda m: spectral_norm(m, u, 1e-4, iterate=True)[0])(matrix)
    assert_close(gradient, np.outer(v, following), 1e-6)
    assert not jax.grad(lambda u: spectral_norm(matrix, u, 1e-4, iterate=False)[0])(u).any()


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (Dense(6, 1e-4, use_bias=False), np.eye(4, dtype=np.float32)),
        (Conv(6, 1, 1e-4, use_bias=False), np.eye(4, dtype=np.float32)[:, None, None]),
        (Embedding(6, 4, 1e-4), np.arange(6)),
    ],
)
def test_a_normalised_layer_has_norm_one(layer, inputs):
    variables = layer.init(jax.random.key(0), inputs, False)
    weight = jax.random.normal(jax.random.key(1), variables["params"]["weight"].shape)
    state = {"params": {"weight": weight}, "spectral": variables["spectral"]}
    assert state["spectral"]["u"].shape == (6,)
    for _ in range(60):
        outputs, moved = layer.apply(state, inputs, True, mutable=["spectral"])
        state |= moved
    assert_close(layer.apply(state, inputs, False), outputs, 1e-5)  # converged: a step changes nothing
    norms = [np.linalg.norm(x.reshape(-1, x.shape[-1]), ord=2) for x in (np.asarray(outputs), np.asarray(weight))]
    assert abs(norms[0] - 1) < 1e-4 < abs(norms[1] - 1)
