"""Public TFDS data sets as sources; TFDS writes them here, without TensorFlow."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from noisytwins_jax.data.prepare import cifar, tfds_source
from noisytwins_jax.data.preprocessing import Preprocessing
from noisytwins_jax.errors import UserError

TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
WNIDS = ["n01440764", "n01443537", "n01484850"]


def png(value: int, size: int = 32) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(file, "PNG")
    file.seek(0)
    return file


def write(directory: Path, name: str, key: str, names: list[str], splits: dict[str, list[tuple[str, int, int]]]) -> str:
    """A prepared TFDS data set of (key, label, grey value) records; its directory."""
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
        writer = ArrayRecordWriter(str(directory / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for value, label, grey in rows:
            writer.write(features.serialize_example({key: value, "image": png(grey), "label": label}))
        writer.close()
        template = tfds.core.ShardedFileTemplate(
            dataset_name=name, data_dir=directory, split=split, filetype_suffix="array_record", template=TEMPLATE
        )
        lengths = {"shard_lengths": [len(rows)], "num_bytes": 1}
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
    kept = cifar.long_tailed_indices(labels, 0.2, 0)
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


def test_other_data_sets_are_refused(tmp_path):
    source = write(tmp_path / "other", "other", "id", ["a"], {"train": [("x", 0, 1)]})
    with pytest.raises(UserError, match="has no split test"):
        tfds_source.cifar10_lt(source)
    with pytest.raises(UserError, match="has no feature 'file_name'"):
        tfds_source.imagenet_lt(source)
    with pytest.raises(UserError, match="TFDS cannot give no_such_set_at_all"):
        tfds_source.cifar10_lt("tfds:no_such_set_at_all")
