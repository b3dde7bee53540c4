"""Instances in the networks, in draws, in the step and in samples."""

import json
import subprocess
import sys

import instances_run
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_biggan
import tiny_run
from biggan_networks import quick_jit, shapes
from paths import HELPERS
from waiting import TIMEOUT

from noisytwins_jax.config import parse_config
from noisytwins_jax.generation.sampler import Sampler
from noisytwins_jax.generation.standing_statistics import standing_statistics
from noisytwins_jax.models.biggan import Discriminator, Generator
from noisytwins_jax.models.instance_sampling import sample_features_of_classes, sample_instances_and_labels
from noisytwins_jax.models.model import DiscriminatorInputs
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.instance_conditioning import abstract_table
from noisytwins_jax.training.random_inputs import class_table
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("fast_compilation")

COUNTS, N, K, D = instances_run.COUNTS, instances_run.N, instances_run.K, instances_run.D
TABLE, CONFIG = instances_run.table(), instances_run.config()
SIZES = {"resolution": 8, "num_classes": 4, "channels": 1, "width": 4, "attention": False}


@pytest.fixture(scope="module")
def model():
    return build_model(CONFIG, 1, len(COUNTS))


@pytest.fixture(scope="module")
def networks(model):
    """Variables of both, of which none is zero."""
    found = jax.device_get(jax.jit(lambda: model.init(jax.random.key(0)))())
    return [x | {"params": jax.device_get(tiny_biggan.perturbed(x["params"], i))} for i, x in enumerate(found)]


# --- networks --------------------------------------------------------------------------------------------------------


def parameters(module, *inputs) -> int:
    return sum(np.prod(x.shape, dtype=int) for x in jax.tree.leaves(shapes(module, *inputs)["params"]))


@pytest.mark.parametrize("deep", [False, True])
def test_parameters_are_the_maps_of_the_features_and_their_part_of_the_conditions(deep):
    z, labels, h, images = np.zeros((1, 6)), np.zeros(1, int), np.zeros((1, D)), np.zeros((1, 8, 8, 1))
    generators = [Generator(**SIZES, z_dim=6, deep=deep, embedding_dim=7, instance_dim=i) for i in (0, 5)]
    plain = parameters(generators[0], z, labels)
    found = parameters(generators[1], z, labels, None, False, False, h)
    tree = shapes(generators[0], z, labels)["params"]
    maps = [x for path, x in jax.tree.leaves_with_path(tree) if {"gain", "bias"} & {k.key for k in path[:-1]}]
    wider = sum(5 * x.shape[-1] for x in maps if x.ndim == 2)  # of every conditional BatchNorm
    first = 5 * tree["linear"]["weight"].shape[1] if deep else 0  # deep: the first layer has the whole condition
    assert wider and found - plain == D * 5 + 5 + wider + first

    discriminators = [Discriminator(**SIZES, deep=deep, instances=i) for i in (False, True)]
    features = shapes(discriminators[0], images, labels)["params"]["linear"]["weight"].shape[0]
    difference = parameters(discriminators[1], images, labels, False, False, h) - parameters(
        discriminators[0], images, labels
    )
    assert difference == D * features


def test_both_networks_look_at_the_instance(model, networks):
    rng = np.random.default_rng(0)
    z, labels = jnp.asarray(rng.standard_normal((2, 6)).repeat(2, 0)), jnp.array([1, 1, 2, 2])
    h = jnp.asarray(TABLE.features[[0, 1, 0, 1]].astype(np.float32))
    images = jnp.asarray(rng.standard_normal((1, 8, 8, 1)).repeat(4, 0))

    @quick_jit
    def look(networks):
        made, w = model.sample(networks[0], z, labels, jax.random.key(0), None, h)
        said, _ = model.discriminate(networks[1], DiscriminatorInputs(images, labels, jnp.zeros((4, 0)), instances=h))
        part = model.discriminator.apply(networks[1], images, method="features")
        return made, w, said.logits, part

    made, w, logits, seen = jax.device_get(look(networks))
    assert np.abs(made[0] - made[1]).max() > 1e-3 and np.abs(made[2] - made[3]).max() > 1e-3
    embedding = networks[0]["params"]["instance"]
    np.testing.assert_allclose(w[:, 8:13], h @ embedding["weight"] + embedding["bias"], rtol=1e-4, atol=1e-5)
    layer, u = (networks[1][name]["instance"] for name in ("params", "spectral"))
    v = layer["weight"] @ u["u"]
    sigma = v / np.linalg.norm(v) @ layer["weight"] @ u["u"]
    projected = (h @ (layer["weight"] / sigma) * seen).sum(axis=1)
    np.testing.assert_allclose(logits[0] - logits[1], projected[0] - projected[1], rtol=1e-3, atol=1e-4)
    assert abs(projected[0] - projected[1]) > 1e-3


# --- draws -----------------------------------------------------------------------------------------------------------


def test_pairs_are_an_instance_and_the_label_of_a_neighbour():
    instances, labels = jax.device_get(
        jax.jit(sample_instances_and_labels, static_argnums=2)(jax.random.key(0), TABLE, 20_000)
    )
    possible = TABLE.labels[TABLE.neighbours]
    assert (possible[instances] == labels[:, None]).any(axis=1).all()
    np.testing.assert_allclose(np.bincount(instances, minlength=N) / 20_000, 1 / N, atol=0.006)
    expected = np.bincount(possible.ravel(), minlength=len(COUNTS)) / possible.size
    np.testing.assert_allclose(np.bincount(labels) / 20_000, expected, atol=0.02)


def test_an_instance_of_a_class_is_uniformly_drawn_among_its_images():
    labels = np.arange(20_000) % len(COUNTS)
    keys = jax.random.split(jax.random.key(0), len(labels))
    found = np.asarray(jax.jit(sample_features_of_classes)(keys, TABLE, labels))
    features = np.asarray(TABLE.features, found.dtype)
    numbers = (found @ features.T).argmax(axis=1)
    np.testing.assert_array_equal(found, features[numbers])
    np.testing.assert_array_equal(TABLE.labels[numbers], labels)
    for c, count in enumerate(COUNTS):
        shares = np.bincount(numbers[labels == c], minlength=N)[TABLE.labels == c] / (labels == c).sum()
        np.testing.assert_allclose(shares, 1 / count, atol=0.04)
    assert sample_features_of_classes(keys, None, labels) is None


def test_fakes_have_the_features_of_their_instances_and_twins_share_them(model):
    step = TrainingStep(CONFIG, model)
    table = class_table(CONFIG, COUNTS, TABLE)
    draws = jax.jit(step.random.generator_inputs, static_argnums=(2, 3, 4))(jax.random.key(1), table, 8, 1.0, True)
    numbers = (np.asarray(draws.instances) @ np.asarray(TABLE.features, np.float32).T).argmax(axis=1)
    np.testing.assert_array_equal(draws.instances, np.asarray(TABLE.features, np.float32)[numbers])
    np.testing.assert_array_equal(numbers[:4], numbers[4:])
    assert (TABLE.labels[TABLE.neighbours[numbers]] == np.asarray(draws.labels)[:, None]).any(axis=1).all()
    assert len(set(numbers)) > 1


def test_without_instances_the_draws_are_as_they_were():
    config = tiny_biggan.tiny_config(**{"biggan.attention": "none"})
    step = TrainingStep(config, build_model(config, 1, len(COUNTS)))
    draws = step.random.generator_inputs(jax.random.key(1), class_table(config, COUNTS), 8)
    key = jax.random.split(jax.random.key(1), 7)[1]
    np.testing.assert_array_equal(draws.labels, jax.random.categorical(key, jnp.zeros(len(COUNTS)), shape=(8,)))
    assert draws.instances is None


# --- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_step_is_the_same_on_one_device_and_on_eight():
    program, helpers = HELPERS / "instances_devices_program.py", HELPERS
    environment = tiny_run.environment(8) | {"JAX_ENABLE_X64": "1", "PYTHONPATH": str(helpers)}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["devices"] == 8
    for network in ("generator", "discriminator"):  # the maps of features are trained
        assert report["moved"][f".{network}.params['instance']['weight']"] > 1e-6
    one, many = report["metrics"]
    assert one.keys() == many.keys() and "loss/generator/noisytwins" in one
    for name, value in one.items():
        assert many[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    for name, moved in report["moved"].items():
        assert report["difference"][name] <= 0.02 * moved + 1e-6, name


# --- samples ---------------------------------------------------------------------------------------------------------


def test_an_image_depends_on_its_class_and_index_alone(model, networks):
    labels, indices = np.array([0, 3, 1, 3, 2, 0, 1]), np.array([5, 2, 9, 4, 0, 7, 3])
    variables = standing_statistics(model, CONFIG.z, networks[0], None, 2, 4, TABLE)
    sampler = Sampler(model, CONFIG.z, variables, per_device_batch=2, instances=TABLE)
    images, w = sampler(labels, indices)
    for some in (slice(3, 4), slice(None, None, -1)):
        found = sampler(labels[some], indices[some])
        np.testing.assert_array_equal(found[0], images[some])
        np.testing.assert_array_equal(found[1], w[some])
    layer = networks[0]["params"]["instance"]
    made = TABLE.features @ layer["weight"] + layer["bias"]  # what each instance becomes
    distances = np.abs(w[:, None, 8:13] - made).max(axis=2)
    np.testing.assert_allclose(distances.min(axis=1), 0, atol=1e-4)
    np.testing.assert_array_equal(TABLE.labels[distances.argmin(axis=1)], labels)

    ends = sampler.interpolate(np.stack([labels, labels[::-1]], 1), np.stack([indices, indices[::-1]], 1), np.ones(7))
    np.testing.assert_allclose(ends.astype(int), images[::-1].astype(int), atol=1)

    other = TABLE._replace(features=-TABLE.features)  # the program is the same; the table is an argument
    assert (
        Sampler(model, CONFIG.z, variables, per_device_batch=2, instances=other)(labels, indices)[0] != images
    ).any()


def test_standing_statistics_are_those_of_the_table(model, networks):
    other = TABLE._replace(features=-TABLE.features)
    found = [standing_statistics(model, CONFIG.z, networks[0], None, 2, 4, table) for table in (TABLE, other, TABLE)]
    first, second, again = (np.concatenate(jax.tree.leaves(x["batch_stats"])) for x in found)
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(first, again)


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fake_labels": "uniform"}, "--config.fake_labels=empirical"),
        ({"memorisation_interval_kimg": 1.0}, "config.memorisation_interval_kimg needs held-out images"),
        ({"biggan.shared_embedding": False, "biggan.skip_z": False}, "config.biggan.shared_embedding to True"),
        ({"instances.extractor": "resnet"}, "config.instances.extractor is 'classifier' or 'inception'"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(UserError, match=message):
        instances_run.config(**changes)


def test_refuses_stylegan2():
    tree = tiny_run.default_config()
    tree.fake_labels, tree.instances.neighbours = "empirical", 5
    with pytest.raises(UserError, match="conditions BigGAN's networks"):
        parse_config(tree)


def test_shapes_to_compile_for(model):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = abstract_table(CONFIG, len(COUNTS), sharding)
    assert [x.ndim for x in found] == [x.ndim for x in TABLE]
    assert found.features.shape[1] == D == model.instance_features and found.starts.shape == TABLE.starts.shape
    assert abstract_table(tiny_biggan.tiny_config(), len(COUNTS), sharding) is None
