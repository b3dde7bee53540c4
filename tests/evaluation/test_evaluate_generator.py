import json

import numpy as np
import pytest
from extracting import features_of

from noisytwins_jax.data.source import ArraySource
from noisytwins_jax.evaluation import generated_features, scores
from noisytwins_jax.evaluation.evaluate_generator import evaluate_generator
from noisytwins_jax.metrics.features import HostFakes
from noisytwins_jax.metrics.frechet import frechet_distance
from noisytwins_jax.metrics.neighbours import neighbour_metrics
from noisytwins_jax.metrics.resumable_chunks import ResumableCache
from noisytwins_jax.metrics.settings import Settings
from noisytwins_jax.utils.errors import UserError

GROUPS = {"head": np.arange(3), "medium": np.arange(3, 7), "tail": np.arange(7, 10)}
N = 60


def real_images(reference, labels, indices):
    """A generator that is as good as it gets: real images of the class, w independent of the class."""
    rows = [np.flatnonzero(reference.labels == c)[i % N] for c, i in zip(labels, indices, strict=True)]
    w = np.stack([np.random.default_rng([7, i]).normal(size=8) for i in indices])
    return reference.images[rows], w.astype(np.float32)


def collapsed(reference, labels, indices):
    """One image a class, one w a class."""
    rows = [np.flatnonzero(reference.labels == c)[0] for c in labels]
    return reference.images[rows], np.eye(10, dtype=np.float32)[labels]


def confused(reference, labels, indices):
    """Perfect images, but of the next class."""
    return real_images(reference, (labels + 1) % 10, indices)


@pytest.fixture(scope="module")
def evaluate(digits, digits_extractor):
    def run(generator, settings=None, **options):
        options = {"reference": digits.reference, "class_groups": GROUPS} | options
        options.setdefault("extractors", {"classifier": digits_extractor})
        fakes = HostFakes(lambda labels, indices: generator(options["reference"], labels, indices))
        return evaluate_generator(fakes, settings=Settings(**{"samples_per_class": N} | (settings or {})), **options)

    return run


@pytest.fixture(scope="module")
def results(evaluate, digits):
    counts = digits.train.class_counts
    return {f.__name__: evaluate(f, train_counts=counts) for f in (real_images, collapsed, confused)}


def test_metrics_are_those_of_the_functions_on_the_same_features(results, digits, digits_extractor):
    reference, result = digits.reference, results["real_images"]
    labels = np.repeat(np.arange(10), N)
    fake, logits = features_of(digits_extractor, real_images(reference, labels, np.arange(10 * N))[0])
    real, _ = features_of(digits_extractor, reference.images)
    metrics = result["metrics"]
    assert metrics["fid"] == pytest.approx(frechet_distance(real, fake), rel=1e-6)
    pooled = neighbour_metrics(real=real, fake=fake, k=5)
    for key in ("precision", "recall", "density", "coverage"):
        assert metrics[key] == pytest.approx(getattr(pooled, key))
    ifids, recalls = [], []
    for c in range(10):
        pair = real[reference.labels == c], fake[labels == c]
        ifids.append(frechet_distance(*pair))
        recalls.append(neighbour_metrics(real=pair[0], fake=pair[1], k=5).recall)
        row = result["per_class"][c]
        assert row["ifid"] == pytest.approx(ifids[c], rel=1e-6) and row["recall"] == pytest.approx(recalls[c])
        assert row["class_accuracy"] == pytest.approx((logits[labels == c].argmax(1) == c).mean())
    assert metrics["ifid"] == pytest.approx(np.mean(ifids)) and metrics["ifid_std"] == pytest.approx(np.std(ifids))
    assert metrics["ifid_median"] == pytest.approx(np.median(ifids)) and metrics["ifid_classes_used"] == 10
    assert metrics["tail_ifid"] == pytest.approx(np.mean(ifids[7:]))
    assert metrics["tail_recall"] == pytest.approx(np.mean(recalls[7:]))
    assert metrics["class_recall"] == pytest.approx(np.mean(recalls))
    tail = np.isin(reference.labels, GROUPS["tail"]), np.isin(labels, GROUPS["tail"])
    assert metrics["tail_fid"] == pytest.approx(frechet_distance(real[tail[0]], fake[tail[1]]), rel=1e-6)


def test_each_metric_sees_the_failure_it_is_there_for(results):
    real, flat, wrong = (results[name]["metrics"] for name in ("real_images", "collapsed", "confused"))
    assert real["recall"] > 0.8 and flat["recall"] < 0.05 and flat["tail_recall"] < 0.05
    assert real["w_ratio"] > 0.95 and flat["w_ratio"] < 1e-6 and flat["tail_w_ratio"] < 1e-6
    assert real["class_accuracy"] > 0.97 and flat["class_accuracy"] >= 0.9 and wrong["class_accuracy"] < 0.05
    assert flat["ifid"] > 5 * real["ifid"]
    # Class confusion: nothing that is pooled over classes can see it, everything within the class does.
    assert wrong["fid"] == pytest.approx(real["fid"], abs=0.05) and wrong["precision"] > 0.9
    assert wrong["ifid"] > 10 * real["ifid"] and wrong["tail_precision"] < 0.2
    half = results["real_images"]["real_vs_real"]
    assert 0.9 < half["recall"] <= 1 and 0.9 < half["precision"] <= 1 and half["n_per_half"] > 880
    assert half["ifid"] < flat["ifid"] and half["tail_recall"] > 0.85


def test_rows_and_protocol_say_what_was_compared(results, digits, digits_extractor):
    result = results["real_images"]
    row = result["per_class"][8]
    assert row["class"] == 8 and row["name"] == "8" and row["group"] == "tail" and row["n_fake"] == N
    assert row["n_train"] == digits.train.class_counts[8] and row["n_real"] == (digits.reference.labels == 8).sum()
    protocol = result["protocol"]
    expected = {"n_real": 1797, "n_fake": 600, "n_fake_per_class": N, "k": 5, "seed": 0, "weights": "ema"}
    expected |= {"inclusive": False, "class_noise": False, "feature_dim": 64, "warnings": []}
    expected |= {"extractor": digits_extractor.name, "extractor_sha256": digits_extractor.sha256}
    assert {key: protocol[key] for key in expected} == expected
    assert protocol["reference_fingerprint"] == digits.reference.fingerprint
    assert protocol["class_groups"]["tail"] == [7, 8, 9] and "pooled" in protocol["headline"]
    assert protocol["extractor_description"]["held_out_accuracy"] > 0.9


def test_every_global_index_is_generated_once(evaluate, digits, monkeypatch):
    monkeypatch.setattr(generated_features, "_PART", 250)
    seen, sizes = [], []

    def generate(reference, labels, indices):
        assert labels.dtype == np.int32 and indices.dtype == np.int64 and labels.shape == indices.shape
        seen.extend(zip(labels.tolist(), indices.tolist(), strict=True))
        sizes.append(len(labels))
        return real_images(digits.reference, labels, indices)

    evaluate(generate)
    assert seen == [(i // N, i) for i in range(10 * N)]
    assert sizes == [5 * N, 5 * N]


@pytest.mark.parametrize(("pooled_images", "times"), [(50_000, 2), (150, 3)])
def test_pooled_numbers_of_one_class_are_those_of_the_class(
    evaluate, digits, digits_extractor, monkeypatch, pooled_images, times
):
    """They are computed once, and once for real against real, unless fewer images are pooled than there are."""
    images, count = digits.reference.images, 200
    reference = ArraySource(images, np.zeros(len(images), np.int32), ["all"], "digits")
    calls = []
    monkeypatch.setattr(
        scores, "neighbour_metrics", lambda **arrays: calls.append(arrays) or neighbour_metrics(**arrays)
    )
    result = evaluate(
        lambda reference, labels, indices: (images[indices], np.zeros((len(indices), 0), np.float32)),
        {"samples_per_class": count, "pooled_images": pooled_images},
        reference=reference,
        class_groups={},
    )
    assert len(calls) == times
    metrics, (row,), half = result["metrics"], result["per_class"], result["real_vs_real"]
    pooled = min(count, pooled_images)
    real, fake = (features_of(digits_extractor, some)[0] for some in (images, images[:pooled]))
    assert metrics["fid"] == pytest.approx(frechet_distance(real, fake), rel=1e-6)
    expected = neighbour_metrics(real=real, fake=fake, k=5)._asdict()
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)
    assert ([row[key] for key in expected] == [metrics[key] for key in expected]) == (pooled == count)
    assert half["fid"] == half["ifid"] and half["class_recall"] == half["recall"] > 0.9


def test_classes_that_are_divided_among_parts_come_out_the_same(results, evaluate, digits, monkeypatch, tmp_path):
    monkeypatch.setattr(generated_features, "_PART", 25)
    monkeypatch.setattr(generated_features, "_MAX_UNDIVIDED", 30)
    again = evaluate(
        real_images, train_counts=digits.train.class_counts, resume_cache=ResumableCache(tmp_path), identity="it"
    )
    assert again == results["real_images"]
    pooled = {"settings": {"pooled_images": 95}, "train_counts": digits.train.class_counts}
    fewer = evaluate(real_images, **pooled)
    monkeypatch.undo()
    assert evaluate(real_images, **pooled) == fewer
    assert fewer["protocol"]["n_fake_pooled"] == 95 and fewer["per_class"][0]["n_fake"] == N
    assert fewer["metrics"]["ifid"] == again["metrics"]["ifid"] and fewer["metrics"]["fid"] != again["metrics"]["fid"]


def test_small_classes_are_named_left_out_or_flagged(evaluate, digits):
    counts = [170, 170, 170, 170, 170, 170, 170, 40, 3, 1]
    rows = np.concatenate([np.flatnonzero(digits.reference.labels == c)[:n] for c, n in enumerate(counts)])
    names = digits.reference.class_names
    small = ArraySource(digits.reference.images[rows], digits.reference.labels[rows], names, "small")

    def generate(reference, labels, indices):
        return real_images(digits.reference, labels, indices)

    result = evaluate(generate, reference=small, class_groups=GROUPS | {"medium": []})
    tail = result["per_class"][7:]
    assert [row["degenerate"] for row in tail] == [False, False, True]
    assert [row["recall"] is None for row in tail] == [False, True, True]
    assert result["metrics"]["tail_recall"] == tail[0]["recall"]
    assert all(row["ifid"] > 0 for row in tail) and result["metrics"]["ifid_classes_used"] == 10
    assert result["metrics"]["medium_ifid"] is None and result["metrics"]["medium_fid"] is None
    assert result["real_vs_real"]["ifid_classes_used"] == 8  # halves of two or more
    text = " ".join(result["protocol"]["warnings"])
    assert "1 of 10 classes have one real image" in text and "3 of 10 classes have no more real images" in text
    assert result["per_class"][4]["group"] is None and result["per_class"][4]["n_train"] is None
    json.dumps(result, allow_nan=False)


class _WithoutOneClass:
    """A reference whose class names run on beyond the images that it holds."""

    def __init__(self, source):
        keep = source.labels != 9
        self.images, self.labels = source.images[keep], source.labels[keep]
        self.num_classes, self.resolution, self.channels = 10, 8, 1
        self.class_names, self.fingerprint = source.class_names, "without 9"
        self.preprocessing = source.preprocessing

    def __len__(self):
        return len(self.images)

    def take(self, indices):
        return {"image": self.images[indices], "label": self.labels[indices]}


def test_class_without_real_images_has_no_ifid(evaluate, digits):
    def generate(reference, labels, indices):
        return real_images(digits.reference, labels, indices)

    result = evaluate(generate, reference=_WithoutOneClass(digits.reference))
    row, metrics = result["per_class"][9], result["metrics"]
    assert row["n_real"] == 0 and row["ifid"] is None and row["recall"] is None and row["degenerate"]
    assert metrics["ifid_classes_used"] == 9
    assert metrics["tail_ifid"] == pytest.approx(np.mean([r["ifid"] for r in result["per_class"][7:9]]))
    assert "1 of 10 classes have no real image and no iFID." in result["protocol"]["warnings"]


def test_bad_requests_are_refused_before_generating(evaluate, digits):
    def never(*_):
        pytest.fail("generated although the request is wrong")

    for options, message in (
        ({"settings": {"neighbours": N}}, f"at least {N + 1} generated images"),
        ({"settings": {"neighbours": -1}}, "k >= 1"),
        ({"settings": {"pooled_images": 19}}, "fewer than two for each of 10 classes"),
        ({"class_groups": {"tail": [9, 10]}}, r"within 0..9, got \[10\]"),
        ({"class_groups": {"head": [0, 1], "tail": [1]}}, "more than one class group"),
        ({"train_counts": [1, 2]}, "2 entries for 10 classes"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(never, **options)


def test_bad_generators_are_refused(evaluate):
    def diverged(reference, labels, indices):
        images, w = real_images(reference, labels, indices)
        return images, w * np.nan

    def wrong_size(reference, labels, indices):
        return np.zeros((len(labels), 16, 16, 1), np.uint8), np.zeros((len(labels), 4))

    with pytest.raises(UserError, match="diverged"):
        evaluate(diverged)
    with pytest.raises(UserError, match=r"call for uint8 \(8, 8, 1\)"):
        evaluate(wrong_size)


def test_results_are_json(results):
    text = json.dumps(results["collapsed"], allow_nan=False)
    assert json.loads(text) == results["collapsed"]
