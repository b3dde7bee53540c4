"""The conditionings of Transitional-cGAN, Content–Style, D2D-CE and 2C, and UTLO, in small networks."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden_numbers import assert_close

from noisytwins_jax.config import RunConfig
from noisytwins_jax.generation.sampler import Sampler
from noisytwins_jax.losses.path_length import path_lengths
from noisytwins_jax.models import fir
from noisytwins_jax.models.latents import Latents, Truncation
from noisytwins_jax.models.model import DiscriminatorInputs, GeneratorInputs
from noisytwins_jax.models.stylegan2 import Discriminator, Generator, shrink
from noisytwins_jax.models.stylegan2.mapping import MappingNetwork
from noisytwins_jax.models.stylegan2_model import StyleGAN2Model
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.utils.randomness import sample_keys

pytestmark = pytest.mark.usefixtures("fast_compilation")

CLASSES, N, W, DIM = 3, 4, 6, 8
SHARED = {"resolution": 8, "channels": 2, "num_classes": CLASSES, "channel_base": 64, "channel_max": DIM}
SHARED |= {"up_impl": "shift"}
LABELS, OTHER_LABELS = jnp.array([0, 1, 2, 0]), jnp.array([1, 2, 0, 2])
PSI = 0.6
# Small programs that run once or twice: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def numpy_variables(init, seed: int = 0) -> dict:
    """Normal variables in the shapes that `init` makes: none is zero, and NumPy is quick where JAX would compile."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, x: jax.ShapeDtypeStruct) -> np.ndarray:
        collection, network, layer = (entry.key for entry in path[:3])
        in_mapping = (collection, network) == ("params", "mapping") and layer != "embed"
        scale = 100.0 if in_mapping else 1.0  # against a learning-rate multiplier of 0.01
        return scale * rng.standard_normal(x.shape).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init))


def make_generator(**options) -> tuple[Generator, dict]:
    generator = Generator(**(SHARED | {"z_dim": W, "w_dim": W, "mapping_layers": 2} | options))
    z, labels = jnp.zeros((1, W)), jnp.zeros((1,), jnp.int32)
    return generator, numpy_variables(lambda: generator.init(jax.random.key(0), z, labels, noise_mode="const"))


def make_discriminator(**options) -> tuple[Discriminator, dict]:
    discriminator = Discriminator(**(SHARED | {"mbstd_group_size": 2, "mapping_layers": 2} | options))
    low = discriminator.low_resolution
    images, low_images = (jnp.zeros((2, r, r, 2)) if r else None for r in (discriminator.resolution, low))
    labels = jnp.zeros((2,), jnp.int32)
    return discriminator, numpy_variables(
        lambda: discriminator.init(jax.random.key(0), images, labels, low_images=low_images), seed=1
    )


@functools.cache
def normal(*shape: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- generator ----------------------------------------------------------------------------------------------------------


@functools.cache
def transitional() -> tuple[Generator, dict, StyleGAN2Model]:
    generator, variables = make_generator(conditioning="additive")
    return generator, variables, StyleGAN2Model(generator, make_discriminator(heads="transitional")[0])


def at(t: float) -> dict:
    """The transitional generator's variables with the transition at t."""
    _, variables, model = transitional()
    params, stats = {"params": variables["params"]}, {"buffers": variables["buffers"]}
    return params | model.with_transition(stats, t)


def test_transition_starts_without_classes():
    generator, _, _ = transitional()
    z, labels = normal(N, W), LABELS
    variables = jit(lambda key: generator.init(key, z, labels, method="map"))(jax.random.key(0))
    transition = variables["buffers"]["mapping"]["transition"]
    assert transition.shape == () and transition.dtype == jnp.float32 and transition == 0.0


def test_the_class_comes_in_with_the_transition():
    generator, _, _ = transitional()
    generate = jit(lambda v, labels, noise: generator.apply(v, normal(N, W), labels, noise, noise_mode="const"))
    images = {t: generate(at(t), LABELS, None) for t in (0.0, 1.0)}
    others = {t: generate(at(t), OTHER_LABELS, None) for t in (0.0, 1.0)}
    np.testing.assert_array_equal(images[0.0], others[0.0])
    assert np.abs(images[1.0] - others[1.0]).max() > 1e-3
    assert np.abs(generate(at(1.0), LABELS, normal(N, W, seed=3)) - images[1.0]).max() > 1e-3


def test_additive_conditioning_against_numpy():
    generator, variables, _ = transitional()
    z, noise, t = normal(N, W), normal(N, W, seed=3), 0.3
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"]["mapping"])
    assert p["fc0"]["weight"].shape == p["class_projection"]["weight"].shape == (W, W)

    def unit(x):
        return x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-8)

    def dense(name, x):
        y = x @ p[name]["weight"] * 0.01 / math.sqrt(W) + 0.01 * p[name]["bias"]
        return math.sqrt(2) * np.where(y > 0, y, 0.2 * y)

    embedding = p["embed"]["weight"][LABELS] / math.sqrt(CLASSES) + p["embed"]["bias"] + np.asarray(noise)
    x = dense("fc0", unit(np.asarray(z, np.float64))) + t * dense("class_projection", unit(embedding))
    w = jit(lambda v: generator.apply(v, z, LABELS, noise, method="map"))(at(t))
    assert_close(w, dense("fc1", x), 1e-5)


@functools.cache
def content_style() -> tuple[Generator, dict]:
    return make_generator(conditioning="content_style")


def test_content_style_against_numpy():
    generator, variables = content_style()
    z, noise, half = normal(N, W), normal(N, W, seed=3), W // 2
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"]["mapping"])

    def unit(x):
        return x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-8)

    def dense(name, x, multiplier=1.0):
        return x @ p[name]["weight"] * multiplier / math.sqrt(x.shape[1]) + multiplier * p[name]["bias"]

    def lrelu(x):
        return math.sqrt(2) * np.where(x > 0, x, 0.2 * x)

    unit_z = unit(np.asarray(z, np.float64))
    embedding = p["embed"]["weight"][LABELS] / math.sqrt(CLASSES) + p["embed"]["bias"]
    latent = np.concatenate([dense("style_latent", unit_z[:, :half]), unit(embedding) + noise], axis=1)
    style = lrelu(dense("style", latent, 0.01))
    x = np.concatenate([dense("content", unit_z[:, half:]), style], axis=1)
    for layer in ("fc0", "fc1"):
        x = lrelu(dense(layer, x, 0.01))

    @jit
    def found(v):
        return [generator.apply(v, z, LABELS, noise, method=method) for method in ("style", "map")]

    for array, expected in zip(found(variables), (style, x), strict=True):
        assert_close(array, expected, 1e-5)


def test_style_does_not_know_the_content_but_z_s_other_half_and_the_class():
    generator, variables = content_style()
    style = jit(lambda z, labels: generator.apply(variables, z, labels, method="style"))
    z, half = normal(N, W), W // 2
    first = style(z, LABELS)
    # The sign leaves the length of z, by which it is normalised.
    np.testing.assert_array_equal(first, style(np.concatenate([z[:, :half], -z[:, half:]], axis=1), LABELS))
    assert np.abs(first - style(np.concatenate([-z[:, :half], z[:, half:]], axis=1), LABELS)).max() > 1e-3
    assert np.abs(first - style(z, OTHER_LABELS)).max() > 1e-3


@pytest.mark.parametrize(("classes", "count"), [(10, 1_515_264), (20, 1_520_384), (100, 1_561_344), (102, 1_562_368)])
def test_content_style_has_the_parameters_of_the_released_code(classes, count):
    mapping = MappingNetwork(classes, 512, 2, 0.995, "content_style", noise_after_normalization=True)
    z, labels = jnp.zeros((1, 512)), jnp.zeros((1,), jnp.int32)
    params = jax.eval_shape(lambda: mapping.init(jax.random.key(0), z, labels))["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("after", [False, True])
def test_class_noise_of_the_discriminator(after):
    discriminator, variables = make_discriminator(noise_after_normalization=after, mapping_layers=0)
    noise = normal(N, DIM, seed=3)

    @jit
    def vectors(v):
        return [discriminator.apply(v, LABELS, x, method="embed") for x in (None, noise)]

    plain, noisy = vectors(variables)
    embed = variables["params"]["mapping"]["embed"]
    embedding = embed["weight"][LABELS] / math.sqrt(CLASSES) + embed["bias"]

    def unit(x):
        return x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-8)

    assert_close(plain, unit(embedding), 1e-5)
    assert_close(noisy, unit(embedding) + noise if after else unit(embedding + noise), 1e-5)


def test_setting_the_transition_changes_nothing_else():
    _, variables, model = transitional()
    stats = {"buffers": variables["buffers"]}
    changed = model.with_transition(stats, jnp.float32(0.25))
    before, after = flatten_dict(stats), flatten_dict(changed)
    name = ("buffers", "mapping", "transition")
    assert after.pop(name) == 0.25 and before.pop(name) != 0.25
    assert after == before
    generator, variables = make_generator()
    plain, stats = StyleGAN2Model(generator, make_discriminator()[0]), {"buffers": variables["buffers"]}
    assert plain.with_transition(stats, 0.25) is stats


@functools.cache
def utlo(resolution: int, low: int) -> tuple[Generator, dict]:
    return make_generator(resolution=resolution, low_resolution=low)


@functools.cache
def utlo_program(resolution: int, low: int):
    """z and labels to (w, ws, images, low images)."""
    generator, variables = utlo(resolution, low)

    @jit
    def generate(z, labels):
        w, ws = generator.apply(variables, z, labels, method="styles")
        return w, ws, *generator.apply(variables, ws, "const", method="synthesize_both")

    return generate


@pytest.mark.parametrize("resolution, low, first", [(8, 4, 2), (16, 8, 4)])
def test_low_images_know_no_class(resolution, low, first):
    generate, (generator, _) = utlo_program(resolution, low), utlo(resolution, low)
    w, ws, images, low_images = generate(normal(N, W), LABELS)
    other_w, other_ws, other_images, other_low = generate(normal(N, W), OTHER_LABELS)
    assert images.shape == (N, resolution, resolution, 2) and low_images.shape == (N, low, low, 2)
    np.testing.assert_array_equal(low_images, other_low)
    assert np.abs(images - other_images).max() > 1e-3
    assert np.abs(low_images - generate(normal(N, W, seed=3), LABELS)[3]).max() > 1e-3  # they do know z
    # Convolutions and image layers up to the low resolution, less one for each w that two of them share.
    count = 2 * int(math.log2(resolution)) - 1
    assert (generator.num_low_ws, generator.num_ws) == (first, count) and ws.shape == (N, count, W)
    np.testing.assert_array_equal(ws[:, :first], other_ws[:, :first])
    np.testing.assert_array_equal(ws[:, first:], np.repeat(w[:, None], count - first, axis=1))
    assert np.abs(w - other_w).min() > 0


def test_low_styles_are_of_a_class_vector_of_zeros():
    _, variables = utlo(8, 4)
    params = {name: p for name, p in variables["params"]["mapping"].items() if name != "embed"}
    rows = params["fc0"]["weight"][:W] / math.sqrt(2)  # the gain is that of half as many inputs
    params["fc0"] = {"weight": rows, "bias": params["fc0"]["bias"]}
    classless = Generator(**(SHARED | {"num_classes": 0, "z_dim": W, "w_dim": W, "mapping_layers": 2}))
    w = jit(lambda v: classless.apply(v, normal(N, W), None, method="map"))(
        {"params": {"mapping": params}, "buffers": variables["buffers"]}
    )
    assert_close(utlo_program(8, 4)(normal(N, W), LABELS)[1][:, 0], w, 1e-5)


def test_low_layers_are_those_up_to_the_low_image_and_their_image_layer():
    """The gradient of the low image reaches the low layers' w and no others; that of the full image reaches all."""
    generator, variables = utlo(16, 8)

    @jit
    def gradients(ws):
        def total(ws, which):
            return jnp.square(generator.apply(variables, ws, "const", method="synthesize_both")[which]).sum()

        return [jnp.abs(jax.grad(total)(ws, which)).max(axis=(0, 2)) for which in (0, 1)]

    full, low = gradients(normal(N, generator.num_ws, W))
    assert (full > 0).all()
    assert ((low > 0) == (np.arange(generator.num_ws) < generator.num_low_ws)).all()


def test_utlo_with_one_w_for_all_layers_makes_the_images_of_the_plain_generator():
    generator, variables = utlo(8, 4)
    plain = Generator(**SHARED, z_dim=W, w_dim=W, mapping_layers=2)
    assert (generator.num_ws, plain.num_ws) == (5, 4)

    @jit
    def images(w):
        return [g.apply(variables, g.broadcast(w), "const", method="synthesize") for g in (generator, plain)]

    np.testing.assert_array_equal(*images(normal(N, W, seed=5)))


def test_path_length_of_utlo_is_differentiable():
    generator, variables = utlo(8, 4)

    def lengths(params):
        v = {**variables, "params": params}
        _, ws = generator.apply(v, normal(N, W), LABELS, method="styles")
        noise = normal(N, 8, 8, 2)
        return path_lengths(lambda x: generator.apply(v, x, "const", method="synthesize"), ws, noise).mean()

    value, gradients = jit(jax.value_and_grad(lengths))(variables["params"])
    assert value > 0 and all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
    for layer in ("embed", "fc0"):
        assert np.abs(gradients["mapping"][layer]["weight"]).max() > 0


@pytest.mark.parametrize("name", ["transitional", "utlo"])
def test_sampler(name):
    """Images of either generator are those of its own parts, each w truncated."""
    generator, variables = (transitional()[0], at(1.0)) if name == "transitional" else utlo(8, 4)
    model, latents = StyleGAN2Model(generator, make_discriminator()[0], "const"), Latents(generator.z_dim)
    sampler = Sampler(model, latents, variables, truncation=Truncation("psi", PSI), per_device_batch=2)
    images, w = sampler(np.arange(2), np.arange(2))
    z = np.concatenate([_first_normal(index) for index in range(2)])
    w_avg = variables["buffers"]["mapping"]["w_avg"]

    @jit
    def expected(v):
        w, ws = generator.apply(v, z, jnp.arange(2), method="styles")
        w, ws = w_avg + PSI * (w - w_avg), w_avg + PSI * (ws - w_avg)
        one_call = generator.apply(v, z, jnp.arange(2), psi=PSI, noise_mode="const")
        return w, generator.apply(v, ws, "const", method="synthesize"), one_call

    expected_w, expected_images, one_call = expected(variables)
    assert_close(w, expected_w, 1e-5)
    quantized = np.floor(np.clip(127.5 * expected_images + 128, 0, 255))
    assert np.abs(images - quantized).max() <= 1 and images.std() > 10
    assert_close(one_call, expected_images, 1e-5)


def _first_normal(index: int) -> np.ndarray:
    z_key, _ = jax.random.split(sample_keys(0, jnp.array([index]))[0])
    return np.asarray(jax.random.normal(z_key, (1, W)))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"low_resolution": 8}, "from 4 to 4"),
        ({"low_resolution": 2}, "from 4 to 4"),
        ({"low_resolution": 4, "architecture": "resnet"}, "'skip'"),
    ],
)
def test_generators_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        make_generator(**options)


# --- discriminator ------------------------------------------------------------------------------------------------------

VARIANTS = [
    ("projection", "skip", 0),
    ("projection", "resnet", 4),
    ("embedding", "resnet", 0),
    ("transitional", "resnet", 0),
    ("transitional", "orig", 4),
]


def inputs(discriminator: Discriminator) -> tuple:
    low = discriminator.low_resolution
    low_images = normal(N, low, low, 2, seed=4) if low else None
    return normal(N, discriminator.resolution, discriminator.resolution, 2), LABELS, normal(N, DIM, seed=3), low_images


@pytest.mark.parametrize("heads, architecture, low", VARIANTS)
def test_discrimination(heads, architecture, low):
    discriminator, variables = make_discriminator(heads=heads, architecture=architecture, low_resolution=low)
    images, labels, noise, low_images = inputs(discriminator)

    @jit
    def run(v, labels):
        h = discriminator.apply(v, images, method="features")
        vectors = discriminator.apply(v, labels, noise, method="embed")
        low_h = discriminator.apply(v, low_images, method="low_features") if low else None
        without_low = discriminator.apply(v, images, labels, noise)
        return discriminator.apply(v, images, labels, noise, low_images), h, low_h, vectors, without_low

    found, h, low_h, vectors, without_low = run(variables, labels)
    other = run(variables, OTHER_LABELS)[0]
    assert found.logits.shape == (N,) and vectors.shape == (N, DIM) == (N, discriminator.embedding_dim)
    assert without_low.low_logits is None
    assert_close(without_low.logits, found.logits, 1e-6)

    def dense(name, x):
        return x @ variables["params"][name]["weight"] / math.sqrt(DIM) + variables["params"][name]["bias"]

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    if heads == "projection":
        assert_close(found.logits, (dense("output", h) * vectors).sum(axis=1) / math.sqrt(DIM), 1e-5)
        assert np.abs(found.logits - other.logits).max() > 1e-3
    else:
        assert_close(found.logits, dense("output", h)[:, 0], 1e-5)
        np.testing.assert_array_equal(found.logits, other.logits)
    assert (found.conditional_logits is None) == (heads != "transitional")
    if heads == "transitional":
        expected = (dense("conditional_output", h) * vectors).sum(axis=1) / math.sqrt(DIM)
        assert_close(found.conditional_logits, expected, 1e-5)
        assert np.abs(found.conditional_logits - other.conditional_logits).max() > 1e-3
    assert (found.embedding is None) == (found.proxy is None) == (heads != "embedding")
    if heads == "embedding":
        assert_close(found.embedding, unit(dense("embedding_output", h)), 1e-5)
        assert_close(found.proxy, unit(vectors), 1e-5)
        np.testing.assert_array_equal(found.embedding, other.embedding)
        assert set(variables["params"]["mapping"]) == {"embed", "fc0"}  # one layer
    assert (found.low_logits is None) == (low_images is None)
    if low_images is not None:
        assert_close(found.low_logits, dense("low_output", low_h)[:, 0], 1e-5)
        np.testing.assert_array_equal(found.low_logits, other.low_logits)


def test_low_images_pass_through_the_blocks_of_their_resolution():
    """With ``low_fromrgb`` as its ``fromrgb``, a discriminator of the low resolution finds the same features."""
    discriminator, variables = make_discriminator(resolution=16, low_resolution=8)
    params = dict(variables["params"])
    params["b8"] = {**params["b8"], "fromrgb": params["low_fromrgb"]}
    small = Discriminator(**SHARED, mbstd_group_size=2, mapping_layers=2)
    low_images = inputs(discriminator)[3]

    @jit
    def both(params, variables):
        h = small.apply({"params": params}, low_images, method="features")
        return h, discriminator.apply(variables, low_images, method="low_features")

    h, low_h = both(params, variables)
    assert_close(low_h, h, 1e-6)


@pytest.mark.parametrize("heads, architecture, low", VARIANTS)
def test_what_r1_does_not_reach(heads, architecture, low):
    """R1's gradient is exactly zero in the listed parameters and in no other weight; they all have a use elsewhere."""
    discriminator, variables = make_discriminator(heads=heads, architecture=architecture, low_resolution=low)
    images, labels, noise, low_images = inputs(discriminator)

    def found(params, images):
        return discriminator.apply({"params": params}, images, labels, noise, low_images)

    def r1(params):
        gradients = jax.grad(lambda x: found(params, x).logits.sum())(images)
        return 0.5 * jnp.square(gradients).sum(axis=(1, 2, 3)).mean()

    def everything(params):
        heads = found(params, images)
        directions = (normal(*x.shape, seed=7) for x in jax.tree.leaves(heads))
        return sum((x * d).sum() for x, d in zip(jax.tree.leaves(heads), directions, strict=True))

    gradients, uses = jit(lambda p: (jax.grad(r1)(p), jax.grad(everything)(p)))(variables["params"])
    gradients, uses = flatten_dict(gradients), flatten_dict(uses)
    beginnings = discriminator.parameters_without_r1
    assert all(any(path[: len(b)] == b for path in gradients) for b in beginnings)
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all()
        assert np.abs(uses[path]).max() > 0, path
        if any(path[: len(beginning)] == beginning for beginning in beginnings):
            np.testing.assert_array_equal(gradient, 0.0, err_msg=str(path))
        elif path[-1] == "weight":
            assert np.abs(gradient).max() > 0, path


@pytest.mark.parametrize(
    "options, words",
    [
        ({"low_resolution": 4, "architecture": "skip"}, "'skip'"),
        ({"low_resolution": 8}, "from 4 to 4"),
        ({"heads": "embedding", "num_classes": 0}, "needs classes"),
        ({"heads": "transitional", "num_classes": 0}, "needs classes"),
    ],
)
def test_discriminators_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        make_discriminator(**options)


# --- the two behind the training step's interface -----------------------------------------------------------------------


def configured(**objectives) -> StyleGAN2Model:
    config = RunConfig()
    small = {"channel_base": 64, "channel_max": 8, "mapping_layers": 2}
    changed = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in objectives.items()}
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, resolution=16),
        generator=dataclasses.replace(config.generator, **small, z_dim=W, w_dim=W),
        discriminator=dataclasses.replace(config.discriminator, **small, mbstd_group_size=2),
        **changed,
    )
    return build_model(config, 1, CLASSES)


ON = {"weight": 0.5}


@pytest.mark.parametrize(
    "objectives, conditioning, heads, low",
    [
        ({}, "concat", "projection", 0),
        ({"noisytwins": ON}, "concat", "projection", 0),
        ({"transitional": ON, "noisytwins": ON}, "additive", "transitional", 0),
        ({"d2dce": ON}, "concat", "embedding", 0),
        ({"contrastive": ON}, "concat", "embedding", 0),
        ({"utlo": ON | {"resolution": 4}}, "concat", "projection", 4),
    ],
)
def test_networks_of_a_configuration(objectives, conditioning, heads, low):
    model = configured(**objectives)
    assert (model.generator.conditioning, model.discriminator.heads) == (conditioning, heads)
    assert model.generator.low_resolution == model.discriminator.low_resolution == low
    assert model.low_shape == ((low, low, 1) if low else None)
    assert model.class_noise_dims == (W, 8) and model.mixing_layers == model.generator.num_ws
    assert model.parameters_without_r1 == model.discriminator.parameters_without_r1

    def inputs(images, low_images):
        return DiscriminatorInputs(images, LABELS, jnp.zeros((N, 8)), low_images)

    def forward(key):
        g, d = model.init(key)
        draws = GeneratorInputs(jnp.zeros((N, W)), LABELS, jnp.zeros((N, W)), None, None, None, key)
        w, conditioning, stats = model.map(g, draws, update_stats=True)
        assert jax.tree.structure({"params": g["params"], **stats}) == jax.tree.structure(g)
        images, low_images, _ = model.synthesize({**g, **stats}, conditioning, key, update_stats=True)
        real, _ = model.discriminate(d, inputs(images, model.low_images(images)), update_stats=True)
        fake, _ = model.discriminate(d, inputs(images, low_images))
        return w, images, low_images, real, fake

    w, images, low_images, real, fake = jax.eval_shape(forward, jax.random.key(0))
    assert w.shape == (N, W) and images.shape == (N, 16, 16, 1)
    assert (None if low_images is None else low_images.shape[1:]) == model.low_shape
    assert real == fake and real.logits.shape == (N,) and (real.low_logits is None) == (low == 0)


def test_low_images_of_real_images():
    images = normal(N, 16, 16, 2)
    expected = fir.downsample2d(fir.downsample2d(images))
    np.testing.assert_array_equal(shrink(images, 4), expected)
    model = StyleGAN2Model(utlo(16, 4)[0], make_discriminator(resolution=16, low_resolution=4)[0])
    np.testing.assert_array_equal(model.low_images(images), expected)
    assert configured().low_images(images) is None


def test_style_mixing_with_low_layers():
    """The second latents' own ws, low ones of no class included, from the cutoff on."""
    generator, variables = utlo(16, 8)
    model = StyleGAN2Model(generator, make_discriminator(resolution=16, low_resolution=8)[0])
    noise, other_z = jnp.zeros((N, W)), normal(N, W, seed=3)

    @jit
    def run(cutoff):
        draws = GeneratorInputs(normal(N, W), LABELS, noise, other_z, noise, cutoff, jax.random.key(0))
        first, second = (generator.apply(variables, z, LABELS, method="styles") for z in (normal(N, W), other_z))
        return model.map(variables, draws)[:2], first, second

    for cutoff in (2, 6):
        (w, ws), (first_w, first), (_, second) = run(jnp.int32(cutoff))
        assert_close(w, first_w, 1e-6)
        assert_close(ws[:, :cutoff], first[:, :cutoff], 1e-6)
        assert_close(ws[:, cutoff:], second[:, cutoff:], 1e-6)
