"""Public TFDS data sets as sources; TFDS writes them here, without TensorFlow."""

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from waiting import TIMEOUT

from noisytwins_jax.data.prepare import cifar, tfds_source
from noisytwins_jax.data.preprocessing import Preprocessing
from noisytwins_jax.utils.errors import UserError

TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
WNIDS = ["n01440764", "n01443537", "n01484850"]


def png(value: int, size: int = 32) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(file, "PNG")
    file.seek(0)
    return file


def write(
    directory: Path,
    name: str,
    key: str,
    names: list[str],
    splits: dict[str, list[tuple[str, int, int]]],
    shards: int = 1,
) -> str:
    """A prepared TFDS data set of (key, label, grey value) records, the same ones in each shard; its directory."""
    directory.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            key: tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="png"),
            "label": tfds.features.ClassLabel(names=names),
        }
    )
    infos = []
    for split, rows in splits.items():
        for shard in range(shards):
            path = directory / f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for value, label, grey in rows:
                writer.write(features.serialize_example({key: value, "image": png(grey), "label": label}))
            writer.close()
        template = tfds.core.ShardedFileTemplate(
            dataset_name=name, data_dir=directory, split=split, filetype_suffix="array_record", template=TEMPLATE
        )
        lengths = {"shard_lengths": [len(rows)] * shards, "num_bytes": 1}
        infos.append(tfds.core.SplitInfo(name=split, filename_template=template, **lengths))
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features,
        split_infos=infos,
        version="1.0.0",
        filename_template=TEMPLATE,
        check_data=False,
    )
    return f"tfds:{directory}"


def test_cifar10_is_chosen_by_its_public_order(tmp_path):
    """TFDS shuffles; the id tells the position in the public batches."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 10
    rng.shuffle(labels)
    rows = [(f"train_{i:05d}", int(label), i) for i, label in enumerate(labels)]
    shuffled = [rows[i] for i in rng.permutation(len(rows))]
    test = [(f"test_{i:05d}", i % 10, i) for i in reversed(range(20))]
    source = write(
        tmp_path / "cifar10", "cifar10", "id", [f"c{i}" for i in range(10)], {"train": shuffled, "test": test}
    )
    listing = tfds_source.cifar10_lt(source, imbalance_factor=0.2)
    kept = cifar.long_tailed_indices(cifar.CIFAR10, labels, 0.2, 0)
    assert [item.name for item in listing.splits["train"]] == [f"train/{i}" for i in kept]
    assert [item.label for item in listing.splits["train"]] == labels[kept].tolist()
    assert [item.name for item in listing.splits["reference"]] == [f"test/{i}" for i in range(20)]
    assert list(listing.class_names) == [f"c{i}" for i in range(10)]
    read = pickle.loads(pickle.dumps(listing.read))
    for item, i in zip(listing.splits["train"][:5], kept, strict=False):
        assert (Preprocessing()(read(item), 32) == i).all()


def test_imagenet_lt_from_its_own_set_and_from_imagenet2012(tmp_path):
    files = [(f"{wnid}_{i}.JPEG", label, 10 * label + i) for label, wnid in enumerate(WNIDS) for i in range(4)]
    own = write(tmp_path / "own", "imagenet_lt", "file_name", WNIDS, {"train": files[:9], "validation": files[9:]})
    listing = tfds_source.imagenet_lt(own)
    assert [item.name for item in listing.splits["train"]] == [name for name, _, _ in files[:9]]
    assert [item.label for item in listing.splits["reference"]] == [2, 2, 2]
    assert list(listing.class_names) == WNIDS

    whole = write(tmp_path / "imagenet2012", "imagenet2012", "file_name", WNIDS, {"train": files[::-1]})
    with pytest.raises(UserError, match="needs --lists="):
        tfds_source.imagenet_lt(whole)
    line = "train/{0}/{0}_{1}.JPEG {2}\n"
    (tmp_path / "ImageNet_LT_train.txt").write_text(
        "".join(line.format(WNIDS[c], i, c) for c, i in ((2, 1), (0, 3), (1, 9)))
    )
    (tmp_path / "ImageNet_LT_val.txt").write_text(line.format(WNIDS[1], 0, 1))
    listing = tfds_source.imagenet_lt(whole, lists=tmp_path)
    assert [item.label for item in listing.splits["train"]] == [2, 0]
    assert [int(Preprocessing()(listing.read(item), 32)[0, 0, 0]) for item in listing.splits["train"]] == [21, 3]
    assert "1 listed images that are missing" in listing.problems.describe()


def test_imagenet_is_that_of_the_public_archives(tmp_path, capsys):
    """TFDS shuffles; names, class ids and order are those of the archives, so both make the same data set."""
    wnids = [f"n{1440764 + i:08d}" for i in range(1000)]
    train = [(f"{wnids[label]}_{i}.JPEG", label, label % 200 + i) for label, i in ((999, 7), (0, 10), (3, 1), (0, 9))]
    val = [(f"ILSVRC2012_val_0000000{i}.JPEG", label, i) for i, label in ((2, 970), (1, 65))]
    splits = {"train": train, "validation": val}
    listing = tfds_source.imagenet(write(tmp_path / "whole", "imagenet2012", "file_name", wnids, splits))
    assert list(listing.class_names) == wnids
    assert len(listing.problems) == 0 and capsys.readouterr().out == ""
    order = ((0, 10), (0, 9), (3, 1), (999, 7))
    names = [f"train/{wnids[label]}/{wnids[label]}_{i}.JPEG" for label, i in order]
    assert [item.name for item in listing.splits["train"]] == names
    assert [item.label for item in listing.splits["train"]] == [0, 0, 3, 999]
    reference = [(item.name, item.label) for item in listing.splits["reference"]]
    assert reference == [("val/ILSVRC2012_val_00000001.JPEG", 65), ("val/ILSVRC2012_val_00000002.JPEG", 970)]
    read = pickle.loads(pickle.dumps(listing.read))
    values = [int(Preprocessing()(read(item), 32)[0, 0, 0]) for items in listing.splits.values() for item in items]
    assert values == [10, 9, 4, 206, 1, 2]

    listing = tfds_source.imagenet(write(tmp_path / "train", "imagenet2012", "file_name", wnids, {"train": train}))
    assert list(listing.splits) == ["train"] and len(listing.splits["train"]) == 4
    assert "has no split validation; metrics will compare with the training images.\n" in capsys.readouterr().out

    with pytest.raises(UserError, match=r"has training images of 3 classes instead of ImageNet's 1000"):
        tfds_source.imagenet(write(tmp_path / "three", "imagenet2012", "file_name", WNIDS, {"train": train[1:2]}))


def test_more_shards_than_files_may_be_open(tmp_path):
    """TFDS keeps every shard open: 1024 of imagenet2012, where the usual limit is 1024."""
    shards = 100
    source = write(tmp_path / "cifar10", "cifar10", "id", ["a"], {"train": [("train_0", 0, 1)]}, shards)
    program = f"""
import resource
from noisytwins_jax.data.prepare import tfds_source
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
entries = tfds_source._entries({source.removeprefix("tfds:")!r}, "train", "id")
assert [place.index for _, place, _ in entries] == list(range({shards}))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == 0, result.stderr


def test_other_data_sets_are_refused(tmp_path):
    source = write(tmp_path / "other", "other", "id", ["a"], {"train": [("x", 0, 1)]})
    with pytest.raises(UserError, match="has no split test"):
        tfds_source.cifar10_lt(source)
    with pytest.raises(UserError, match="has no feature 'file_name'"):
        tfds_source.imagenet_lt(source)
    with pytest.raises(UserError, match="TFDS cannot give no_such_set_at_all"):
        tfds_source.cifar10_lt("tfds:no_such_set_at_all")
