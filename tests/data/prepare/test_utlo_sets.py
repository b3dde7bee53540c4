"""Flowers-LT and AnimalFaces-LT from files in the public formats: order of classes, counts, and what does not fit."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from noisytwins_jax.data.prepare.utlo_sets import animal_faces_lt, flowers_lt
from noisytwins_jax.utils.errors import UserError


def jpeg(value: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (6, 5), (value % 256, value // 256, 0)).save(data, "JPEG")
    return data.getvalue()


def flower_labels(largest: int = 258) -> np.ndarray:
    """Public classes, 1 to 102: sizes from 40 to `largest`, as the public ones are."""
    sizes = np.random.default_rng(0).permutation(np.linspace(40, largest, 102).round().astype(int))
    return np.random.default_rng(1).permutation(np.repeat(np.arange(1, 103), sizes))


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """The archive and the labels as they are published."""
    folder, labels = tmp_path_factory.mktemp("flowers"), flower_labels()
    content = jpeg(7)
    with tarfile.open(folder / "102flowers.tgz", "w:gz") as tar:
        for number in range(1, len(labels) + 1):
            info = tarfile.TarInfo(f"jpg/image_{number:05d}.jpg")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    return folder, labels


def test_flowers(flowers, tmp_path):
    folder, labels = flowers
    listing = flowers_lt(folder, tmp_path)
    sizes = np.bincount(labels - 1)
    train, full = ([item.label for item in listing.splits[split]] for split in ("train", "full"))
    counts, all_counts = (np.bincount(x, minlength=102) for x in (train, full))
    assert all_counts.tolist() == sorted(sizes, reverse=True) and len(full) == len(labels)
    published = [int(258 * 0.01 ** (i / 101)) for i in range(102)]
    np.testing.assert_array_equal(counts, np.minimum(published, all_counts))
    assert counts[[0, 50, 99, 100, 101]].tolist() == [258, 26, 2, 2, 2]
    assert listing.few_classes == tuple(range(50, 102))
    for item in listing.splits["train"][::50]:  # a class keeps its images and its public name
        assert listing.class_names[item.label] == f"flower {labels[int(item.name[6:11]) - 1]}"
    again = flowers_lt(folder / "102flowers.tgz", tmp_path)
    assert again.splits == listing.splits
    assert flowers_lt(folder, tmp_path, seed=1).splits["train"] != listing.splits["train"]


def test_of_equal_classes_the_later_comes_first(tmp_path):
    labels = np.repeat(np.arange(1, 103), 3)
    (tmp_path / "jpg").mkdir()
    for number in range(1, len(labels) + 1):
        (tmp_path / "jpg" / f"image_{number:05d}.jpg").write_bytes(jpeg(number))
    scipy.io.savemat(tmp_path / "imagelabels.mat", {"labels": labels})
    listing = flowers_lt(tmp_path, tmp_path, imbalance_factor=1.0)
    assert listing.class_names[:2] == ["flower 102", "flower 101"] and listing.class_names[-1] == "flower 1"
    item = listing.splits["train"][0]
    assert np.asarray(Image.open(io.BytesIO(listing.read(item)))).shape == (5, 6, 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (b"no matrix", "is no MATLAB file"),
        ({"classes": np.arange(1, 103)}, "has no classes 1 to 102 of images"),
        ({"labels": np.arange(0, 102)}, "has no classes 1 to 102 of images"),
        ({"labels": np.arange(1, 103)}, "has the classes of 102 images"),
        (None, "lacks imagelabels.mat"),
    ],
)
def test_labels_that_do_not_fit(flowers, tmp_path, labels, message):
    archive = tmp_path / "102flowers.tgz"
    archive.symlink_to(flowers[0] / "102flowers.tgz")
    if isinstance(labels, dict):
        scipy.io.savemat(tmp_path / "imagelabels.mat", labels)
    elif labels is not None:
        (tmp_path / "imagelabels.mat").write_bytes(labels)
    with pytest.raises(UserError, match=message) as error:
        flowers_lt(tmp_path, tmp_path / "unpacked")
    assert "\n" not in str(error.value)


def test_animal_faces(tmp_path):
    sizes = np.random.default_rng(2).permutation(np.linspace(100, 389, 20).round().astype(int))
    with zipfile.ZipFile(tmp_path / "AnimalFace.zip", "w") as archive:
        for c, size in enumerate(sizes):
            for i in range(size):
                archive.writestr(f"Image/Animal{c:02d}/{i:03d}.jpg", b"-")
        archive.writestr("Image/Natural/0.jpg", b"-")
    listing = animal_faces_lt(tmp_path / "AnimalFace.zip", tmp_path)
    counts, full = (
        np.bincount([item.label for item in listing.splits[split]], minlength=20) for split in ("train", "full")
    )
    assert full.tolist() == sorted(sizes, reverse=True)
    published = [389, 328, 277, 234, 197, 166, 140, 118, 100, 84, 71, 60, 50, 42, 36, 30, 25, 21, 18, 15]
    np.testing.assert_array_equal(counts, np.minimum(published, full))
    assert listing.few_classes == tuple(range(10, 20)) and not len(listing.problems)
    assert listing.class_names[0] == f"Animal{np.argmax(sizes):02d}"
