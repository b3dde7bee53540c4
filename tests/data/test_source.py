import hashlib

import numpy as np
import pytest

from noisytwins_jax.data.source import ArraySource, DataSplits, check_resolution, read_images
from noisytwins_jax.utils.errors import UserError


def make_source(**changes) -> ArraySource:
    rng = np.random.default_rng(0)
    arguments = {
        "images": rng.integers(0, 256, (6, 8, 8, 3), np.uint8),
        "labels": np.array([0, 1, 2, 0, 1, 0]),
        "class_names": ["ant", "bee", "cat"],
        "name": "animals",
    }
    return ArraySource(**(arguments | changes))


def test_attributes_and_records():
    images = np.random.default_rng(1).integers(0, 256, (6, 16, 16, 1), np.uint8)
    source = make_source(images=images)
    assert (len(source), source.num_classes, source.resolution, source.channels) == (6, 3, 16, 1)
    assert source.class_names == ("ant", "bee", "cat")
    assert source.class_counts.tolist() == [3, 2, 1]
    assert source.labels.dtype == np.int32
    record = source[4]
    np.testing.assert_array_equal(record["image"], images[4])
    assert record["label"] == 1 and record["label"].dtype == np.int32


def test_source_cannot_be_changed_through_its_records():
    source = make_source()
    for array in (source[0]["image"], source.images, source.labels, source.class_counts):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    taken = source.take(np.array([0, 0]))
    before = source[0]["image"].copy()
    taken["image"][:] = 0
    np.testing.assert_array_equal(source[0]["image"], before)


def test_the_callers_array_stays_writable():
    images = np.zeros((6, 8, 8, 3), np.uint8)
    make_source(images=images)
    images[0] = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((6, 8, 8, 3), np.float32)}, "animals must be uint8.*float32"),
        ({"images": np.zeros((6, 3, 8, 8), np.uint8)}, "channels last"),
        ({"images": np.zeros((6, 8, 16, 3), np.uint8)}, "squares"),
        ({"images": np.zeros((6, 8, 8, 4), np.uint8)}, "1 or 3 channels"),
        ({"images": np.zeros((6, 8, 8), np.uint8)}, r"\[6, 8, 8\]"),
        ({"images": np.zeros((6, 12, 12, 3), np.uint8)}, "power of two.*12"),
        ({"images": np.zeros((5, 8, 8, 3), np.uint8)}, "5 images but labels"),
        ({"labels": np.array([0, 1, 3, 0, 1, 0])}, "class 3, outside"),
        ({"class_names": ["ant", "bee", "cat", "dog"]}, "no images of class 3"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8), "labels": np.zeros(0, np.int32)}, "no images"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(UserError, match=message):
        make_source(**changes)


def test_fingerprint_names_the_data():
    source = make_source()
    images, labels = source.images, source.labels
    expected = hashlib.sha256(b"(6, 8, 8, 3)" + images.tobytes() + labels.tobytes()).hexdigest()
    assert source.fingerprint == expected
    assert make_source(labels=labels.astype(np.uint8), name="other").fingerprint == expected
    changed = images.copy()
    changed[5, 7, 7, 2] ^= 1
    assert make_source(images=changed).fingerprint != expected
    assert make_source(labels=np.array([0, 1, 2, 0, 0, 1])).fingerprint != expected
    strided = np.ascontiguousarray(images[:, :, ::-1])[:, :, ::-1]
    assert make_source(images=strided).fingerprint == expected


class OneByOne:
    """A source as one on disk is: without ``take``."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source[index]


def test_read_images_is_the_same_with_and_without_take():
    source = make_source()
    indices = np.array([5, 2, 2, 0])
    batch = read_images(source, indices)
    np.testing.assert_array_equal(batch["image"], source.images[indices])
    assert batch["label"].tolist() == [0, 2, 2, 0]
    slow = read_images(OneByOne(source), indices)
    for key in batch:
        np.testing.assert_array_equal(slow[key], batch[key])
        assert slow[key].dtype == batch[key].dtype


@pytest.mark.parametrize("field", ["reference", "classifier"])
def test_splits_must_agree(field):
    source = make_source()
    sets = {"train": source, "reference": source, "classifier": source}
    assert DataSplits(**sets).train is source
    with pytest.raises(UserError, match=f"{field} set and the training set differ in resolution"):
        DataSplits(**(sets | {field: make_source(images=np.zeros((6, 16, 16, 3), np.uint8))}))
    with pytest.raises(UserError, match="differ in class_names"):
        DataSplits(**(sets | {field: make_source(class_names=["a", "b", "c"])}))


def test_check_resolution():
    for good in (8, 64, 1024):
        check_resolution(good)
    for bad in (0, -8, 4, 48, 100):
        with pytest.raises(UserError, match=f"it is {bad};"):
            check_resolution(bad)
    check_resolution(64, largest=64)
    with pytest.raises(UserError, match="at most 64, but it is 128"):
        check_resolution(128, largest=64)
