"""Arguments of `TrainedGenerator`: classes, numbers of images and seeds, valid and invalid."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from noisytwins_jax import load
from noisytwins_jax.config import RunConfig
from noisytwins_jax.generation.trained_generator import TrainedGenerator, find_class_ids
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.randomness import sample_keys


@pytest.fixture
def model():
    """Of four classes; without weights, which nothing here needs."""
    return TrainedGenerator(RunConfig(), {}, 1, tuple("abcd"))


@pytest.mark.parametrize("classes", [3, [3], (3,), np.int32(3), np.array([3])])
def test_one_class_may_be_given_alone(model, classes):
    labels, indices = model.labels_and_indices(classes, 2)
    np.testing.assert_array_equal(labels, [3, 3])
    np.testing.assert_array_equal(indices, 3 * 2**20 + np.arange(2))


def test_classes_by_name():
    assert find_class_ids(["cat", "1", 2, np.int64(0)], ["cat", "0", "1"]) == [0, 1, 2, 0]  # an id before a name
    assert find_class_ids(["cat"], ["dog", "cat", "cat"]) == [1]


def test_every_class_by_default(model):
    np.testing.assert_array_equal(model.labels_and_indices(None, 1)[0], range(4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([4], 1), "There is no class 4; classes are 0 to 3"),
        (([-1], 1), "There is no class -1"),
        (([1.5], 1), "There is no class 1.5"),
        ((["x"], 1), "There is no class x; classes are 0 to 3; did you mean '"),
        (([], 1), "There are no classes to sample"),
        (([1], 0), "0 images per class cannot be sampled"),
        (([1], 2.5), "2.5 images per class cannot be sampled"),
    ],
)
def test_wrong_rows(model, arguments, message):
    with pytest.raises(UserError, match=message):
        model.labels_and_indices(*arguments)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "1"])
def test_wrong_seeds(model, seed):
    with pytest.raises(UserError, match="must be an integer from 0 to 4294967295"):
        model.sampler(seed=seed)


def test_a_seed_of_its_own_for_the_style():
    """Half of z and with it the style and the image change; with the same seed nothing does."""
    config = tiny_run.tiny_config(**{"noisytwins.sigma": 0.0, "noisytwins.weight": 0.0, "content_style.weight": 0.1})
    trained = TrainedGenerator(config, {}, 1, tuple("abcd"))
    trained = dataclasses.replace(trained, variables=trained.model.init(jax.random.key(0))[0])
    (images, w), (same_images, same_w), (other_images, other_w) = (
        trained.sampler(seed=3, noise_mode="none", images=1, style_seed=style_seed)(np.arange(2), np.arange(2))
        for style_seed in (None, 3, 4)
    )
    np.testing.assert_allclose(w, same_w, atol=1e-5)
    assert np.abs(images.astype(int) - same_images).max() <= 1
    assert np.abs(w - other_w).max() > 1e-3 and np.any(images != other_images)
    z = np.stack([_z(seed, index) for seed in (3, 4) for index in range(2)]).reshape(2, 2, 8)
    mixed = np.concatenate([z[1, :, :4], z[0, :, 4:]], axis=1)
    expected = trained.model.latent_w(trained.variables, mixed, np.arange(2))
    np.testing.assert_allclose(other_w, expected, atol=1e-5)


def _z(seed: int, index: int) -> np.ndarray:
    z_key, _ = jax.random.split(sample_keys(seed, jnp.array([index]))[0])
    return np.asarray(jax.random.normal(z_key, (8,)))


def test_a_seed_for_a_style_that_there_is_not(model):
    with pytest.raises(UserError, match="style_seed is for generators that divide z into content and style"):
        model.sampler(style_seed=1)


@pytest.mark.parametrize("name", ["G_ema.pth", "network-snapshot.pkl"])
def test_a_folder_of_pytorch_has_to_be_converted(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="convert from-torch"):
        load(tmp_path)
