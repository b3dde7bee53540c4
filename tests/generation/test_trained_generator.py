"""Arguments of `TrainedGenerator`: classes, numbers of images and seeds, valid and invalid."""

import numpy as np
import pytest

from noisytwins_jax import load
from noisytwins_jax.config import RunConfig
from noisytwins_jax.generation.trained_generator import TrainedGenerator
from noisytwins_jax.utils.errors import UserError


@pytest.fixture
def model():
    """Of four classes; without weights, which nothing here needs."""
    return TrainedGenerator(RunConfig(), {}, 1, tuple("abcd"))


@pytest.mark.parametrize("classes", [3, [3], (3,), np.int32(3), np.array([3])])
def test_one_class_may_be_given_alone(model, classes):
    labels, indices = model.labels_and_indices(classes, 2)
    np.testing.assert_array_equal(labels, [3, 3])
    np.testing.assert_array_equal(indices, 3 * 2**20 + np.arange(2))


def test_every_class_by_default(model):
    np.testing.assert_array_equal(model.labels_and_indices(None, 1)[0], range(4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([4], 1), "There is no class 4; classes are 0 to 3"),
        (([-1], 1), "There is no class -1"),
        (([1.5], 1), "There is no class 1.5"),
        ((["a"], 1), "There is no class 'a'"),
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


@pytest.mark.parametrize("name", ["G_ema.pth", "network-snapshot.pkl"])
def test_a_folder_of_pytorch_has_to_be_converted(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="convert from-torch"):
        load(tmp_path)
