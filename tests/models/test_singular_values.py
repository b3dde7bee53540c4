"""Singular values of a network's weights against NumPy's, and eq. 4 of BigGAN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import Golden, assert_close
from loss_contexts import jit

from noisytwins_jax.models import singular_values
from noisytwins_jax.models.stylegan2 import Generator

init_bases = jit(singular_values.init_bases)
subspace_iteration = jit(singular_values.subspace_iteration, static_argnums=2)
clamp = jit(
    lambda params, bases, sigma: singular_values.clamp(params, singular_values.subspace_iteration(params, bases), sigma)
)


def svd_values(matrix) -> np.ndarray:
    return np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)


def spread(shape, values, seed=0) -> np.ndarray:
    """A matrix of given singular values."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((shape[0], len(values))))
    v, _ = np.linalg.qr(rng.standard_normal((shape[1], len(values))))
    return (u * values @ v.T).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "linear": {"weight": normal(6, 40), "bias": normal(40)},
        "blocks": {"0": {"conv1": {"weight": normal(3, 3, 5, 8)}, "conv2": {"weight": normal(3, 3, 2, 24)}}},
        "const": normal(4, 4, 5),
        "shared": {"weight": normal(13, 7)},
        "output": {"weight": normal(12, 1)},
        "pair": {"weight": normal(2, 9)},
        "gamma": np.float32(0.5),
        "rank1": {"weight": spread((8, 11), [5.0])},
        "zero": {"weight": np.zeros((6, 5), np.float32)},
    }


def test_weights_are_matrices_with_a_filter_a_column(params):
    found = singular_values.weight_matrices(params)
    assert {name: x.shape for name, x in found.items()} == {
        "blocks/0/conv1/weight": (45, 8),
        "blocks/0/conv2/weight": (18, 24),
        "linear/weight": (6, 40),
        "output/weight": (12, 1),
        "pair/weight": (2, 9),
        "rank1/weight": (8, 11),
        "shared/weight": (13, 7),
        "zero/weight": (6, 5),
    }
    np.testing.assert_array_equal(
        found["blocks/0/conv1/weight"][:, 3], params["blocks"]["0"]["conv1"]["weight"][..., 3].ravel()
    )


def test_of_stylegan2_the_stored_weights():
    generator = Generator(8, 1, 3, z_dim=6, w_dim=6, mapping_layers=2, channel_base=64, channel_max=8)
    variables = jax.eval_shape(
        lambda: generator.init(jax.random.key(0), jnp.zeros((1, 6)), jnp.zeros(1, jnp.int32), noise_mode="const")
    )
    shapes = {name: x.shape for name, x in jax.eval_shape(singular_values.weight_matrices, variables["params"]).items()}
    assert shapes["synthesis/b8/conv0/weight"] == (72, 8)
    assert shapes["mapping/embed/weight"] == (3, 6)
    assert all(name.endswith("/weight") for name in shapes)


def test_values_and_vectors_are_those_of_the_svd(params):
    result = subspace_iteration(params, init_bases(params), 60)
    for name, matrix in singular_values.weight_matrices(params).items():
        k = min(3, *matrix.shape)
        u, sigma, vt = np.linalg.svd(matrix)
        np.testing.assert_allclose(result.values[name], sigma[:k], rtol=2e-5, atol=2e-5, err_msg=name)
        basis = np.asarray(result.bases[name])
        assert basis.shape == (min(matrix.shape), k)
        np.testing.assert_allclose(basis.T @ basis, np.eye(k), atol=1e-5, err_msg=name)
        left, right = np.asarray(result.left[name]), np.asarray(result.right[name])
        assert (left.shape, right.shape) == ((matrix.shape[0],), (matrix.shape[1],))
        if name != "zero/weight":
            np.testing.assert_allclose(np.outer(left, right), np.outer(u[:, 0], vt[0]), atol=2e-3, err_msg=name)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))


def test_first_values_are_near_and_never_above_the_true_ones(params):
    values = subspace_iteration(params, init_bases(params)).values
    for name, matrix in singular_values.weight_matrices(params).items():
        expected = svd_values(matrix)[: len(values[name])]
        np.testing.assert_allclose(values[name], expected, rtol=0.05, atol=1e-5, err_msg=name)
        assert (values[name] <= expected * (1 + 1e-5) + 1e-5).all()
        assert (np.diff(values[name]) <= 0).all()


@pytest.mark.parametrize("shape", [(10, 30), (30, 10)])
def test_one_iteration_per_call_follows_a_weight_that_moves(shape):
    """The leading direction is overtaken by another one, as at collapse."""
    start = spread(shape, np.linspace(3.0, 0.5, 8))
    rising = spread(shape, [1.0], seed=5)
    bases = init_bases({"w": start})
    for t in range(60):
        weight = start + 0.1 * t * rising
        values, bases, *_ = subspace_iteration({"w": weight}, bases, 1)
        np.testing.assert_allclose(values["w"], svd_values(weight)[:3], rtol=0.02)
    assert float(values["w"][0]) > 5.4


def test_values_far_apart_and_far_from_one():
    """Where the squares of singular values would lose the third, or overflow."""
    weights = {
        "apart": spread((20, 30), [1e3, 1.0, 1e-2]),
        "large": spread((20, 30), [3e15, 2e15, 1e15]),
        "small": spread((20, 30), [3e-12, 2e-12, 1e-12]),
    }
    values = subspace_iteration(weights, init_bases(weights), 40).values
    np.testing.assert_allclose(values["apart"], svd_values(weights["apart"])[:3], rtol=1e-3)
    for name in ("large", "small"):
        np.testing.assert_allclose(values[name], svd_values(weights[name])[:3], rtol=1e-4)


def test_a_weight_of_zeros_comes_to_life():
    """Its basis stays generic, so that even a diagonal matrix is seen."""
    zero = {"w": np.zeros((8, 8), np.float32)}
    bases = subspace_iteration(zero, init_bases(zero), 3).bases
    values = subspace_iteration({"w": np.diag(np.arange(1.0, 9.0)).astype(np.float32)}, bases, 80).values["w"]
    np.testing.assert_allclose(values, [8, 7, 6], rtol=1e-4)


def test_a_basis_outlives_a_weight_that_is_not_finite():
    weight = spread((8, 9), [4.0, 2.0, 1.0])
    bases = init_bases({"w": weight, "v": weight})
    broken = subspace_iteration({"w": weight * np.nan, "v": weight}, bases, 1)
    assert not np.isfinite(broken.values["w"]).any()
    np.testing.assert_allclose(broken.values["v"], [4, 2, 1], rtol=1e-5)
    np.testing.assert_allclose(
        subspace_iteration({"w": weight, "v": weight}, broken.bases, 1).values["w"], [4, 2, 1], rtol=1e-5
    )


def test_starts_depend_on_names_alone(params):
    alone = init_bases({"linear": params["linear"]})
    np.testing.assert_allclose(alone["linear/weight"], init_bases(params)["linear/weight"], atol=1e-6)


def test_precision_is_at_least_float32(params):
    low = {"w": jnp.asarray(params["linear"]["weight"], jnp.bfloat16)}
    result = subspace_iteration(low, init_bases(low), 1)
    assert {x.dtype for x in jax.tree.leaves(result)} == {jnp.dtype(jnp.float32)}
    with jax.enable_x64(True):
        high = {"w": jnp.asarray(params["linear"]["weight"], float)}
        assert jax.eval_shape(singular_values.init_bases, high)["w"].dtype == jnp.float64


def test_no_gradient_flows():
    weight = spread((6, 7), [3.0, 2.0, 1.0])
    bases = init_bases({"w": weight})
    gradient = jit(jax.grad(lambda w: singular_values.subspace_iteration({"w": w}, bases).values["w"].sum()))(weight)
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("kind", ["conv", "linear", "embed"])
def test_against_the_reference_numbers(kind):
    golden = Golden("biggan_spectral_norm")
    weight = np.moveaxis(golden[f"in/{kind}/W"], 0, -1)  # filters first to filters last
    exact = golden[f"out/{kind}/svd_top3_f64"]
    assert_close(subspace_iteration({"w": weight}, init_bases({"w": weight}), 200).values["w"], exact, 2e-6)
    # Two steps of the release's power iteration with Gram-Schmidt span the same spaces; its values are below those of
    # Rayleigh-Ritz, which are the best that can be had from these spaces.
    start = np.linalg.qr(np.concatenate([golden[f"in/{kind}/u3_{i}"] for i in range(3)]).T)[0]
    values = np.cumsum(subspace_iteration({"w": weight}, {"w": start}, 2).values["w"])
    assert (values >= np.cumsum(golden[f"out/{kind}/svs3"]) * (1 - 1e-6)).all()
    assert (values <= np.cumsum(exact) * (1 + 1e-6)).all()


def test_names_that_values_are_logged_by(params):
    values = subspace_iteration(params, init_bases(params)).values
    named = singular_values.to_metrics(values, "generator")
    assert {name for name in named if "blocks/0/conv1" in name} == {
        f"spectra/generator/blocks/0/conv1/weight/{i}" for i in range(3)
    }
    assert "spectra/generator/output/weight/0" in named
    assert "spectra/generator/output/weight/1" not in named
    assert named["spectra/generator/pair/weight/1"] == values["pair/weight"][1]
    assert all(x.shape == () for x in named.values())


def test_clamping_takes_the_first_value_down_and_leaves_the_others(params):
    bases = subspace_iteration(params, init_bases(params), 60).bases
    limit = 6.0
    clamped = clamp(params, bases, limit)
    assert jax.tree.map(jnp.shape, clamped) == jax.tree.map(jnp.shape, params)
    before, after = singular_values.weight_matrices(params), singular_values.weight_matrices(clamped)
    touched = 0
    for name in before:
        old, new = svd_values(before[name]), svd_values(after[name])
        if old[0] <= limit:
            np.testing.assert_array_equal(after[name], before[name])
        else:
            touched += 1
            expected = np.sort([limit, *old[1:]])[::-1]
            np.testing.assert_allclose(new, expected, rtol=1e-4, atol=1e-4, err_msg=name)
    assert 2 <= touched < len(before)
    np.testing.assert_array_equal(clamped["const"], params["const"])
    np.testing.assert_array_equal(clamped["linear"]["bias"], params["linear"]["bias"])


def test_clamping_again_and_again_takes_all_values_down():
    weight = {"w": spread((9, 12), [9.0, 8.0, 7.0, 6.0, 1.0])}
    bases = init_bases(weight)
    for _ in range(4):
        result = subspace_iteration(weight, bases, 40)
        weight, bases = singular_values.clamp(weight, result, 2.0), result.bases
    np.testing.assert_allclose(svd_values(weight["w"])[:5], [2, 2, 2, 2, 1], rtol=1e-3)


def test_clamping_to_a_ratio_of_the_second_value():
    weights = {"w": spread((9, 12), [9.0, 3.0, 1.0]), "narrow": spread((9, 1), [5.0])}
    result = subspace_iteration(weights, init_bases(weights), 20)
    limits = singular_values.ratio_limits(result.values, 1.5)
    assert set(limits) == {"w"}
    clamped = singular_values.clamp(weights, result, limits)
    np.testing.assert_allclose(svd_values(clamped["w"])[:3], [4.5, 3, 1], rtol=1e-4)
    np.testing.assert_array_equal(clamped["narrow"], weights["narrow"])
