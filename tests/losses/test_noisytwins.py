"""The method: loss and noise against the official implementation and formulas, and their place in a training step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import Golden, assert_close
from loss_contexts import generator_context

from noisytwins_jax.config import RunConfig
from noisytwins_jax.config.groups import AugmentConfig
from noisytwins_jax.losses import noisytwins
from noisytwins_jax.losses.base import Progress
from noisytwins_jax.losses.noisytwins import NoisyTwins
from noisytwins_jax.losses.path_length import PathLength
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.models.model import GeneratorInputs
from noisytwins_jax.models.stylegan2 import Discriminator, Generator
from noisytwins_jax.models.stylegan2_model import StyleGAN2Model
from noisytwins_jax.training.phases import build_phases
from noisytwins_jax.training.random_inputs import class_table
from noisytwins_jax.training.step import TrainingStep

pytestmark = pytest.mark.usefixtures("fast_compilation")

CIFAR10_LT = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
SETS = [f"N{n}_d8_{kind}" for n in (4, 64) for kind in ("close", "indep", "identical")]
SETS += [f"N4_d32_{kind}" for kind in ("close", "indep", "identical")] + ["N64_d512_close", "N64_d512_identical"]
# Small programs that run once or twice: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

LOSS = jit(jax.value_and_grad(noisytwins.noisytwins_loss))


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("noisytwins_loss")


# --- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_loss(golden, name):
    w = np.concatenate([golden[f"in/{name}/a"], golden[f"in/{name}/b"]])
    values = [weight * LOSS(w, gamma)[0] for gamma, weight in golden.config["gamma_lambda"]]
    assert_close(values, golden[f"out/{name}/loss"], 1e-5)


@pytest.mark.parametrize("name", [name for name in SETS if name != "N64_d512_identical"])
def test_loss_gradients(golden, name):
    w = np.concatenate([golden[f"in/{name}/a"], golden[f"in/{name}/b"]])
    gradient = golden.config["grad_lambda"] * LOSS(w, golden.config["grad_gamma"])[1]
    for actual, side in zip(np.split(gradient, 2), "ab", strict=True):
        assert_close(actual, golden[f"out/{name}/grad_{side}"], 1e-4)


def test_loss_fixture_in_float64():
    rng = np.random.default_rng(123)
    a = rng.standard_normal((8, 3))
    b = a + 0.1 * rng.standard_normal((8, 3))
    with jax.enable_x64(True):
        value = noisytwins.noisytwins_loss(jnp.asarray(np.concatenate([a, b])), 0.05)
        assert value.dtype == jnp.float64
    assert float(value) == pytest.approx(0.01649733064113697, rel=1e-12)


def test_loss_gathers_w_once_before_the_correlation():
    gathered = []

    def replicate(x):
        gathered.append(x.shape)
        return 3.0 * x[::-1]  # something that the loss would show if it came later

    w = jax.random.normal(jax.random.key(0), (8, 5))
    value = noisytwins.noisytwins_loss(w, 0.05, replicate=replicate)
    assert gathered == [(8, 5)]
    assert float(value) == pytest.approx(float(noisytwins.noisytwins_loss(3.0 * w[::-1], 0.05)), rel=1e-6)


def test_loss_as_the_paper_prints_it():
    """Eq. 5 and 6 by their sums."""
    rng = np.random.default_rng(0)
    a, b, gamma = rng.standard_normal((6, 4)), rng.standard_normal((6, 4)), 0.3
    c = np.zeros((4, 4))
    for j in range(4):
        for k in range(4):
            c[j, k] = sum(a[i, j] * b[i, k] for i in range(6)) / (np.sum(a[:, j] ** 2) * np.sum(b[:, k] ** 2))
    assert_close(noisytwins.cross_correlation(a, b, "paper"), c, 1e-5)
    off_diagonal = sum(c[j, k] ** 2 for j in range(4) for k in range(4) if j != k)
    w = np.concatenate([a, b]).astype(np.float32)
    both = noisytwins.noisytwins_loss(w, gamma, correlation="paper", diagonal="paper")
    assert_close(both, sum(1 - c[j, j] ** 2 for j in range(4)) + gamma * off_diagonal, 1e-5)
    barlow = noisytwins.noisytwins_loss(w, gamma, correlation="paper")
    assert_close(barlow, sum((1 - c[j, j]) ** 2 for j in range(4)) + gamma * off_diagonal, 1e-5)


def test_only_the_papers_diagonal_rewards_anticorrelated_twins():
    a = jax.random.normal(jax.random.key(0), (64, 1))
    opposite = jnp.concatenate([a, -a])
    assert float(noisytwins.noisytwins_loss(opposite, 0.0, diagonal="paper")) == pytest.approx(0.0, abs=1e-3)
    assert float(noisytwins.noisytwins_loss(opposite, 0.0)) == pytest.approx(4.0, abs=1e-3)


def test_the_objective_is_the_loss_of_its_fields():
    gathered = []

    def replicate(x):
        gathered.append(x.shape)
        return x

    w = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
    for correlation in ("standardized", "paper"):
        for diagonal in ("barlow", "paper"):
            objective = NoisyTwins(weight=9.0, gamma=0.2, correlation=correlation, diagonal=diagonal)
            value, state = objective.generator(generator_context(w=w, replicate=replicate), ())
            assert float(value) == float(noisytwins.noisytwins_loss(w, 0.2, correlation, diagonal)) and state == ()
    assert gathered == [(8, 5)] * 4


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10lt", "synthetic1010", "alpha0"])
def test_class_noise_std(golden, name):
    options = golden.config[f"sigma_{name}"]
    std = noisytwins.class_noise_std(golden[f"in/sigma/{name}/counts"], options["emb_noise_std"], options["alpha"])
    assert std.dtype == np.float32
    np.testing.assert_allclose(std, golden[f"out/sigma/{name}/sigma_c"], rtol=1e-5)


def test_class_noise_std_of_cifar10_lt():
    expected = [0.587874] * 3 + [0.587886, 0.588775, 0.600151, 0.651119, 0.781061, 1.039072, 1.488312]
    std = noisytwins.class_noise_std(CIFAR10_LT, 0.75, 0.99)
    np.testing.assert_allclose(std, expected, atol=1e-6)
    assert std.mean() == pytest.approx(0.75)


def test_class_noise_std_as_the_paper_prints_it():
    """Eq. 3: σ(1 - α)/(1 - αⁿ), and N(0, σ_c I) with σ_c as the variance."""
    counts = np.array(CIFAR10_LT)
    expected = 0.75 * (1 - 0.99) / (1 - 0.99**counts)
    literal = noisytwins.class_noise_std(counts, 0.75, 0.99, noise_normalization="paper")
    np.testing.assert_allclose(literal, expected, rtol=1e-6)
    assert literal[0] == pytest.approx(0.0075, abs=1e-6) and literal[-1] == pytest.approx(0.0190, abs=1e-4)
    variance = noisytwins.class_noise_std(counts, 0.75, 0.99, "paper", "variance")
    np.testing.assert_allclose(variance**2, expected, rtol=1e-6)


@pytest.mark.parametrize("normalization", ["mean1", "paper"])
def test_without_alpha_every_class_has_the_same_noise(normalization):
    std = noisytwins.class_noise_std([500, 30, 1], 0.5, 0.0, normalization)
    np.testing.assert_array_equal(std, np.float32([0.5, 0.5, 0.5]))


def test_class_noise_has_the_std_of_its_class():
    std = noisytwins.class_noise_std(CIFAR10_LT, 0.75, 0.99)
    labels = np.repeat(np.arange(10, dtype=np.int32), 200)
    noise = np.asarray(noisytwins.class_noise(jax.random.key(0), labels, jnp.asarray(std), 64)).reshape(10, -1)
    np.testing.assert_allclose(noise.std(axis=1), std, rtol=0.03)
    np.testing.assert_allclose(noise.mean(axis=1), 0.0, atol=0.05)
    assert len(np.unique(noise)) > 0.99 * noise.size  # independent for every sample and coordinate


@pytest.fixture(scope="module")
def mapping():
    """The mapping of a small generator, as a function of class noise, and its class embeddings."""
    generator = Generator(8, 1, 3, z_dim=16, w_dim=16, mapping_layers=2, channel_base=64, channel_max=8)
    z, labels = jax.random.normal(jax.random.key(1), (6, 16)), jnp.array([0, 0, 1, 1, 2, 2])
    variables = jit(lambda key: generator.init(key, z, labels, method="map"))(jax.random.key(0))
    embed = variables["params"]["mapping"]["embed"]
    embeddings = embed["weight"][labels] / np.sqrt(3) + embed["bias"]
    w = jit(lambda noise: generator.apply(variables, z, labels, noise, method="map"))
    return lambda noise=None: w(noise), embeddings


def test_noise_off_is_deterministic_and_noise_on_is_not(mapping):
    w, embeddings = mapping
    np.testing.assert_array_equal(w(), w())
    first, second = np.random.default_rng(0).normal(0.0, 0.5, (2, *embeddings.shape)).astype(np.float32)
    assert np.abs(w(first) - w(second)).max() > 1e-3 and np.abs(w(first) - w()).max() > 1e-3


def test_noise_is_added_before_the_embedding_is_normalised(mapping):
    w, embeddings = mapping
    assert_close(w(9.0 * embeddings), w(), 1e-5)  # ten times the embedding: the same direction, so the same w
    assert np.abs(w(-2.0 * embeddings) - w()).max() > 1e-3


# --- in the training step ---------------------------------------------------------------------------------------------


class LinearModel:
    """A `Model` of matrices, which keeps the class noise of every discriminator pass."""

    image_shape, z_dim, class_noise_dims, mixing_layers = (8, 8, 1), 6, (5, 4), 1
    low_shape, parameters_without_r1 = None, ()

    def __init__(self, num_classes: int = 3):
        self.num_classes, self.passes = num_classes, []

    def init(self, key):
        def matrix(i, *shape):
            return 0.1 * jax.random.normal(jax.random.fold_in(key, i), shape)

        g = {"z": matrix(0, 6, 5), "embed": matrix(1, self.num_classes, 5), "image": matrix(2, 5, 64)}
        return {"params": g}, {"params": {"image": matrix(3, 64, 4), "embed": matrix(4, self.num_classes, 4)}}

    def map(self, variables, draws, update_stats=False):
        p = variables["params"]
        w = draws.z @ p["z"] + p["embed"][draws.labels] + draws.class_noise
        return w, w[:, None], {}

    def style(self, variables, draws):
        return None

    def synthesize(self, variables, conditioning, key, update_stats=False, rows=None):
        return jnp.tanh(conditioning[:, 0] @ variables["params"]["image"]).reshape(-1, *self.image_shape), None, {}

    def low_images(self, images):
        return None

    def discriminate(self, variables, inputs, update_stats=False):
        images, labels, class_noise, *_ = inputs
        jax.debug.callback(lambda *arrays: self.passes.append(tuple(map(np.asarray, arrays))), labels, class_noise)
        p = variables["params"]
        features = jnp.tanh(images.reshape(len(images), -1) @ p["image"])
        return DiscriminatorOutput((features * (p["embed"][labels] + class_noise)).sum(axis=1)), {}

    def discriminate_both(self, variables, real, fake):
        return *(self.discriminate(variables, inputs)[0] for inputs in (real, fake)), {}


def training_step(**changes) -> TrainingStep:
    defaults = {
        "batch_size": 8,
        "noisytwins": NoisyTwins(weight=0.1, start_step=3, sigma=0.5, alpha=0.9),
    }
    return TrainingStep(dataclasses.replace(RunConfig(), **(defaults | changes)), LinearModel())


COUNTS = np.array([90, 9, 1])


def draw_fakes(step: TrainingStep, n: int, twins: bool = False) -> GeneratorInputs:
    draw = jit(step.random.generator_inputs, static_argnums=(2, 3))
    return draw(jax.random.key(0), class_table(step.config, COUNTS), n, twins)


def test_twins_share_latent_and_label_and_nothing_else():
    step = training_step(style_mixing=0.9, augment=AugmentConfig(diffaugment="color"))
    step.model.mixing_layers = 4
    draws = draw_fakes(step, 8, twins=True)
    for shared in (draws.z, draws.labels):  # [all a; all b]
        np.testing.assert_array_equal(shared[:4], shared[4:])
    assert len(np.unique(draws.z, axis=0)) == 4
    assert len(np.unique(draws.mixing_z, axis=0)) == 8
    for noise in (draws.class_noise, draws.mixing_noise):
        assert len(np.unique(noise)) == noise.size == 8 * 5
    images = jnp.zeros((8, 8, 8, 1))
    table = class_table(step.config, COUNTS)
    inputs = jit(step.random.discriminator_inputs)(jax.random.key(1), table, images, draws.labels)
    assert len(np.unique(inputs.class_noise)) == 8 * 4
    augmented = jit(step.augment)(inputs._replace(images=images + jnp.linspace(-1, 1, 8)[:, None]), jnp.float32(1.0))
    assert len(np.unique(np.asarray(augmented.images).reshape(8, -1), axis=0)) == 8


def test_fakes_are_single_outside_the_generators_update():
    draws = draw_fakes(training_step(), 8)
    assert len(np.unique(draws.z, axis=0)) == 8


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_only_runs_with_the_loss_make_twins(weight):
    assert training_step(noisytwins=NoisyTwins(weight=weight, sigma=0.5)).config.makes_twins == (weight > 0)


@pytest.mark.parametrize("fake_labels", ["uniform", "empirical"])
def test_fake_labels(fake_labels):
    step = training_step(fake_labels=fake_labels)
    labels = draw_fakes(step, 20000).labels
    assert labels.dtype == jnp.int32
    expected = [1 / 3] * 3 if fake_labels == "uniform" else [0.9, 0.09, 0.01]
    np.testing.assert_allclose(np.bincount(labels, minlength=3) / 20000, expected, atol=0.015)


def test_loss_counts_from_its_start_step_and_twins_are_made_before():
    step = training_step()
    state, table = jit(step.init)(0), class_table(step.config, COUNTS)
    fakes = draw_fakes(step, 8, twins=True)
    key = jax.random.key(1)
    twin_loss = float(LOSS(step.model.map(state.generator.variables, fakes)[0], 0.05)[0])
    generator_loss = jit(step.generator_loss)
    for updates, weight in [(0, 0.0), (2, 0.0), (3, 0.1), (9, 0.1)]:
        progress = Progress(jnp.int32(updates), jnp.float32(0.0))
        loss, (metrics, *_) = generator_loss(state.generator.params, state, table, fakes, key, progress)
        assert float(metrics["loss/generator/noisytwins"]) == pytest.approx(twin_loss, rel=1e-6)
        assert float(loss - metrics["loss/generator"]) == pytest.approx(weight * twin_loss, rel=1e-4, abs=1e-7)


def test_generators_update_makes_twins_and_the_others_none(monkeypatch):
    step, made = training_step(path_length=PathLength(weight=2.0)), {}
    phases = build_phases(step)
    whole = step.random.generator_inputs

    def record(key, table, n, twins=False, std=1.0, labels=None):
        assert labels is None
        made.setdefault(name, []).append((n, twins))
        return whole(key, table, n, twins)

    monkeypatch.setattr(step.random, "generator_inputs", record)
    state, table = jax.eval_shape(lambda: step.init(0)), class_table(step.config, COUNTS)
    batch = {"image": jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.uint8), "label": jax.ShapeDtypeStruct((8,), jnp.int32)}
    for name, update, *_ in phases:
        jax.eval_shape(update, state, *((batch, table) if name in ("discriminator", "r1") else (table,)))
    assert made == {"generator": [(8, True)], "path_length": [(4, False)], "discriminator": [(8, False)]}


def test_every_discriminator_pass_draws_its_own_class_noise():
    """Four passes: generator's update, real, fake, R1."""
    step = training_step()
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), np.uint8)
    batch = {"image": images, "label": np.arange(8, dtype=np.int32) % 3}

    @jit
    def one_step(state, batch, table):
        state, _ = step.update_generator(state, table)
        state, _ = step.update_discriminator(state, batch, table)
        return step.regularize_discriminator("r1", state, batch, table)[0]

    one_step(jit(step.init)(0), batch, class_table(step.config, COUNTS))
    jax.effects_barrier()
    noises = np.unique([noise for _, noise in step.model.passes], axis=0)  # differentiation may repeat a pass
    assert noises.shape == (4, 8, 4)
    assert len(np.unique(noises)) == noises.size
    by_class = [
        np.concatenate([noise[labels == c].ravel() for labels, noise in step.model.passes]).std() for c in range(3)
    ]
    assert by_class[0] < by_class[1] < by_class[2]  # the rarer, the noisier


def test_path_length_weight():
    """The published code multiplies by the weight 2 twice and by the interval 4; StyleGAN2 by 2 · 4."""

    def loss(**options):
        step = training_step(path_length=PathLength(**options))
        loss = functools.partial(step.generator_loss, lazy=step.losses["path_length"])
        state, fakes = jit(step.init)(0), draw_fakes(step, 4)
        progress = Progress(jnp.int32(0), jnp.float32(0.0))
        table = class_table(step.config, COUNTS)
        return jit(loss)(state.generator.params, state, table, fakes, jax.random.key(1), progress)[0]

    penalty = loss(weight=1.0, interval=1)
    assert float(penalty) > 0
    assert float(loss(weight=2.0) / penalty) == pytest.approx(16.0, rel=1e-5)
    assert float(loss(weight=2.0, weight_twice=False) / penalty) == pytest.approx(8.0, rel=1e-5)


def test_style_mixing_leaves_w_and_the_first_layer_alone():
    generator = Generator(8, 1, 3, z_dim=6, w_dim=6, mapping_layers=1, channel_base=64, channel_max=8)
    discriminator = Discriminator(8, 1, 3, channel_base=64, channel_max=8, mapping_layers=1)
    model = StyleGAN2Model(generator, discriminator)
    z, labels = jax.random.normal(jax.random.key(0), (2, 4, 6)), jnp.array([0, 1, 2, 0])
    noise = jax.random.normal(jax.random.key(1), (2, 4, 6))
    variables = jit(lambda key: generator.init(key, z[0], labels, method="map"))(jax.random.key(2))
    plain = GeneratorInputs(z[0], labels, noise[0], None, None, None, jax.random.key(0))
    other = GeneratorInputs(z[1], labels, noise[1], None, None, None, jax.random.key(0))
    mapped = jit(model.map)
    w, ws, _ = mapped(variables, plain)
    other_w = mapped(variables, other)[0]
    for cutoff in range(1, generator.num_ws + 1):
        mixing = {"mixing_z": z[1], "mixing_noise": noise[1], "mixing_cutoff": jnp.int32(cutoff)}
        mixed_w, mixed, _ = mapped(variables, plain._replace(**mixing))
        np.testing.assert_array_equal(mixed_w, w)
        np.testing.assert_array_equal(mixed[:, :cutoff], ws[:, :cutoff])
        np.testing.assert_array_equal(mixed[:, cutoff:], np.repeat(other_w[:, None], generator.num_ws - cutoff, axis=1))


def test_style_mixing_cutoffs():
    """With probability p one of 1 to num_ws - 1, else num_ws: nothing mixed."""
    step = training_step(style_mixing=0.9)
    step.model.mixing_layers = 4
    table = class_table(step.config, COUNTS)
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.vmap(lambda key, table: step.random.generator_inputs(key, table, 4).mixing_cutoff, in_axes=(0, None))
    cutoffs = jit(draw)(keys, table)
    np.testing.assert_allclose(np.bincount(cutoffs, minlength=5) / 2000, [0, 0.3, 0.3, 0.3, 0.1], atol=0.04)
