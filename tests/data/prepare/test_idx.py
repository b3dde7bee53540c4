"""Fashion-MNIST-LT and MNIST-LT, from files of the public format."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
from file_server import serve_public_set

from noisytwins_jax.data.prepare import idx, public_files
from noisytwins_jax.data.prepare.command import main
from noisytwins_jax.data.prepared import prepared_splits
from noisytwins_jax.utils.errors import UserError

NAMES = [f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
COUNTS = [200, 150, 100, *[60] * 7]  # training images of each class in the small files


def small_files(seed=0):
    """Contents by name: the training images have the class's number in their first pixel."""
    rng = np.random.default_rng(seed)
    files = {}
    for split, counts in (("train", COUNTS), ("t10k", [3] * 10)):
        labels = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), counts))
        images = rng.integers(0, 256, (len(labels), 28, 28), np.uint8)
        images[:, 0, 0] = labels
        files[f"{split}-images-idx3-ubyte"] = struct.pack(">4I", 2051, len(images), 28, 28) + images.tobytes()
        files[f"{split}-labels-idx1-ubyte"] = struct.pack(">2I", 2049, len(labels)) + labels.tobytes()
    return files


def write(folder, files, packed=True):
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder of small files that are taken for the public ones."""
    files = small_files()
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    known = idx.FASHION_MNIST._replace(sha256=hashes, train_counts=COUNTS)
    public = public_files.PUBLIC_SETS["fashion_mnist_lt"]._replace(installed=str(tmp_path / "installed"))
    monkeypatch.setitem(public_files.PUBLIC_SETS, "fashion_mnist_lt", public)
    monkeypatch.setattr(idx, "FASHION_MNIST", known)
    monkeypatch.setattr(idx, "_LARGEST", 200)
    monkeypatch.setattr(idx, "_GAMO", np.arange(11, 1, -1))
    idx.read_images.cache_clear()
    return write(tmp_path / "source", files)


def test_published_counts():
    """Of both sets and profiles, from the numbers of images in the public files."""
    fashion = [6000, 3596, 2156, 1292, 774, 464, 278, 166, 100, 60]
    assert idx._train_counts(idx.FASHION_MNIST, 0.01, "exponential").tolist() == fashion and sum(fashion) == 14_886
    assert idx._train_counts(idx.MNIST, 0.01, "exponential").tolist() == [5923, *fashion[1:]]
    twenty = [6000, 4301, 3083, 2210, 1584, 1135, 814, 583, 418, 300]
    assert idx._train_counts(idx.FASHION_MNIST, 1 / 20, "exponential").tolist() == twenty
    gamo = [4000, 2000, 1000, 750, 500, 350, 200, 100, 60, 40]
    assert idx._train_counts(idx.MNIST, 0.01, "gamo").tolist() == gamo and sum(gamo) == 9000


@pytest.mark.parametrize("packed", [True, False])
def test_splits_and_images(source, tmp_path, packed):
    folder = source if packed else write(tmp_path / "unpacked", small_files(), packed=False)
    given = folder if packed else folder / NAMES[2]  # or one of the files
    listing = idx.fashion_mnist_lt(given, imbalance_factor=0.1)
    expected = [200, 150, 100, 60, 60, 55, 43, 33, 25, 20]  # at most what there is
    assert np.bincount([item.label for item in listing.splits["train"]]).tolist() == expected
    assert [len(listing.splits[name]) for name in ("reference", "classifier")] == [30, 870]
    for split in listing.splits.values():
        assert len({item.name for item in split}) == len(split)
        for item in split[::7]:
            image = listing.read(item)
            assert image.shape == (32, 32) and image.dtype == np.uint8
            assert image[2, 2] == item.label and not image[:2].any() and not image[:, 30:].any()


def test_choice_is_seeded_and_nested(source):
    def names(**options):
        return {item.name for item in idx.fashion_mnist_lt(source, **options).splits["train"]}

    assert names(seed=1) == names(seed=1) != names(seed=2)
    assert names(imbalance_factor=0.05) < names(imbalance_factor=0.5)
    assert len(names(profile="gamo")) == sum(range(2, 12))


def test_prepared_by_the_command_where_a_package_installs_it(source, tmp_path, capsys):
    source.rename(tmp_path / "installed")
    main(["fashion_mnist_lt", f"--data_dir={tmp_path / 'data'}", "--jobs=1"])
    assert "Ankle boot" in capsys.readouterr().out
    splits = prepared_splits("fashion_mnist_lt", resolution=32, directory=str(tmp_path / "data"))
    assert splits.train.channels == 1 and splits.train.class_counts[0] == 200
    assert (len(splits.reference), len(splits.classifier)) == (30, 870)
    image = splits.reference[0]["image"]
    assert image.shape == (32, 32, 1) and image[2, 2, 0] == splits.reference[0]["label"]


@pytest.mark.parametrize("dataset", ["fashion_mnist_lt", "mnist_lt"])
def test_downloaded_by_the_command_elsewhere(source, tmp_path, monkeypatch, dataset):
    monkeypatch.setattr(idx, "MNIST", idx.MNIST._replace(train_counts=COUNTS))
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    with serve_public_set(monkeypatch, dataset, files) as server:
        main([dataset, f"--data_dir={tmp_path / 'data'}", "--jobs=1"])
        assert len(server.requests) == 4
    assert prepared_splits(dataset, resolution=32, directory=str(tmp_path / "data")).train.class_counts[0] == 200
    assert len(list((tmp_path / "data/downloads" / dataset.removesuffix("_lt")).glob("*.gz"))) == 4


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (NAMES[0], lambda data: struct.pack(">I", 2049) + data[4:], "no IDX file of images"),
        (NAMES[0], lambda data: data[:-100], "damaged or cut off"),
        (
            NAMES[0],
            lambda data: data[:4] + struct.pack(">I", 869) + data[8:-784],
            "869 images, but there are 870 labels",
        ),
        (NAMES[0], lambda data: data[:-1] + bytes([data[-1] ^ 1]), "another SHA-256"),
        (NAMES[1], lambda data: data[:-1] + bytes([10]), "has label 10"),
        (NAMES[1], lambda data: data[:8] + bytes(len(data) - 8), "is not of Fashion-MNIST"),
        (NAMES[2], lambda data: b"", "less than a header"),
    ],
)
def test_other_files_are_refused(source, tmp_path, name, change, message):
    files = small_files()
    other = write(tmp_path / "other", files | {name: change(files[name])})
    with pytest.raises(UserError, match=message):
        idx.fashion_mnist_lt(other)


def test_one_set_given_as_the_other(source):
    with pytest.raises(UserError, match=r"is not of MNIST \(these are of Fashion-MNIST\)"):
        idx.mnist_lt(source)


def test_missing_files_and_bad_options(source, tmp_path):
    (source / f"{NAMES[3]}.gz").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"lacks t10k-labels-idx1-ubyte\.gz.*Debian's package dataset-fashion-mnist"):
        idx.fashion_mnist_lt(source)
    (tmp_path / "elsewhere").rename(source / f"{NAMES[3]}.gz")
    with pytest.raises(UserError, match="exponential or gamo"):
        idx.fashion_mnist_lt(source, profile="step")
    with pytest.raises(UserError, match="counts of gamo are fixed"):
        idx.fashion_mnist_lt(source, imbalance_factor=0.5, profile="gamo")
    (source / f"{NAMES[0]}.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot be read"):
        idx.fashion_mnist_lt(source)
