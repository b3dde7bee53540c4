import numpy as np
import pytest

from noisytwins_jax.data.source import ArraySource
from noisytwins_jax.evaluation import evaluate_generator as evaluation
from noisytwins_jax.evaluation.generated_features import GeneratedFeatures
from noisytwins_jax.metrics import pixel_neighbours
from noisytwins_jax.metrics.features import HostFakes
from noisytwins_jax.metrics.pixel_neighbours import nearest_in_pixels
from noisytwins_jax.metrics.real_features import RealFeatures
from noisytwins_jax.metrics.settings import Settings
from noisytwins_jax.utils.errors import UserError


def source(count, channels=3, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, channels), np.uint8)
    return ArraySource(images, np.zeros(count, int), ["a"], "noise")


@pytest.mark.parametrize("block", [1, 4, 256])
def test_is_the_order_of_all_distances(monkeypatch, block):
    monkeypatch.setattr(pixel_neighbours, "_BLOCK", block)
    real = source(11)
    queries = source(5, seed=1).images
    distances, indices = nearest_in_pixels(queries, real, 3)
    squared = ((queries[:, None].astype(int) - real.images[None].astype(int)) ** 2).sum((2, 3, 4))
    np.testing.assert_array_equal(indices, np.argsort(squared, axis=1, kind="stable")[:, :3])
    expected = np.sqrt(np.sort(squared, axis=1)[:, :3] / (8 * 8 * 3))
    np.testing.assert_allclose(distances, expected, rtol=1e-12)


@pytest.mark.parametrize("block", [2, 256])
def test_copies_are_at_distance_zero_and_the_first_of_equals_comes_first(monkeypatch, block):
    monkeypatch.setattr(pixel_neighbours, "_BLOCK", block)
    images = np.repeat(source(3, channels=1).images, 2, axis=0)
    real = ArraySource(images, np.zeros(6, int), ["a"], "twice")
    distances, indices = nearest_in_pixels(images[4:5], real, 3)
    assert indices[0, :2].tolist() == [4, 5] and distances[0, :2].tolist() == [0.0, 0.0] and distances[0, 2] > 0


def test_a_small_source_gives_all_it_has():
    distances, indices = nearest_in_pixels(source(2, seed=1).images, source(3), 6)
    assert distances.shape == indices.shape == (2, 3) and np.sort(indices[0]).tolist() == [0, 1, 2]


def test_the_unit_is_a_grey_level():
    black, grey = (np.full((1, 8, 8, 1), value, np.uint8) for value in (0, 7))
    distances, _ = nearest_in_pixels(grey, ArraySource(black, np.zeros(1, int), ["a"], "black"), 1)
    assert distances[0, 0] == pytest.approx(7)


@pytest.mark.parametrize("bad", [np.zeros((1, 16, 16, 3), np.uint8), np.zeros((1, 8, 8, 3), np.float32)])
def test_errors(bad):
    with pytest.raises(UserError, match="same size"):
        nearest_in_pixels(bad, source(2), 1)


@pytest.mark.parametrize("image_size", [None, (8, 8, 3), (16, 16, 3)])
def test_examples_of_an_evaluation_have_neighbours_in_features_and_in_pixels(image_size):
    train = source(12)
    features = np.random.default_rng(2).standard_normal((12, 4)).astype(np.float32)
    real = RealFeatures(features, np.zeros((12, 0)), np.arange(12 * 16, dtype=np.uint8).reshape(12, 16))
    generated = GeneratedFeatures(
        [], np.zeros(5, np.int32), {"inception": features[:5] + 9}, np.zeros(0), np.zeros(0), []
    )
    fakes = HostFakes(lambda labels, indices: (train.images[indices + 3], None), image_size=image_size)
    counts = Settings(samples_per_class=5).counts(1)
    found = evaluation._memorisation(real, train, generated, real, train.labels, "inception", counts, fakes)
    (example,) = found["examples"]
    assert len(example["nearest"]) == len(example["distances"]) == 6
    if image_size == (16, 16, 3):  # there are no pixels to compare
        assert not any(key.startswith("pixel") for key in example)
    else:
        assert example["pixel_nearest"][0] == 3 and example["pixel_distances"][0] == 0
        assert len(example["pixel_nearest"]) == 6 and example["nearest"][0] != 3
