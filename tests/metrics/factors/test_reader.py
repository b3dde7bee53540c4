"""The factor network of a data set: trained once, cached, and used by the evaluation beside FID."""

import json

import numpy as np
import pytest

from noisytwins_jax.data.registry import load_splits
from noisytwins_jax.evaluation.evaluate_generator import evaluate_generator
from noisytwins_jax.metrics.extractors.classifier import load_or_train_classifier
from noisytwins_jax.metrics.factors import reader as factor_reader
from noisytwins_jax.metrics.factors.reader import FactorReader, load_or_train_weights, training_steps
from noisytwins_jax.metrics.features import HostFakes
from noisytwins_jax.metrics.settings import Settings

OPTIONS = {"num_classes": 3, "largest": 12, "imbalance_factor": 0.5, "reference_per_class": 20}


@pytest.fixture(scope="module")
def splits():
    return load_splits("petals_drawn", resolution=16, classifier_per_class=150, **OPTIONS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def reader(splits, cache):
    return FactorReader(*load_or_train_weights(splits.classifier, cache), splits.reference)


def test_it_is_trained_once(splits, reader, cache, monkeypatch):
    (file,) = cache.glob("factors-*.npz")

    def refuse(*arguments, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr(factor_reader, "train_regressor", refuse)
    weights, training = load_or_train_weights(splits.classifier, cache)
    classes, factors = FactorReader(weights, training, splits.reference)(splits.reference.images)
    same = reader(splits.reference.images)
    assert (classes == same[0]).all() and (factors == same[1]).all()
    assert training["images"] == 450 and training["steps"] == 140
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AssertionError, match="trained again"):  # a damaged file is no weights
        load_or_train_weights(splits.classifier, cache)


@pytest.mark.parametrize(
    ("images", "classes", "steps"),
    [(10, 2, 50), (450, 3, 140), (4000, 20, 1000), (20_000, 100, 5000), (10_000, 100, 3125)],
)
def test_more_classes_may_take_more_steps(images, classes, steps):
    assert training_steps(images, classes) == steps


def test_it_tells_collapse_from_diversity(splits, reader):
    """Real images cover the factors; one image a class, again and again, does not."""
    real = splits.reference
    once = np.stack([real.images[real.labels == c][0] for c in range(3)])
    repeated = np.repeat(once, 20, axis=0)
    groups = {"all": [0, 1, 2]}
    diverse = reader.report(real.labels, reader(real.images), groups)["metrics"]
    collapsed = reader.report(np.repeat(np.arange(3), 20), reader(repeated), groups)["metrics"]
    assert diverse["coverage"] > 4 * collapsed["coverage"]
    assert diverse["entropy"] > 0.7 and collapsed["entropy"] == 0


def test_it_stands_beside_fid(splits, reader, cache):
    train = splits.train

    def generate(labels, indices):
        chosen = [np.flatnonzero(train.labels == c)[i % 6] for c, i in zip(labels, indices, strict=True)]
        return train.images[chosen], np.ones((len(labels), 2), np.float32)

    result = evaluate_generator(
        HostFakes(generate),
        reference=splits.reference,
        extractors={"classifier": load_or_train_classifier(splits.classifier, cache)},
        class_groups={"head": [0], "tail": [2]},
        settings=Settings(samples_per_class=12),
        reader=reader,
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["metrics"]["fid"] > 0
    assert set(result["factors"]["metrics"]["factors"]) == set(train.factor_names)
    assert result["factors"]["protocol"]["n_fake"] == 36
    assert result["factors"]["groups"].keys() == {"head", "tail"}
