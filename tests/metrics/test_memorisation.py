import dataclasses
import json

import numpy as np
import pytest

from noisytwins_jax.metrics import pairwise_distances
from noisytwins_jax.metrics.memorisation import QUANTILES, memorisation
from noisytwins_jax.utils.errors import UserError


def distance(a, b):
    return float(np.linalg.norm(np.subtract(a, b)))


def expected_auth_pct(train, fake, train_labels=None, fake_labels=None):
    """Compute AuthPct by its definition, over the fakes for which it is defined."""
    authentic = []
    for j, point in enumerate(fake):
        near = [i for i in range(len(train)) if train_labels is None or train_labels[i] == fake_labels[j]]
        if len(near) < 2:
            continue
        image = min(near, key=lambda i: distance(train[i], point))
        own = min(distance(train[i], train[image]) for i in near if i != image)
        authentic.append(distance(train[image], point) > own)
    return 100 * np.mean(authentic)


@pytest.fixture(params=["host", "devices"])
def data(request, monkeypatch):
    if request.param == "devices":
        monkeypatch.setattr(pairwise_distances, "_DEVICE_WORK", 0)
    rng = np.random.default_rng(0)
    train, fake, held_out = (rng.normal(size=(n, 4)).astype(np.float32) for n in (40, 60, 30))
    fake[:20] = train[rng.integers(0, 40, 20)] + 1e-3
    return train, fake, held_out, rng.integers(0, 3, 40), rng.integers(0, 3, 60)


def test_matches_the_definitions(data):
    train, fake, held_out, train_labels, fake_labels = data
    result = memorisation(
        train=train, fake=fake, held_out=held_out, train_labels=train_labels, fake_labels=fake_labels, k=3
    )
    assert result.auth_pct == pytest.approx(expected_auth_pct(train, fake))
    assert result.class_auth_pct == pytest.approx(expected_auth_pct(train, fake, train_labels, fake_labels))
    assert 0 < result.auth_pct < 67  # twenty of the sixty are copies
    for j in range(len(fake)):
        order = sorted(range(40), key=lambda i: distance(train[i], fake[j]))
        np.testing.assert_array_equal(result.indices[j], order[:3])
        np.testing.assert_allclose(result.distances[j], [distance(train[i], fake[j]) for i in order[:3]], rtol=1e-3)
        same = [i for i in order if train_labels[i] == fake_labels[j]]
        np.testing.assert_array_equal(result.class_indices[j], same[:3])
    nearest = [min(distance(x, t) for t in train) for x in held_out]
    np.testing.assert_allclose(result.held_out_distances, nearest, rtol=1e-5)


def test_summary_is_plain_numbers_and_names_copies(data):
    train, fake, held_out, *_ = data
    result = memorisation(train=train, fake=fake, held_out=held_out, k=1)
    summary = result.summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    overall = summary["overall"]
    assert (overall["n_train"], overall["n_fake"], overall["n_held_out"]) == (40, 60, 30)
    assert overall["auth_pct"] == result.auth_pct
    assert list(overall["fake_to_train"]["quantiles"]) == [str(q) for q in QUANTILES]
    assert overall["fake_to_train"]["quantiles"]["0.25"] == np.quantile(result.distances[:, 0], 0.25)
    assert overall["held_out_to_train"]["median"] == np.median(result.held_out_distances)
    assert 1 / 3 <= overall["share_nearer_than_held_out"] < 0.5
    assert "within_class" not in summary


def test_copies_are_not_authentic_and_distant_images_are():
    train = np.random.default_rng(1).normal(size=(30, 5))
    assert memorisation(train=train, fake=train.copy(), k=1).auth_pct == 0.0
    assert memorisation(train=train, fake=train + 100, k=1).auth_pct == 100.0
    assert memorisation(train=np.repeat(train, 2, axis=0), fake=train, k=1).auth_pct == 0.0  # at 0, and not farther


def test_small_classes_leave_gaps():
    """Class 0 has three training images, class 1 a single one, class 2 none."""
    train, train_labels = np.array([[0.0], [1.0], [10.0], [4.0]]), np.array([0, 0, 0, 1])
    fake, fake_labels = np.array([[0.5], [30.0], [4.5], [7.0]]), np.array([0, 0, 1, 2])
    result = memorisation(train=train, fake=fake, train_labels=train_labels, fake_labels=fake_labels, k=2)
    np.testing.assert_array_equal(result.class_indices, [[0, 1], [2, 1], [3, -1], [-1, -1]])
    np.testing.assert_array_equal(result.class_distances, [[0.5, 0.5], [20, 29], [0.5, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(result.class_train_distances, [1, 1, 9, np.nan])
    assert result.class_auth_pct == 50.0  # of the two fakes of class 0
    np.testing.assert_array_equal(result.train_distances, [1, 1, 6, 3])
    assert result.auth_pct == 25.0
    summary = result.summary()
    assert summary["within_class"]["fake_to_train"]["median"] == 0.5 and summary["within_class"]["auth_pct"] == 50.0
    overall = summary["overall"]
    assert overall["held_out_to_train"] is overall["share_nearer_than_held_out"] is overall["n_held_out"] is None


def test_one_training_image_has_no_neighbour():
    result = memorisation(train=np.zeros((1, 2)), fake=np.ones((3, 2)), train_labels=[0], fake_labels=[0, 0, 1], k=1)
    assert result.auth_pct is result.class_auth_pct is result.train_distances is None
    summary = result.summary()
    assert summary["overall"]["n_train"] == 1
    assert summary["overall"]["fake_to_train"]["median"] == pytest.approx(np.sqrt(2))
    nowhere = dataclasses.replace(result, class_distances=np.full((3, 1), np.nan)).summary()
    assert nowhere["within_class"]["fake_to_train"] is None


def test_unsuitable_sets_are_refused():
    x = np.random.default_rng(2).normal(size=(6, 2))
    for arguments, message in (
        ({"fake": x[:0]}, "no generated images"),
        ({"held_out": x[:0]}, "no held-out images"),
        ({"held_out": x[:, :1]}, "Training and held-out features have 2 and 1 dimensions"),
        ({"train": x * np.nan}, "training features hold NaN"),
        ({"k": 7}, "k from 1 to 6"),
    ):
        with pytest.raises(UserError, match=message):
            memorisation(**({"train": x, "fake": x} | arguments))
    with pytest.raises(ValueError, match="train_labels and fake_labels"):
        memorisation(train=x, fake=x, train_labels=np.zeros(6))
    with pytest.raises(ValueError, match="labels must be"):
        memorisation(train=x, fake=x, train_labels=np.zeros(5), fake_labels=np.zeros(6))
