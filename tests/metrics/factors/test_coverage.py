import json
import re
import warnings

import jax
import numpy as np
import pytest

from noisytwins_jax.data.source import ArraySource
from noisytwins_jax.metrics.factors import coverage as module
from noisytwins_jax.metrics.factors import network as factor_network
from noisytwins_jax.metrics.factors.coverage import factor_metrics, factor_report, held_out_quality
from noisytwins_jax.metrics.factors.network import FactorNetwork, Predictions, predict, train_regressor
from noisytwins_jax.utils.errors import UserError

NAMES = ("x", "y", "size")
COLOURS = np.array([[255, 40, 40], [40, 255, 40], [40, 40, 255], [255, 255, 40]], np.float32)
CLASSES, SIZE, TRAIN, STEPS = len(COLOURS), 8, 600, 150
GROUPS = {"head": [0, 1], "tail": np.array([2, 3])}


def blobs(labels, factors, seed, size=SIZE):
    """Draw noisy discs on a dark background: the colour is the class, position and radius are the factors."""
    x, y = np.meshgrid(*[np.linspace(0, 1, size)] * 2)
    centre, radius = 0.25 + 0.5 * factors[:, :2], 0.1 + 0.12 * factors[:, 2]
    distance = np.hypot(x - centre[:, 0, None, None], y - centre[:, 1, None, None])
    disc = np.clip((radius[:, None, None] - distance) * size / 2 + 0.5, 0, 1)[..., None]
    noise = np.random.default_rng(seed).normal(0, 6, (len(labels), size, size, 1))
    return np.clip(30 + disc * (COLOURS[labels][:, None, None] - 30) + noise, 0, 255).astype(np.uint8)


def sample(n, seed):
    """Return images of balanced labels and uniform factors, the labels and the factors."""
    labels = np.arange(n) % CLASSES
    factors = np.random.default_rng(seed).uniform(size=(n, len(NAMES))).astype(np.float32)
    return blobs(labels, factors, seed), labels, factors


@pytest.fixture(scope="module")
def train():
    return sample(TRAIN, seed=0)


@pytest.fixture(scope="module")
def held_out():
    return sample(400, seed=1)


@pytest.fixture(scope="module")
def params(train):
    return train_regressor(*train, CLASSES, seed=0, steps=STEPS, batch_size=32)


@pytest.fixture(scope="module")
def report(params, held_out):
    """A function that builds the report of a generator with these labels and images."""
    images, labels, factors = held_out
    real = predict(params, images, CLASSES)

    def of(fake_labels, fake_images):
        return factor_report(
            params,
            fake_labels=fake_labels,
            fake=predict(params, fake_images, CLASSES),
            held_out_labels=labels,
            held_out_factors=factors,
            held_out=real,
            factor_names=NAMES,
            num_classes=CLASSES,
            training={"images": TRAIN, "steps": STEPS, "seed": 0},
            class_groups=GROUPS,
        )

    return of


def test_the_regressor_generalises_to_held_out_images(params, held_out):
    images, labels, factors = held_out
    predictions = predict(params, images, CLASSES)
    assert predictions.classes.dtype == np.int32 and predictions.factors.dtype == np.float32
    assert predictions.factors.min() >= 0 and predictions.factors.max() <= 1
    quality = held_out_quality(labels, factors, predictions, NAMES)
    assert quality["class_accuracy"] > 0.98
    for name in NAMES:
        assert quality["factors"][name]["r2"] > 0.8 and quality["factors"][name]["mae"] < 0.1


def test_true_images_cover_everything(report):
    images, labels, _ = sample(400, seed=2)
    result = report(labels, images)
    metrics = result["metrics"]
    assert metrics["n_classes"] == CLASSES and metrics["class_accuracy"] > 0.98
    assert metrics["coverage_ratio"] > 0.97 and metrics["entropy"] > 0.95
    assert metrics["coverage"] == pytest.approx(result["real_vs_real"]["metrics"]["coverage"], abs=0.05)
    assert result["real_vs_real"]["metrics"]["entropy"] == pytest.approx(metrics["entropy"], abs=0.03)
    assert result["warnings"] == []


def test_a_collapsed_generator_covers_a_bin(report):
    """Each class is one image, up to noise."""
    labels = np.arange(400) % CLASSES
    values = np.array([[0.25, 0.75, 0.45], [0.85, 0.35, 0.15], [0.55, 0.45, 0.65], [0.15, 0.15, 0.85]])
    metrics = report(labels, blobs(labels, values[labels], seed=3))["metrics"]
    assert metrics["class_accuracy"] > 0.98
    for key in NAMES:
        assert 0.1 <= metrics["factors"][key]["coverage"] <= 0.3
        assert metrics["factors"][key]["entropy"] < 0.3
    assert metrics["coverage_ratio"] < 0.25


def test_one_narrow_factor_shows_in_that_factor_alone(report):
    labels = np.arange(400) % CLASSES
    factors = np.random.default_rng(4).uniform(size=(400, 3))
    factors[:, 0] = 0.4 + 0.1 * factors[:, 0]
    metrics = report(labels, blobs(labels, factors, seed=4))["metrics"]["factors"]
    assert metrics["x"]["entropy"] < 0.6 and metrics["x"]["coverage"] <= 0.5
    assert min(metrics[name]["entropy"] for name in ("y", "size")) > 0.95


def test_images_of_other_classes_lower_the_class_accuracy(report):
    images, labels, _ = sample(400, seed=5)
    requested = labels.copy()
    requested[labels == 3] = 2  # half of the images of class 2 resemble class 3
    result = report(requested, images)
    accuracy = [row["class_accuracy"] for row in result["per_class"]]
    assert accuracy[:2] == pytest.approx([1, 1], abs=0.03) and accuracy[2] == pytest.approx(0.5, abs=0.03)
    assert accuracy[3] is None and result["per_class"][3]["n"] == 0
    assert result["groups"]["head"]["class_accuracy"] == pytest.approx(np.mean(accuracy[:2]))
    assert result["groups"]["tail"]["class_accuracy"] == accuracy[2] and result["groups"]["tail"]["n_classes"] == 1
    assert result["warnings"] == ["1 of 4 classes have fewer than two generated images and no entropy."]


def test_the_report_is_json_and_records_its_protocol(report, params):
    images, labels, _ = sample(40, seed=6)
    result = report(labels, images)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result) == ["protocol", "metrics", "groups", "per_class", "real_vs_real", "warnings"]
    protocol = result["protocol"]
    assert protocol["bins"] == 10 and protocol["n_fake"] == 40 and protocol["n_held_out"] == 400
    assert protocol["training"] == {"images": TRAIN, "steps": STEPS, "seed": 0}
    assert protocol["class_groups"] == {"head": [0, 1], "tail": [2, 3]}
    assert set(protocol["held_out"]["factors"]) == set(NAMES)
    other = jax.tree.map(lambda x: x + 1, params)
    assert protocol["regressor_sha256"] == module.weights_sha256(params) != module.weights_sha256(other)
    documented = set(re.findall(r'"(\w+)"', module.__doc__))
    keys = {
        *result,
        *protocol,
        *result["metrics"],
        *result["per_class"][0],
        *result["real_vs_real"],
        *protocol["held_out"],
    }
    assert keys <= documented


def test_predictions_depend_neither_on_order_nor_on_the_batch(params, held_out):
    images, labels, _ = held_out
    whole = predict(params, images, CLASSES)
    order = np.random.default_rng(0).permutation(len(images))
    for rows in (order, order[:1], order[:65], np.arange(3, 131)):
        part = predict(params, images[rows], CLASSES)
        np.testing.assert_array_equal(part.classes, whole.classes[rows])
        np.testing.assert_array_equal(part.factors, whole.factors[rows])
    assert predict(params, images[:0], CLASSES).factors.shape == (0, 3)
    first = factor_metrics(labels, *whole, NAMES, CLASSES, groups=GROUPS)
    second = factor_metrics(labels[order], *(x[order] for x in whole), NAMES, CLASSES, groups=GROUPS)
    assert first == second


def test_a_source_is_as_good_as_an_array_and_training_is_deterministic(train, monkeypatch):
    images, labels, factors = (x[5:105] for x in train)
    source, seen = ArraySource(images, labels, tuple("rgby"), "blobs"), []
    monkeypatch.setattr(factor_network, "_IMAGES_AT_ONCE", 64)
    steps = []
    trained = [
        train_regressor(
            x, labels, factors, CLASSES, seed=s, steps=21, batch_size=32, progress=lambda *a: steps.append(a)
        )
        for x, s in ((images, 3), (source, 3), (images, 4))
    ]
    assert steps == [(20, 21), (21, 21)] * 3
    one, same, other = (jax.tree.leaves(x) for x in trained)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    for a, b in zip(predict(trained[0], images, CLASSES), predict(trained[0], source, CLASSES), strict=True):
        np.testing.assert_array_equal(a, b)
    for batch in factor_network._batches(100, 30, 7, np.random.default_rng(0)):
        assert len(batch) == 30
        seen.append(batch)
    assert len(np.unique(np.concatenate(seen[:3]))) == 90  # one pass repeats nothing
    assert set(np.concatenate(seen)) <= set(range(100)) and not np.array_equal(seen[0], seen[3])


def test_the_network_takes_every_size():
    for size, channels in ((8, 1), (16, 3), (32, 1), (256, 3)):
        model = FactorNetwork(1010, 7)
        shape = (2, size, size, channels)
        logits, factors = jax.eval_shape(
            lambda x, model=model: model.init_with_output(jax.random.key(0), x)[0], jax.ShapeDtypeStruct(shape, "f4")
        )
        assert (logits.shape, factors.shape, logits.dtype, factors.dtype) == ((2, 1010), (2, 7), "f4", "f4")


def test_metrics_are_those_of_their_formulas():
    """Class 0 fills bins 0, 0, 1 and 9; class 1 has one image; class 2 none."""
    values = np.array([[0.0], [0.05], [0.1], [1.0], [0.5]])
    result = factor_metrics([0, 0, 0, 0, 1], [0, 0, 2, 1, 1], values, ["f"], 3, groups={"a": [0, 2], "none": [2]})
    rows = result["per_class"]
    entropy = -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25)) + 2 / 8
    assert rows[0]["class_accuracy"] == 0.5 and rows[0]["n"] == 4 and rows[0]["coverage"] == pytest.approx(0.3)
    assert rows[0]["expected_coverage"] == pytest.approx(1 - 0.9**4)
    assert rows[0]["coverage_ratio"] == pytest.approx(0.3 / (1 - 0.9**4))
    assert rows[0]["entropy"] == pytest.approx(entropy / np.log(10))
    assert rows[0]["factors"]["f"] == {key: rows[0][key] for key in ("coverage", "coverage_ratio", "entropy")}
    assert rows[1]["coverage"] == pytest.approx(0.1) == rows[1]["expected_coverage"]
    assert rows[1]["class_accuracy"] == 1.0 and rows[1]["coverage_ratio"] is None and rows[1]["entropy"] is None
    assert rows[2]["n"] == 0 and rows[2]["class_accuracy"] is None and rows[2]["factors"]["f"]["coverage"] is None
    assert result["metrics"]["class_accuracy"] == 0.75 and result["metrics"]["entropy"] == rows[0]["entropy"]
    assert result["groups"]["a"] == {"n_classes": 1, **{k: v for k, v in rows[0].items() if k not in ("class", "n")}}
    assert result["groups"]["none"]["n_classes"] == 0 and result["groups"]["none"]["entropy"] is None


def test_chance_is_as_the_documentation_says():
    """Uniform samples at the sizes that the module's docstring names, and one value per class."""
    rng = np.random.default_rng(0)
    for n, ratio, entropy in ((10, 0.94, 0.88), (20, 0.96, 0.96), (50, 0.995, 0.99), (180, 1, 1)):
        labels = np.repeat(np.arange(1010), n)
        metrics = factor_metrics(labels, labels, rng.uniform(size=(len(labels), 2)), ("a", "b"), 1010)["metrics"]
        assert metrics["coverage"] == pytest.approx(metrics["expected_coverage"], abs=0.01)
        assert metrics["coverage_ratio"] == pytest.approx(ratio, abs=0.01)
        assert metrics["entropy"] == pytest.approx(entropy, abs=0.01)
        metrics = factor_metrics(labels, labels, labels[:, None] / 1010, ("a",), 1010)["metrics"]
        assert metrics["coverage"] == pytest.approx(0.1) and metrics["entropy"] == 0


def test_few_images_make_no_noise():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_each = factor_metrics(np.arange(3), np.arange(3), np.full((3, 2), 0.3), ("a", "b"), 3)
        nothing = factor_metrics(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2)), ("a", "b"), 3)
        quality = held_out_quality(np.zeros(0, int), np.zeros((0, 1)), Predictions(np.zeros(0), np.zeros((0, 1))), "a")
    assert one_each["metrics"]["class_accuracy"] == 1 and one_each["metrics"]["entropy"] is None
    assert one_each["metrics"]["coverage"] == pytest.approx(one_each["metrics"]["expected_coverage"])
    assert nothing["metrics"]["n_classes"] == 0 and nothing["metrics"]["coverage"] is None
    assert quality == {"class_accuracy": None, "factors": {"a": {"r2": None, "mae": None}}}


def test_quality_of_a_known_predictor_and_its_warnings():
    truth = np.random.default_rng(0).uniform(size=(1000, 3))
    truth[:, 2] = 0.5
    predicted = np.stack([truth[:, 0], np.full(1000, truth[:, 1].mean()), truth[:, 2]], axis=1)
    labels = np.arange(1000) % 5
    quality = held_out_quality(labels, truth, Predictions(np.zeros(1000, int), predicted), NAMES)
    assert quality["class_accuracy"] == 0.2
    assert quality["factors"]["x"] == {"r2": 1.0, "mae": 0.0}
    assert quality["factors"]["y"]["r2"] == pytest.approx(0, abs=1e-9)
    assert quality["factors"]["y"]["mae"] == pytest.approx(0.25, abs=0.01)
    assert quality["factors"]["size"]["r2"] is None
    found = module._warnings(quality, [{"n": 2}])
    assert [name for name in NAMES if any(f"factor {name}" in text for text in found)] == ["y", "size"]
    assert len(found) == 3 and "classes badly (accuracy 0.20" in found[-1]


def test_mismatched_arguments_are_refused(params, train):
    images, labels, factors = train
    refusals = {
        "uint8 images of shape": lambda: predict(params, images.astype(np.float32), CLASSES),
        "trained on images of 8 px and 3 channel(s), got 8 px and 1": lambda: predict(params, images[..., :1], CLASSES),
        "got 16 px and 3": lambda: predict(params, images.repeat(2, 1).repeat(2, 2), CLASSES),
        "knows 4 classes, not 5": lambda: predict(params, images, 5),
        "one row of factors for each image": lambda: train_regressor(images, labels, factors[:-1], CLASSES),
        "must be within 0 and 1": lambda: train_regressor(images, labels, factors + 0.5, CLASSES),
        "Labels must be within 0..2": lambda: train_regressor(images, labels, factors, 3),
        "at least 10 steps": lambda: train_regressor(images, labels, factors, CLASSES, steps=3),
        "no image to train": lambda: train_regressor(images[:0], labels[:0], factors[:0], CLASSES),
        "power of two": lambda: train_regressor(images[:, :6, :6], labels, factors, CLASSES),
        "do not fit together": lambda: factor_metrics(labels, labels[1:], factors, NAMES, CLASSES),
        "not finite": lambda: factor_metrics(labels, labels, factors * np.nan, NAMES, CLASSES),
        "got 0 to 3": lambda: factor_metrics(labels, labels, factors, NAMES, 3),
        "Class group 'g' must": lambda: factor_metrics(labels, labels, factors, NAMES, 4, groups={"g": [4]}),
        "for the same images": lambda: held_out_quality(labels, factors, Predictions(labels, factors[1:]), NAMES),
    }
    for message, call in refusals.items():
        with pytest.raises(UserError, match=re.escape(message)):
            call()
