import io
import json
import pickle
import tarfile
import zipfile

import pytest

from noisytwins_jax.data.prepare.inat import inat19
from noisytwins_jax.utils.errors import UserError

TRAIN = {"Plants/400/c.jpg": 1, "Birds/3/a.jpg": 0, "Plants/400/b.jpg": 1}
VAL = {"Plants/400/e.jpg": 1, "Birds/3/d.jpg": 0}
PREFIX = "train_val2019/"
FILES = {name: f"bytes of {name}".encode() for name in [*TRAIN, *VAL, "Fungi/9/unlisted.jpg"]}


def annotations(images, category_ids=(0, 1), first_id=10):
    return {
        "images": [
            {"id": first_id + i, "file_name": PREFIX + n, "width": 8, "height": 8} for i, n in enumerate(images)
        ],
        "annotations": [  # in another order than the images
            {"id": i, "image_id": first_id + i, "category_id": category_ids[label]}
            for i, label in reversed(list(enumerate(images.values())))
        ],
        "categories": [{"id": c, "name": f"species {c}", "supercategory": "x"} for c in reversed(category_ids)],
    }


def write_json(folder, train=None, val=None):
    folder.mkdir(exist_ok=True)
    (folder / "train2019.json").write_text(json.dumps(train or annotations(TRAIN)))
    (folder / "val2019.json").write_text(json.dumps(val or annotations(VAL, first_id=50)))
    return folder


def write_images(folder, kind, prefix=PREFIX, files=None):
    files = FILES if files is None else files
    if kind == "folder":
        for name, data in files.items():
            (folder / (prefix + name)).parent.mkdir(parents=True, exist_ok=True)
            (folder / (prefix + name)).write_bytes(data)
        return folder / "train_val2019"
    path = folder / f"train_val2019.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(prefix + name, data)
        return path
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def check(listing):
    assert list(listing.class_names) == ["species 0", "species 1"]
    assert listing.published_counts == {"train": 265213, "reference": 3030}
    assert len(listing.problems) == 0
    read, splits = pickle.loads(pickle.dumps((listing.read, listing.splits)))
    for split, images in (("train", TRAIN), ("reference", VAL)):
        expected = [(PREFIX + name, label, FILES[name]) for name, label in images.items()]
        assert [(item.name, item.label, read(item)) for item in splits[split]] == expected


@pytest.mark.parametrize("kind", ["folder", "tar.gz", "tar", "zip"])
@pytest.mark.parametrize("inside", [False, True])
def test_lists_and_reads(tmp_path, kind, inside):
    folder = write_json(tmp_path / "inat")
    source = write_images(folder, kind)
    check(inat19(folder if inside else source, tmp_path / "unpacked"))


@pytest.mark.parametrize("prefix", ["", PREFIX * 2])
def test_top_folder_may_be_missing_or_doubled(tmp_path, prefix):
    folder = write_json(tmp_path / "inat")
    check(inat19(write_images(folder, "tar", prefix), tmp_path))


def test_folder_of_the_groups_and_annotations_elsewhere(tmp_path):
    write_images(tmp_path, "folder", "images/")
    check(inat19(tmp_path / "images", tmp_path, write_json(tmp_path / "json")))


def test_renumbers_category_ids(tmp_path):
    folder = write_json(tmp_path / "inat", annotations(TRAIN, (7, 9)), annotations(VAL, (7, 9)))
    listing = inat19(write_images(folder, "zip"), tmp_path)
    assert [item.label for item in listing.splits["train"]] == list(TRAIN.values())
    assert [item.label for item in listing.splits["reference"]] == list(VAL.values())
    assert list(listing.class_names) == ["species 7", "species 9"]


def test_reports_problems(tmp_path):
    train = annotations(TRAIN | {"Birds/3/gone.jpg": 0, "no/annotation.jpg": 0, "un/known.jpg": 0, "Birds/3/a2.jpg": 0})
    train["images"][6] |= {"file_name": PREFIX + "Birds/3/a.jpg"}
    train["annotations"] = [a for a in train["annotations"] if a["image_id"] != 14] + [
        {"id": 90, "image_id": 99, "category_id": 0},
        {"id": 91, "image_id": 10, "category_id": 0},
    ]
    next(a for a in train["annotations"] if a["image_id"] == 15)["category_id"] = 33
    train["categories"].append({"id": 2, "name": "rare"})
    folder = write_json(tmp_path / "inat", train)
    listing = inat19(write_images(folder, "tar"), tmp_path)
    json_path = folder / "train2019.json"
    assert listing.problems.wrong == {
        "annotations of images that do not exist": [f"{json_path}: image 99"],
        "annotations that give an image another category": [f"{json_path}: {PREFIX}Plants/400/c.jpg: 0"],
        "images whose id or name comes twice": [f"{json_path}: {PREFIX}Birds/3/a.jpg"],
        "images without an annotation": [f"{json_path}: {PREFIX}no/annotation.jpg"],
        "images of unknown categories": [f"{json_path}: {PREFIX}un/known.jpg: 33"],
        "listed images that are missing": [f"{json_path}: {PREFIX}Birds/3/gone.jpg"],
        "categories without training images": [f"{json_path}: 2 (rare)"],
    }
    assert [item.name for item in listing.splits["train"]] == [PREFIX + name for name in TRAIN]
    assert list(listing.class_names) == ["species 0", "species 1", "rare"]


def test_refuses_missing_things(tmp_path):
    with pytest.raises(UserError, match=r"There is no .*nothing; give train_val2019\.tar\.gz or the folder"):
        inat19(tmp_path / "nothing", tmp_path)
    source = write_images(tmp_path, "folder")
    with pytest.raises(UserError, match=r"There is no train2019\.json in .*; get the public file \(https"):
        inat19(source, tmp_path)
    write_json(tmp_path / "json")
    (tmp_path / "json" / "val2019.json").unlink()
    with pytest.raises(UserError, match=r"There is no val2019\.json in .*json; get"):
        inat19(source, tmp_path, tmp_path / "json")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"None of the 3 images of .*train2019\.json is in .*other"):
        inat19(tmp_path / "other", tmp_path, write_json(tmp_path / "json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "does not hold annotations in the format of COCO"),
        ("[]", "does not hold annotations"),
        ('{"images": []}', "it lacks 'annotations'"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "it lacks 'file_name'"),
        (
            '{"images": [{"id": "1", "file_name": "x"}], "annotations": [], "categories": []}',
            "id of one of the images is '1'",
        ),
        ('{"images": [], "annotations": [], "categories": []}', "no image of a known category"),
    ],
)
def test_refuses_wrong_json(tmp_path, content, message):
    folder = write_json(tmp_path / "inat")
    (folder / "train2019.json").write_text(content)
    with pytest.raises(UserError, match=rf"train2019\.json .*{message}"):
        inat19(write_images(folder, "tar"), tmp_path)
