import json
import re

import numpy as np
import pytest
from extracting import features_of

from noisytwins_jax.data.source import ArraySource
from noisytwins_jax.metrics.extractors import classifier
from noisytwins_jax.metrics.extractors.classifier import load_or_train_classifier
from noisytwins_jax.metrics.neighbours import neighbour_metrics
from noisytwins_jax.utils.errors import UserError


@pytest.fixture(scope="module")
def small(digits):
    """Sixty images of three classes, which train in a second or two."""
    rows = np.concatenate([np.flatnonzero(digits.reference.labels == c)[:20] for c in range(3)])
    return ArraySource(digits.reference.images[rows], digits.reference.labels[rows], ("0", "1", "2"), "small")


@pytest.fixture(scope="module")
def small_cache(small, tmp_path_factory):
    """A cache folder that holds the small set's extractor, the extractor, and its file."""
    folder = tmp_path_factory.mktemp("small")
    extractor = load_or_train_classifier(small, folder)
    (file,) = folder.iterdir()  # and no temporary file is left behind
    return folder, extractor, file


def test_classifier_of_the_digits_is_good_and_its_features_keep_the_diversity(digits, digits_extractor):
    description = digits_extractor.description
    assert description["held_out_accuracy"] >= 0.97
    assert description["held_out_images"] == 176 and description["trained_images"] == 1797 - 176
    features, logits = features_of(digits_extractor, digits.reference.images)
    labels = digits.reference.labels
    assert features.shape == (1797, 64) and logits.shape == (1797, 10)
    assert features.dtype == logits.dtype == np.float32
    assert (logits.argmax(1) == labels).mean() > 0.98
    within = np.mean([features[labels == c].var(axis=0).sum() for c in range(10)]) / features.var(axis=0).sum()
    assert 0.2 < within < 0.6  # classes separate without shrinking to points
    assert features.var(axis=0).mean() == pytest.approx(1.0, abs=0.05)
    halves = np.random.default_rng(0).permutation(1797)
    values = neighbour_metrics(real=features[halves[:898]], fake=features[halves[898:]], k=5)
    assert 0.9 < values.recall < 0.99


def test_scaling_the_features_leaves_the_logits_alone(digits_extractor, digits):
    images = digits.reference.images[:50]
    features, logits = features_of(digits_extractor, images)
    scaled = classifier._scale_features(digits_extractor.variables, images, 10)
    new_features, new_logits = classifier._predict(scaled, images, 10)
    np.testing.assert_allclose(new_logits, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(new_features, features / np.sqrt(features.var(axis=0).mean()), rtol=1e-4, atol=1e-4)


def test_features_do_not_depend_on_the_batch(digits, digits_extractor):
    images = digits.reference.images[:300]
    whole_set = features_of(digits_extractor, images)
    for start, stop in ((0, 1), (7, 263), (256, 300), (299, 300)):
        for part, whole in zip(features_of(digits_extractor, images[start:stop]), whole_set, strict=True):
            np.testing.assert_allclose(part, whole[start:stop], rtol=1e-5, atol=1e-5)
    assert features_of(digits_extractor, images[:0])[0].shape == (0, 64)


def test_wrong_images_are_refused(digits_extractor):
    for images in (np.zeros((2, 16, 16, 1), np.uint8), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 1))):
        with pytest.raises(UserError, match=re.escape("uint8 images of shape [n, 8, 8, 1]")):
            features_of(digits_extractor, images)


def test_patches_make_a_convolution():
    import jax

    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 8, 8, 3)).astype(np.float32), rng.normal(size=(3, 3, 3, 5)).astype(np.float32)
    for stride in (1, 2):
        expected = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
        got = classifier._patches(x, stride) @ kernel.reshape(27, 5)
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_cache_is_read_back_exactly(small, small_cache, monkeypatch):
    folder, extractor, _ = small_cache
    monkeypatch.setattr(classifier, "_train", lambda *a: pytest.fail("trained although it is cached"))
    again = load_or_train_classifier(small, folder)
    assert again.sha256 == extractor.sha256 and again.name == extractor.name
    assert json.loads(json.dumps(extractor.description)) == again.description == extractor.description
    for first, second in zip(features_of(extractor, small.images), features_of(again, small.images), strict=True):
        np.testing.assert_array_equal(first, second)


def test_training_is_deterministic_by_seed(small, small_cache):
    again, _ = classifier._train(small, 0)
    other, _ = classifier._train(small, 1)
    sha256 = [classifier.weights_sha256(params) for params in (again, other)]
    assert sha256[0] == small_cache[1].sha256 != sha256[1]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_damaged_cache_is_trained_again(small, small_cache, tmp_path, capsys, damage, monkeypatch):
    content = bytearray(small_cache[2].read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    content = {"truncated": content[: len(content) // 3], "empty": b"", "text": b"not a zip file"}.get(damage, content)
    (tmp_path / small_cache[2].name).write_bytes(content)
    params = small_cache[1].variables
    report = {
        key: small_cache[1].description[key] for key in ("trained_images", "held_out_images", "held_out_accuracy")
    }
    monkeypatch.setattr(classifier, "_train", lambda *a: (params, report))
    assert load_or_train_classifier(small, tmp_path).sha256 == small_cache[1].sha256
    assert "is damaged; training it again" in capsys.readouterr().out
    load_or_train_classifier(small, tmp_path)
    assert "damaged" not in capsys.readouterr().out  # the file was replaced


def test_cache_key_covers_data_seed_and_recipe(small, small_cache, tmp_path, monkeypatch):
    _, extractor, file = small_cache
    trained = []
    report = {"trained_images": 54, "held_out_images": 6, "held_out_accuracy": 1.0}
    monkeypatch.setattr(classifier, "_train", lambda *a: trained.append(a) or (extractor.variables, report))
    (tmp_path / file.name).write_bytes(file.read_bytes())
    load_or_train_classifier(small, tmp_path)
    assert not trained
    load_or_train_classifier(small, tmp_path, seed=1)
    assert len(trained) == 1
    changed = small.images.copy()
    changed[0, 0, 0, 0] ^= 1
    load_or_train_classifier(ArraySource(changed, small.labels, small.class_names, "changed"), tmp_path)
    assert len(trained) == 2
    monkeypatch.setitem(classifier.RECIPE, "epochs", 41)
    load_or_train_classifier(small, tmp_path)
    assert len(trained) == 3 and len(list(tmp_path.iterdir())) == 4


def test_unwritable_cache_is_a_user_error(small, small_cache, tmp_path, monkeypatch):
    report = {"trained_images": 54, "held_out_images": 6, "held_out_accuracy": 1.0}
    monkeypatch.setattr(classifier, "_train", lambda *a: (small_cache[1].variables, report))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose a cache folder"):
        load_or_train_classifier(small, tmp_path / "file" / "cache")


def test_classes_too_small_to_hold_out_from(small, capsys):
    rows = np.concatenate([np.flatnonzero(small.labels == c)[:5] for c in range(3)])
    tiny = ArraySource(small.images[rows], small.labels[rows], small.class_names, "tiny")
    _, report = classifier._train(tiny, 0)
    assert report["held_out_images"] == 0 and report["held_out_accuracy"] is None and report["trained_images"] == 15
