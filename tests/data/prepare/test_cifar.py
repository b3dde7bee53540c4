import codecs
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from file_server import serve_public_set

from noisytwins_jax.data.prepare import cifar
from noisytwins_jax.data.prepare.cifar import CIFAR10, cifar10_lt, cifar100_lt, long_tailed_indices
from noisytwins_jax.data.prepare.command import main
from noisytwins_jax.data.prepared import prepared_splits
from noisytwins_jax.utils.errors import UserError

PUBLISHED = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCH = 24  # images of each of the six files


def images_and_labels(seed=3):
    """Six batches: uint8 [6, BATCH, 32, 32, 3] and [6, BATCH]; 12 training images of each class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(5 * BATCH) % 10).reshape(5, BATCH)
    labels = np.concatenate([labels, rng.integers(0, 10, (1, BATCH))]).astype(np.uint8)
    return rng.integers(0, 256, (6, BATCH, 32, 32, 3), np.uint8), labels


def contents(kind, images, labels, protocol=2):
    """Files of the binary or the Python version."""
    numbers = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    planes = images.transpose(0, 1, 4, 2, 3).reshape(6, -1, 3072)
    if kind == "binary":
        records = np.concatenate([labels[..., None], planes], axis=-1)
        files = {f"{name}.bin": batch.tobytes() for name, batch in zip(numbers, records, strict=True)}
        return files | {"batches.meta.txt": ("\n".join(NAMES) + "\n\n").encode(), "readme.html": b"text"}
    batches = [{b"data": p, b"labels": c.tolist(), b"batch_label": b"x"} for p, c in zip(planes, labels, strict=True)]
    files = {name: pickle.dumps(batch, protocol) for name, batch in zip(numbers, batches, strict=True)}
    return files | {"batches.meta": pickle.dumps({b"label_names": [n.encode() for n in NAMES]}, protocol)}


def write(folder, kind, container, files):
    """The files as they are published (tar.gz), as tar, zip or folder; returns the source."""
    top = {"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"}[kind]
    if container == "folder":
        (folder / top).mkdir(parents=True)
        for name, data in files.items():
            (folder / top / name).write_bytes(data)
        return folder / top
    path = folder / f"cifar-10-{kind}.{container}"
    if container == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(f"{top}/{name}", data)
        return path
    with tarfile.open(path, "w:gz" if container == "tar.gz" else "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def published_procedure(labels, counts, seed=0):
    """The published choice of images, with numpy's global generator."""
    np.random.seed(seed)
    kept = []
    for c, count in enumerate(counts):
        indices = np.where(labels == c)[0]
        np.random.shuffle(indices)
        kept.extend(indices[:count])
    return [int(i) for i in kept]


@pytest.mark.parametrize("seed", [0, 7])
def test_published_indices(seed):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 5000))
    indices = long_tailed_indices(CIFAR10, labels, 0.01, seed)
    assert indices.dtype == np.int64 and len(indices) == 12406
    assert np.bincount(labels[indices]).tolist() == PUBLISHED
    assert indices.tolist() == published_procedure(labels, PUBLISHED, seed)


def test_indices_of_uneven_classes_start_from_the_smallest():
    labels = np.repeat(np.arange(10), [30, 20, 30, 30, 30, 30, 30, 30, 30, 30])
    assert np.bincount(labels[long_tailed_indices(CIFAR10, labels, 1.0, 0)]).tolist() == [20] * 10


def test_indices_refuse_bad_arguments():
    labels = np.repeat(np.arange(10), 20)
    for arguments, message in [
        ((labels, 0.01, 0), "raise imbalance_factor"),
        ((labels, 2.0, 0), "at most 1"),
        ((labels, 0.5, -1), r"from 0 to 2\*\*32 - 1, but it is -1"),
        ((labels[:-20], 0.5, 0), "no training image of class 9"),
    ]:
        with pytest.raises(UserError, match=message):
            long_tailed_indices(CIFAR10, *arguments)


@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize("container", ["folder", "tar.gz", "tar", "zip"])
def test_lists_and_reads(tmp_path, kind, container):
    images, labels = images_and_labels()
    source = write(tmp_path, kind, container, contents(kind, images, labels))
    listing = cifar10_lt(source, tmp_path / "unpacked", imbalance_factor=0.5)

    counts = [int(12 * 0.5 ** (c / 9)) for c in range(10)]
    expected = published_procedure(labels[:5].reshape(-1), counts)
    assert [item.name for item in listing.splits["train"]] == [f"train/{i}" for i in expected]
    assert [item.label for item in listing.splits["train"]] == np.repeat(np.arange(10), counts).tolist()
    assert [item.name for item in listing.splits["reference"]] == [f"test/{i}" for i in range(BATCH)]
    assert [item.label for item in listing.splits["reference"]] == labels[5].tolist()
    assert list(listing.class_names) == NAMES
    assert listing.published_counts == {"reference": 10000}
    assert len(listing.problems) == 0

    read, splits = pickle.loads(pickle.dumps((listing.read, listing.splits)))
    flat = images.reshape(-1, 32, 32, 3)
    for item, index in zip(
        splits["train"] + splits["reference"], [*expected, *range(5 * BATCH, 6 * BATCH)], strict=True
    ):
        image = read(item)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, flat[index])


@pytest.mark.parametrize("protocol", range(6))
def test_reads_pickles_of_any_protocol(tmp_path, protocol):
    images, labels = images_and_labels()
    listing = cifar10_lt(
        write(tmp_path, "python", "folder", contents("python", images, labels, protocol)), tmp_path, 1.0
    )
    np.testing.assert_array_equal(listing.read(listing.splits["reference"][2]), images[5, 2])


def test_reads_pickles_of_python_2(tmp_path):
    """Byte strings of Python 2 and the module names of numpy 1, written out by hand."""
    images, labels = images_and_labels()
    planes = images.transpose(0, 1, 4, 2, 3).reshape(6, -1, 3072)
    files = contents("python", images, labels)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = planes[i].tobytes()
        files[name] = b"".join(
            [
                b"\x80\x02}(U\x04data",  # protocol 2, a dictionary, the key "data"
                b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR",
                b"(K\x01K" + bytes([BATCH]) + b"M\x00\x0c\x86",  # version and shape of the array
                b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
                b"\x89T" + len(data).to_bytes(4, "little") + data + b"tb",
                b"U\x06labels(" + b"".join(b"K" + bytes([c]) for c in labels[i]) + b"lu.",
            ]
        )
    listing = cifar10_lt(write(tmp_path, "python", "folder", files), tmp_path, 1.0)
    np.testing.assert_array_equal(listing.read(listing.splits["reference"][2]), images[5, 2])
    assert listing.splits["reference"][2].label == labels[5, 2]


def test_finds_the_version_in_a_folder(tmp_path):
    python, binary = images_and_labels(3), images_and_labels(4)
    write(tmp_path, "python", "tar.gz", contents("python", *python))
    assert [item.label for item in cifar10_lt(tmp_path, tmp_path / "u", 1.0).splits["reference"]] == python[1][
        5
    ].tolist()
    write(tmp_path, "binary", "tar.gz", contents("binary", *binary))
    assert [item.label for item in cifar10_lt(tmp_path, tmp_path / "u", 1.0).splits["reference"]] == binary[1][
        5
    ].tolist()


def test_pixels_are_mapped_not_read(tmp_path):
    source = write(tmp_path, "binary", "folder", contents("binary", *images_and_labels()))
    item = cifar10_lt(source, tmp_path, 1.0).splits["train"][0]
    pixels, _ = cifar._load(item.location.title, item.location.file, item.location.binary)
    while isinstance(pixels.base, np.ndarray):
        pixels = pixels.base
    assert isinstance(pixels, np.memmap)


def test_published_counts_of_the_published_subset(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "long_tailed_indices", lambda *_: np.arange(3))  # the tiny files are too few
    source = write(tmp_path, "binary", "folder", contents("binary", *images_and_labels()))
    assert cifar10_lt(source, tmp_path).published_counts == {"train": 12406, "reference": 10000}


class Rotated:
    def __reduce__(self):
        return codecs.encode, ("text", "rot13")


class Malicious:
    def __reduce__(self):
        return eval, ("open('pwned', 'w')",)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (pickle.dumps(Malicious()), "asks for (__builtin__|builtins).eval"),
        (pickle.dumps(Rotated()), "has bytes as rot13"),
        (b"\x80\x02}(U", "is not a pickle of CIFAR-10"),
        (b"", "is not a pickle of CIFAR-10"),
        (pickle.dumps([1]), "no entry 'data'"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8)}), "no entry 'labels'"),
        (pickle.dumps({b"data": np.zeros((2, 99), np.uint8), b"labels": [0, 1]}), r"not uint8 of shape \(2, 3072\)"),
        (pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}), "not uint8"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}), "integers from 0 to 9"),
    ],
)
def test_refuses_wrong_pickles(tmp_path, monkeypatch, batch, message):
    monkeypatch.chdir(tmp_path)
    files = contents("python", *images_and_labels()) | {"data_batch_3": batch}
    with pytest.raises(UserError, match=f"data_batch_3 .*{message}"):
        cifar10_lt(write(tmp_path, "python", "folder", files), tmp_path, 1.0)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_batch_2.bin": b"\0" * 3072}, "has 3072 bytes, no multiple of the 3073"),
        ({"data_batch_2.bin": b""}, "has 0 bytes"),
        ({"data_batch_2.bin": b"\x0a" * 3073}, "integers from 0 to 9"),
        ({"batches.meta.txt": b"cat\ndog\n"}, "2 class names instead of 10"),
        ({"test_batch.bin": None}, r"lacks the file test_batch\.bin"),
        ({"batches.meta.txt": None}, r"lacks the file batches\.meta\.txt"),
    ],
)
def test_refuses_wrong_binaries(tmp_path, change, message):
    files = contents("binary", *images_and_labels()) | change
    files = {name: data for name, data in files.items() if data is not None}
    with pytest.raises(UserError, match=message):
        cifar10_lt(write(tmp_path, "binary", "folder", files), tmp_path, 1.0)


def test_refuses_other_sources(tmp_path):
    with pytest.raises(UserError, match=r"does not hold CIFAR-10; give cifar-10-binary\.tar\.gz or"):
        cifar10_lt(tmp_path, tmp_path)
    with pytest.raises(UserError, match="There is no"):
        cifar10_lt(tmp_path / "cifar-10-binary.tar.gz", tmp_path)


# --- CIFAR-100, and the order of UTLO -----------------------------------------------------------------------------------


def cifar100_files(kind, per_class=6, seed=4):
    """Files of CIFAR-100 with `per_class` training images a class and 100 test images; images and fine labels."""
    rng = np.random.default_rng(seed)
    labels = {"train": rng.permutation(np.repeat(np.arange(100), per_class)), "test": rng.permutation(100)}
    images = {split: rng.integers(0, 256, (len(of_split), 32, 32, 3), np.uint8) for split, of_split in labels.items()}
    planes = {split: x.transpose(0, 3, 1, 2).reshape(-1, 3072) for split, x in images.items()}
    names = [f"thing_{c}" for c in range(100)]
    if kind == "binary":
        heads = {split: np.stack([of_split // 5, of_split], axis=1) for split, of_split in labels.items()}
        files = {
            f"{split}.bin": np.concatenate([heads[split].astype(np.uint8), planes[split]], axis=1).tobytes()
            for split in labels
        }
        coarse = "\n".join(f"kind_{c}" for c in range(20))
        files |= {"fine_label_names.txt": "\n".join(names).encode(), "coarse_label_names.txt": coarse.encode()}
    else:
        files = {
            split: pickle.dumps(
                {
                    b"data": planes[split],
                    b"fine_labels": labels[split].tolist(),
                    b"coarse_labels": (labels[split] // 5).tolist(),
                },
                2,
            )
            for split in labels
        }
        files["meta"] = pickle.dumps({b"fine_label_names": [name.encode() for name in names]}, 2)
    return files, images, labels


@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize("container", ["folder", "tar.gz"])
def test_cifar100_in_the_published_order(tmp_path, kind, container):
    files, images, labels = cifar100_files(kind)
    top = f"cifar-100-{kind}"
    if container == "folder":
        (tmp_path / top).mkdir()
        for name, data in files.items():
            (tmp_path / top / name).write_bytes(data)
        source = tmp_path
    else:
        source = tmp_path / f"{top}.tar.gz"
        with tarfile.open(source, "w:gz") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(f"{top}/{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    listing = cifar100_lt(source, tmp_path / "unpacked", imbalance_factor=0.2)

    assert listing.class_names[0] == "thing_99" and listing.class_names[-1] == "thing_0"
    assert listing.few_classes == tuple(range(70, 100))
    counts = np.bincount([item.label for item in listing.splits["train"]], minlength=100)
    np.testing.assert_array_equal(counts, [int(6 * 0.2 ** (c / 99)) for c in range(100)])
    assert [item.label for item in listing.splits["full"]] == (99 - labels["train"]).tolist()
    assert [item.label for item in listing.splits["reference"]] == (99 - labels["test"]).tolist()
    for split, public in (("train", "train"), ("full", "train"), ("reference", "test")):
        for item in listing.splits[split][:5]:
            index = int(item.name.split("/")[1])
            assert item.label == 99 - labels[public][index]
            np.testing.assert_array_equal(listing.read(item), images[public][index])


def test_counts_of_utlo():
    labels = np.repeat(np.arange(100), 500)
    listing = cifar.cifar_listing(
        cifar.CIFAR100, [(None, int(c)) for c in labels], [], [str(c) for c in range(100)], None, 0.01, 0, "reversed"
    )
    counts = np.bincount([item.label for item in listing.splits["train"]], minlength=100)
    assert counts[:11].tolist() == [500, 477, 455, 434, 415, 396, 378, 361, 344, 328, 314]
    assert counts[-5:].tolist() == [6, 5, 5, 5, 5]
    assert [counts[:35].sum(), counts[35:70].sum(), counts[70:].sum(), counts.sum()] == [8824, 1718, 305, 10847]
    assert len(listing.splits["full"]) == 50_000 and listing.published_counts["train"] == 10847


def test_cifar10_in_the_order_of_utlo(tmp_path):
    images, labels = images_and_labels()
    source = write(tmp_path, "python", "folder", contents("python", images, labels))
    listing = cifar10_lt(source, tmp_path, imbalance_factor=0.5, order="reversed")
    assert listing.class_names == NAMES[::-1] and listing.few_classes == (6, 7, 8, 9)
    assert [item.label for item in listing.splits["full"]] == (9 - labels[:5].reshape(-1)).tolist()
    counts = np.bincount([item.label for item in listing.splits["train"]], minlength=10)
    np.testing.assert_array_equal(counts, [int(12 * 0.5 ** (c / 9)) for c in range(10)])
    assert "full" not in cifar10_lt(source, tmp_path, imbalance_factor=0.5).splits
    with pytest.raises(UserError, match="There is no order 'backwards'; give --order=label or reversed"):
        cifar10_lt(source, tmp_path, order="backwards")


def test_the_command_downloads_the_archive(tmp_path, monkeypatch, capsys):
    """As prepared from the file itself, index by index; a downloaded file is used again, and a failed download says how."""
    archive = write(tmp_path, "binary", "tar.gz", contents("binary", *images_and_labels()))
    command = ["cifar10_lt", f"--data_dir={tmp_path / 'two'}", "--imbalance_factor=0.1", "--jobs=1"]
    main([*command, f"--data_dir={tmp_path / 'one'}", f"--source={archive}"])
    with serve_public_set(monkeypatch, "cifar10_lt", {archive.name: archive.read_bytes()}) as server:
        server.forever = "status:503"
        with pytest.raises(SystemExit) as caught:
            main(command)
        error = capsys.readouterr().err.splitlines()[-1]
        folder = tmp_path / "two/downloads/cifar10"
        assert (
            caught.value.code == 2
            and error.startswith("Error: ")
            and f"put it into {folder}, or give --source" in error
        )
        assert f"{server.address}/www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz cannot be downloaded" in error
        server.forever, server.behaviours = "honest", ["cut:1000"]
        server.requests.clear()
        main(command)
        assert len(server.requests) == 2 and (folder / archive.name).read_bytes() == archive.read_bytes()
        main(command)
        main([*command, "--name=again", "--imbalance_factor=0.5"])
        assert len(server.requests) == 2
    one, two = (prepared_splits("cifar10_lt", resolution=32, directory=str(tmp_path / name)) for name in ("one", "two"))
    assert (one.train.fingerprint, one.reference.fingerprint) == (two.train.fingerprint, two.reference.fingerprint)
    assert "exists already" in capsys.readouterr().out
