import json

import numpy as np
import pytest

from noisytwins_jax.data.prepare import finish, shards
from noisytwins_jax.data.prepare.listing import Item, Listing, Problems, RenderedImage
from noisytwins_jax.data.prepared import INFO_FILE, VERSION, PreparedSource
from noisytwins_jax.data.preprocessing import Preprocessing
from noisytwins_jax.utils.errors import UserError

FORMAT = shards.Format(8, 3, Preprocessing())
TRAIN = {f"train/{i}": label for i, label in enumerate([0, 0, 0, 0, 1, 1, 2])}
REFERENCE = {f"reference/{i}": i % 3 for i in range(6)}


def shade(item):
    """An image of one shade, its place; there is none at a negative one."""
    if item.location < 0:
        raise OSError("damaged")
    return np.full((8, 8, 3), item.location, np.uint8)


def drawn(item):
    return RenderedImage(shade(item), np.array([item.location, 0.5], np.float32))


def items(labels, start, locations):
    return [Item(name, label, locations.get(name, start + i)) for i, (name, label) in enumerate(labels.items())]


def written(directory, locations=None, **changes):
    """A listing of seven training and six reference images and its shards, written; places say what is shown."""
    splits = {"train": items(TRAIN, 0, locations or {}), "reference": items(REFERENCE, 100, locations or {})}
    listing = Listing(
        **{"class_names": ["a", "b", "c"], "splits": splits, "read": shade, "description": "Grey."} | changes
    )
    planned = shards.plan_shards(listing, FORMAT, directory, "set")
    for shard in planned:
        shards.write_shard(shard)
    return listing, planned


def data_set(directory, **changes):
    listing, planned = written(directory, **changes)
    splits = finish.collect_splits(listing, planned, FORMAT)
    problems = finish.collect_problems(listing, planned)
    return finish.write_data_set(
        directory, listing, planned, splits, problems, FORMAT, "set", {"seed": 3}, thresholds=(2, 3)
    )


def test_collects_problems(tmp_path):
    found = Problems()
    found.add("classes without images", "d")
    found.converted["grey images"] = 2
    listing, planned = written(tmp_path, {"train/1": -1, "reference/2": -1}, problems=found)
    problems = finish.collect_problems(listing, planned)
    assert problems.wrong == {
        "classes without images": ["d"],
        shards.UNREADABLE: ["train/1: damaged", "reference/2: damaged"],
    }
    assert problems.converted == {"grey images": 2}
    assert len(found) == 1  # the listing's own are as they were


def test_finds_duplicates(tmp_path):
    _, planned = written(tmp_path, {"train/1": 102, "train/5": 102, "train/3": 2})
    assert finish.find_duplicates(planned) == {"train/1": "reference/2", "train/5": "reference/2"}


def test_duplicates_are_of_training_images_alone(tmp_path):
    # A third split may use the same names.
    splits = {"train": items(TRAIN, 0, {}), "reference": items(REFERENCE, 100, {}), "classifier": items(TRAIN, 100, {})}
    _, planned = written(tmp_path, splits=splits)
    assert finish.find_duplicates(planned) == {}


def test_no_duplicates_without_reference(tmp_path):
    _, planned = written(tmp_path, splits={"train": items(TRAIN, 0, {"train/1": 0})})
    assert finish.find_duplicates(planned) == {}


def test_collects_splits(tmp_path):
    listing, planned = written(tmp_path, {"train/1": -1, "reference/2": -1, "reference/5": -1})
    splits = finish.collect_splits(listing, planned, FORMAT)
    assert list(splits) == ["train", "reference"]
    assert [splits[split]["images"] for split in splits] == [6, 4]
    assert splits["train"]["class_counts"] == [3, 2, 1]
    assert splits["reference"]["class_counts"] == [2, 2, 0]  # a class may lack reference images
    (shard,) = splits["train"]["shards"]
    notes = shards.read_metadata(planned[0])
    assert shard == {"file": planned[0].path.name, "images": 6, "bytes": notes.size, "sha256": notes.sha256}


def test_fingerprints_are_of_pixels_and_labels(tmp_path):
    def fingerprint(name, **changes):
        (tmp_path / name).mkdir()
        listing, planned = written(tmp_path / name, **changes)
        return finish.collect_splits(listing, planned, FORMAT)["train"]["fingerprint"]

    other_labels = {"train": items(TRAIN | {"train/0": 2}, 0, {})}
    other_names = {"train": items({f"x{name}": label for name, label in TRAIN.items()}, 0, {})}
    first = fingerprint("first")
    assert first == fingerprint("names", splits=other_names)
    assert (
        len({first, fingerprint("pixels", locations={"train/0": 99}), fingerprint("labels", splits=other_labels)}) == 3
    )


@pytest.mark.parametrize(("damaged", "named"), [("train/6", "class 2"), ("train/4 train/5", "class 1")])
def test_class_that_lost_all_its_images(tmp_path, damaged, named):
    listing, planned = written(tmp_path, dict.fromkeys(damaged.split(), -1))
    with pytest.raises(UserError, match=f"no images of {named}[,;]"):
        finish.collect_splits(listing, planned, FORMAT)


def test_shard_that_is_gone(tmp_path):
    listing, planned = written(tmp_path)
    planned[1].path.unlink()
    for collect in (
        lambda: finish.collect_splits(listing, planned, FORMAT),
        lambda: finish.collect_problems(listing, planned),
        lambda: finish.find_duplicates(planned),
    ):
        with pytest.raises(UserError, match=r"reference.* is gone or has changed; run the same command to resume"):
            collect()


def test_writes_what_the_data_set_is(tmp_path):
    info = data_set(tmp_path, locations={"train/1": -1})
    assert json.loads((tmp_path / INFO_FILE).read_text()) == info
    assert (info["name"], info["version"], info["resolution"], info["channels"]) == ("set", VERSION, 8, 3)
    assert (info["preprocessing"], info["options"], info["class_names"]) == ("center-lanczos", {"seed": 3}, list("abc"))
    assert info["imbalance_factor"] == pytest.approx(1 / 3)
    assert info["group_thresholds"] == [2, 3]
    assert info["group_sizes"] == {"head": 0, "medium": 2, "tail": 1}
    assert info["left_out"] == {shards.UNREADABLE: 1}
    assert [entry["file"] for entry in info["files"]] == ["labels-train.npy", "labels-reference.npy"]
    for entry in info["files"]:
        assert entry["bytes"] == (tmp_path / entry["file"]).stat().st_size
    source = PreparedSource(tmp_path, info, "train")
    for i in range(len(source)):
        image = source[i]
        name = f"train/{image['image'][0, 0, 0]}"
        assert image["label"] == TRAIN[name]
    assert len(source) == 6


def test_writes_factors(tmp_path):
    info = data_set(tmp_path, read=drawn, factor_names=("shade", "half"))
    assert info["factor_names"] == ["shade", "half"]
    source = PreparedSource(tmp_path, info, "train")
    for i in range(len(source)):
        np.testing.assert_array_equal(source.factors[i], [source[i]["image"][0, 0, 0], 0.5])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["crane", "ox", "crane"], ["crane", "ox", "crane (2)"]),
        (["crane", "crane (2)", "crane"], ["crane", "crane (2)", "crane (2) (2)"]),
    ],
)
def test_tfds_has_every_class_once(tmp_path, names, expected):
    tfds = pytest.importorskip("tensorflow_datasets")
    info = data_set(tmp_path, class_names=names)
    assert info["class_names"] == names
    assert tfds.builder_from_directory(tmp_path).info.features["label"].names == expected
