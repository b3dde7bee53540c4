"""Projection into W: images that a generator made are found again, and the distance and schedule are as published."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_biggan import CHANGES
from tiny_run import tiny_config

from noisytwins_jax.generation.nearest_classes import nearest_classes
from noisytwins_jax.generation.pixel_distance import pixel_distance
from noisytwins_jax.generation.projection import check_space, mean_w, project, project_images, schedule
from noisytwins_jax.generation.trained_generator import TrainedGenerator
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("fast_compilation")

CLASSES = tuple("abcd")


@functools.cache
def trained(**changes):
    """A generator with random weights, whose images depend on w: 8 px, grey, four classes, w_dim 8."""
    config = tiny_config(**changes)
    model = build_model(config, 1, len(CLASSES))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0))[0])
    rng = np.random.default_rng(1)

    def draw(path, x):
        name = jax.tree_util.keystr(path)
        scale = 100.0 if "mapping" in name and "fc" in name else 0.0 if "bias" in name else 1.0
        x = scale * rng.standard_normal(x.shape).astype(np.float32)
        return 0.2 * x + 1.0 if "affine" in name and "bias" in name else 0.2 * x if "torgb" in name else x

    return TrainedGenerator(config, jax.tree_util.tree_map_with_path(draw, shapes), 1, CLASSES)


@functools.cache
def with_distinct_classes():
    """The same generator, but its class has a hundred times the weight of z."""
    model = trained()
    variables = jax.tree.map(np.copy, model.variables)
    variables["params"]["mapping"]["fc0"]["weight"][model.config.generator.z_dim :] *= 100
    return dataclasses.replace(model, variables=variables)


def off(a, b):
    """Root mean square difference of two images in grey levels."""
    return np.sqrt(np.square(a.astype(float) - b).mean())


@pytest.mark.parametrize("per_layer", [False, True])
def test_an_image_of_the_generator_is_found_again(per_layer):
    model = trained()
    w = model.w(classes=[2], seed=3)
    target = model.synthesize(w)[0]
    told = []
    found = project(
        model, target, steps=260, label=2, per_layer=per_layer, report=lambda step, loss: told.append((step, loss))
    )
    start = mean_w(model, label=2)[0][:1]
    before, after = off(model.synthesize(start)[0], target), off(found.image, target)
    assert before > 10 and after < 1, (before, after)
    assert per_layer or np.linalg.norm(found.w - w) < 0.05 * np.linalg.norm(start - w)
    assert found.w.shape == ((1, model.model.generator.num_ws, 8) if per_layer else (1, 8))
    assert np.abs(model.synthesize(found.w)[0].astype(int) - found.image).max() <= 1  # another program
    assert found.losses.shape == (260,) and found.losses[-1] < found.losses[0] / 500
    assert [step for step, _ in told] == [*range(25, 260, 25), 260]
    np.testing.assert_allclose([loss for _, loss in told], [found.losses[step - 1] for step, _ in told])


def test_the_same_again_and_without_a_class():
    model = trained()
    target = model.synthesize(model.w(classes=[1], seed=5))[0]
    first, second = (project(model, target, steps=60, noise_mode="none", seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.w, second.w)
    assert first.losses.shape == (60,) and first.losses[-1] < first.losses[0]
    assert not np.array_equal(first.w, project(model, target, steps=60, noise_mode="none", seed=5).w)


def test_images_of_a_batch_are_projected_as_if_alone():
    model = trained()
    targets = model.synthesize(model.w(classes=[0, 1, 3], seed=5))
    together = project_images(model, targets, [0, 1, 3], steps=60)
    assert together.points.shape == (3, 8) and together.losses.shape == (3, 60)
    assert together.way_steps == (0, 25, 50, 60) and together.way_images.shape == (3, 4, 8, 8, 1)
    for i, label in enumerate([0, 1, 3]):
        alone = project(model, targets[i], steps=60, label=label)
        np.testing.assert_allclose(together.losses[i], alone.losses, rtol=0.02, atol=1e-4)
        start = model.synthesize(mean_w(model, label)[0][:1])[0]
        assert np.abs(together.way_images[i, 0].astype(int) - start).max() <= 1
        assert np.abs(together.way_images[i, -1].astype(int) - alone.image).max() <= 2
    assert (together.way_distances[:, -1] < together.way_distances[:, 0]).all()
    plain = pixel_distance(together.way_images[:, -1].astype(np.float32), targets.astype(np.float32))
    np.testing.assert_allclose(together.way_distances[:, -1], plain, atol=2e-3)  # of images that are not rounded


@pytest.mark.parametrize("network", ["biggan", "r3gan"])
def test_networks_without_w_are_projected_into_z(network):
    changes = {"network": network, "r3gan.width": 8, "r3gan.cardinality": 2, "evaluation.standing_passes": 2}
    config = tiny_config(**CHANGES | changes)
    built = build_model(config, 1, len(CLASSES))
    rng = np.random.default_rng(2)
    variables = jax.jit(lambda: built.init(jax.random.key(0))[0])()
    variables = jax.tree.map(lambda x: np.float32(x + 0.1 * rng.standard_normal(x.shape)), variables)
    model = TrainedGenerator(config, variables, 1, CLASSES)
    target = model.sample([2], seed=3)
    found = project_images(model, target, [2], "z", steps=100)
    assert found.points.shape == (1, config.generator.z_dim)
    assert found.way_distances[0, -1] < 0.5 * found.way_distances[0, 0]
    with pytest.raises(UserError, match=f"a {network} generator does not have; .* --space=z"):
        project_images(model, target, [2], "w")


def test_the_class_of_a_generated_image_is_found():
    model = with_distinct_classes()
    images = model.sample(per_class=5, seed=11, noise_mode="const")
    told = []
    distances = nearest_classes(model, images, [3, 0, 1, 2], report=told.append)
    assert distances.shape == (20, 4) and told == [64] * 4
    found = np.array([3, 0, 1, 2])[distances.argmin(axis=1)]
    assert (found == np.repeat(np.arange(4), 5)).mean() >= 0.9
    samples = model.sample([1], per_class=64, noise_mode="const").astype(np.float32)
    nearest = np.sort(pixel_distance(samples, images[:1].astype(np.float32)))[:8].mean()
    np.testing.assert_allclose(distances[0, 2], nearest, rtol=1e-4, atol=1e-5)


def test_features_count():
    model = trained()
    target = model.synthesize(model.w(classes=[1], seed=5))[0]

    def features(images):
        return images.mean(axis=2)[..., 0]  # of each row of pixels

    plain, both = (project(model, target, steps=1, noise=0.0, features=f, feature_weight=3.0) for f in (None, features))
    start = model.model.generator.apply(
        model.variables, jnp.asarray(mean_w(model)[0])[None], "const", method="synthesize"
    )
    there, here = (
        features(jnp.asarray(target[None], jnp.float32)),
        features(jnp.maximum(127.5 * start + 127.5, jnp.where(target > 0, -jnp.inf, 0.0))),
    )
    extra = 3.0 * float(jnp.square(here - there).sum() / jnp.square(there).sum())
    assert extra > 0.001
    np.testing.assert_allclose(both.losses[0] - plain.losses[0], extra, rtol=1e-3)


def test_mean_w_is_the_mean_of_the_class():
    model = trained()
    mean, spread = mean_w(model, label=1, count=4000)
    w = model.w(classes=[1], per_class=2000, seed=9)
    error = np.abs(mean[0] - w.mean(axis=0)) / w.std(axis=0)
    assert error.max() < 5 * np.sqrt(1 / 4000 + 1 / 2000)
    np.testing.assert_allclose(spread, np.sqrt(w.var(axis=0).sum()), rtol=0.05)
    assert mean.shape == (model.model.generator.num_ws, 8) and (mean == mean[0]).all()
    classes = np.mean([mean_w(model, label=c, count=4000)[0] for c in range(4)], axis=0)
    assert np.abs(mean_w(model, count=16000)[0] - classes).max() < 0.2 * spread


def test_low_layers_of_utlo_have_their_own_w():
    model = trained(**{"utlo.weight": 1.0, "utlo.resolution": 4})
    target = model.synthesize(model.w(classes=[1]))[0]
    mean, _ = mean_w(model, label=1, count=100)
    assert not np.allclose(mean[0], mean[-1])
    with pytest.raises(UserError, match="per_layer=True"):
        project(model, target)
    assert project(model, target, steps=2, per_layer=True).w.shape == (1, *mean.shape)


def test_distance_is_the_mean_over_sizes():
    a, b = np.zeros((1, 8, 8, 1)), np.zeros((1, 8, 8, 1))
    a[0, 0, 0] = 127.5  # one pixel of 64, a quarter of one of 16
    np.testing.assert_allclose(pixel_distance(a, b), (1 / 64 + (1 / 4) ** 2 / 16) / 2)
    np.testing.assert_allclose(pixel_distance(a + 127.5, a), 1.0, rtol=1e-6)
    both = pixel_distance(np.concatenate([a, a + 127.5]), np.concatenate([b, a]))
    np.testing.assert_allclose(both, [pixel_distance(a, b)[0], 1.0], rtol=1e-6)


def test_schedule_is_the_published_one():
    rates, noise = schedule(1000)
    np.testing.assert_allclose(rates[[0, 24, 49]], [0.02, 0.5, 1.0])
    np.testing.assert_allclose(rates[50:750], 1.0)
    np.testing.assert_allclose(rates[875], 0.5, atol=1e-9)
    assert 0 < rates[-1] < 1e-3
    np.testing.assert_allclose(noise[[0, 375, 750, 999]], [1.0, 0.25, 0.0, 0.0], atol=1e-12)


def test_errors():
    model = trained()
    image = np.zeros((8, 8, 1), np.uint8)
    for wrong in (image / 255, np.zeros((16, 16, 1), np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(UserError, match="crop and resize"):
            project(model, wrong)
    for options in ({"steps": 0}, {"learning_rate": 0.0}, {"noise": -1.0}):
        with pytest.raises(UserError, match="make no projection"):
            project(model, image, **options)
    with pytest.raises(UserError, match="noise_mode"):
        project(model, image, noise_mode="random")
    with pytest.raises(UserError, match="no class 4"):
        project(model, image, label=4)
    with pytest.raises(UserError, match="not into z"):
        check_space(model.config, "z")
    biggan = TrainedGenerator(dataclasses.replace(tiny_config(), network="biggan"), {}, 1, CLASSES)
    with pytest.raises(UserError, match="StyleGAN2's W"):
        project(biggan, image)
