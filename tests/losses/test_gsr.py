"""Group spectral regularisation against the official implementation, singular values and effective numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import Golden, assert_close
from loss_contexts import generator_context, jit

from noisytwins_jax.losses import gsr
from noisytwins_jax.losses.gsr import GroupSpectralNorm
from noisytwins_jax.losses.noisytwins import effective_number
from noisytwins_jax.models.biggan import Generator

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
    step = jit(lambda params, state: objective.generator(generator_context(params=params, class_counts=counts), state))
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
        return objective.generator(generator_context(params=params, class_counts=counts), objective.init(params, {}))[0]

    gradient = jit(jax.grad(loss))(params)["mapping"]["embed"]
    u, sigma, vt = np.linalg.svd(embedding.reshape(4, 4, 6))
    factor = 2 / 4 * np.asarray(gsr.class_weights(counts, 0.9)) * sigma[:, 0]
    expected = factor[:, None, None] * u[:, :, :1] * vt[:, :1]
    assert_close(gradient["weight"], expected.reshape(4, 24), 1e-4)
    np.testing.assert_array_equal(gradient["bias"], 0.0)


@pytest.mark.parametrize("params", [{"mapping": {"fc0": {}}, "synthesis": {}}, {"linear": {"weight": np.ones((2, 2))}}])
def test_a_generator_without_class_embedding(params):
    with pytest.raises(ValueError, match="gSR needs"):
        GroupSpectralNorm().init(params, {})


CLASSES, E = 3, 5
COUNTS = jnp.float32([90, 9, 1])


def biggan(**options) -> tuple[Generator, dict]:
    """A small generator and its variables, at random."""
    options = {"resolution": 8, "num_classes": CLASSES, "z_dim": 4, "width": 4, "attention": False} | options
    generator = Generator(embedding_dim=E, **options)
    arguments = jax.ShapeDtypeStruct((1, 4), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    shapes = jax.eval_shape(generator.init, jax.random.key(0), *arguments)
    rng = np.random.default_rng(0)
    return generator, jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)


def class_vectors(params, embedding: str) -> dict[str, np.ndarray]:
    """Gains, then biases of every class, [2C, channels], by layer."""
    found = {}
    for block, layers in params.items():
        for norm in [name for name in layers if name.startswith("bn")]:
            layer, both = layers[norm], []
            for kind in ("gain", "bias"):
                if f"{kind}_table" in layer:
                    both.append(layer[f"{kind}_table"]["weight"])
                    continue
                weight, shared = layer[kind]["weight"], params["shared"]["weight"]
                padded = np.pad(shared, ((0, 0), (0, weight.shape[0] - shared.shape[1])))
                both.append(padded @ (weight / (np.linalg.norm(weight, 2) if embedding == "effective" else 1.0)))
            found[f"{block}/{norm}"] = np.concatenate(both)
    return found


def expected_penalty(params, embedding: str = "stored") -> float:
    weights, terms = np.tile(gsr.class_weights(COUNTS, 0.9), 2), []
    for vectors in class_vectors(params, embedding).values():
        sigma = np.linalg.svd(vectors.reshape(2 * CLASSES, *gsr.group_shape(vectors.shape[1])), compute_uv=False)[:, 0]
        terms.append((weights * sigma**2).sum() / CLASSES)
    return float(np.mean(terms))


@pytest.mark.parametrize("embedding", ["stored", "effective"])
@pytest.mark.parametrize(
    "options", [{}, {"deep": True}, {"skip_z": False}, {"shared_embedding": False}], ids=lambda x: str(*x)
)
def test_of_biggan_the_gains_and_biases(options, embedding):
    params = biggan(**options)[1]["params"]
    objective = GroupSpectralNorm(alpha=0.9, embedding=embedding, power_iterations=200)
    state = jit(objective.init)(params, {})
    vectors = class_vectors(params, embedding)
    assert list(state) == list(vectors) and len(state) == (8 if "deep" in options else 2)
    normalized = embedding == "effective" and "shared_embedding" not in options
    for name, layer in state.items():
        channels = vectors[name].shape[1]
        shapes = {"classes": (2 * CLASSES, gsr.group_shape(channels)[0])} | (
            {"maps": (2, channels)} if normalized else {}
        )
        assert {name: u.shape for name, u in layer.items()} == shapes

    def loss(params):
        return objective.generator(generator_context(params=params, class_counts=COUNTS), state)

    (value, after), gradients = jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert float(value) == pytest.approx(expected_penalty(params, embedding), rel=1e-4)
    suffixes = ("_table/weight",) if "shared_embedding" in options else ("gain/weight", "bias/weight", "shared/weight")
    for path, gradient in jax.tree.leaves_with_path(gradients):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert bool(gradient.any()) == name.endswith(suffixes), name


def test_the_gradient_reaches_the_scale_of_maps_only_as_stored():
    """Penalised in effect, a map cannot escape by its scale, which changes no image."""
    params = biggan()[1]["params"]

    def loss(scale, objective):
        scaled = jax.tree.map(lambda x: x, params)
        for norm in ("bn1", "bn2"):
            for kind in ("gain", "bias"):
                scaled["blocks_0"][norm][kind]["weight"] *= scale
        return objective.generator(generator_context(params=scaled, class_counts=COUNTS), objective.init(params, {}))[0]

    stored, effective = (
        GroupSpectralNorm(alpha=0.9, power_iterations=200, embedding=x) for x in ("stored", "effective")
    )
    slope = jit(jax.grad(loss), static_argnums=1)
    assert float(slope(1.0, stored)) == pytest.approx(2 * expected_penalty(params), rel=1e-4)
    assert float(slope(1.0, effective)) == pytest.approx(0.0, abs=1e-4)


def test_of_biggan_the_class_vectors_are_what_the_network_adds_for_latents_of_zero():
    generator, variables = biggan(spectral_norm=False)
    _, seen = jit(
        lambda variables: generator.apply(
            variables,
            jnp.zeros((CLASSES, 4)),
            jnp.arange(CLASSES),
            train=True,
            capture_intermediates=lambda module, _: module.name in ("gain", "bias"),
        )
    )(variables)
    for path, vectors in class_vectors(variables["params"], "stored").items():
        block, norm = path.split("/")
        found = seen["intermediates"][block][norm]
        both = np.concatenate([found[kind]["__call__"][0] for kind in ("gain", "bias")])
        np.testing.assert_allclose(both, vectors, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("embedding", ["stored", "effective"])
def test_of_biggan_singular_values_are_followed(embedding):
    params = biggan()[1]["params"]
    objective = GroupSpectralNorm(alpha=0.9, embedding=embedding)
    state = jit(objective.init)(params, {})
    changed = jax.tree.map(lambda x: x[::-1], params)  # every singular vector is another
    step = jit(lambda params, state: objective.generator(generator_context(params=params, class_counts=COUNTS), state))
    assert float(step(changed, state)[0]) != pytest.approx(expected_penalty(changed, embedding), rel=1e-3)
    for _ in range(50):
        value, state = step(changed, state)
    assert float(value) == pytest.approx(expected_penalty(changed, embedding), rel=1e-4)
