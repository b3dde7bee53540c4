import io
import itertools
import pickle
import tarfile
import zipfile

import pytest
from PIL import Image

from noisytwins_jax.data.prepare.folders import animal_face, image_folder, imagenet_carnivore
from noisytwins_jax.utils.errors import UserError


def png(shade):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (shade % 256, shade // 256, 0)).save(file, "PNG")
    return file.getvalue()


def write(path, files):
    """Files by name as folder, .zip, .tar or .tar.gz; names alone have pictures of their own."""
    if not isinstance(files, dict):
        files = {name: png(i) for i, name in enumerate(files)}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif path.suffix in (".tar", ".gz"):
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def named(listing, split="train"):
    return [(item.name, item.label) for item in listing.splits[split]]


def in_classes(sizes):
    return [f"{name}/{i:03}.png" for name, size in sizes.items() for i in range(size)]


@pytest.mark.parametrize("kind", ["", ".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize("around", ["", "pets/"])
def test_lists_and_reads(tmp_path, kind, around):
    images = ["dog/2.PNG", "cat/deep/er/0.jpeg", "dog/10.tiff", "cat/1.webp", "emu/x y.Gif"]
    files = {around + name: png(i) for i, name in enumerate(images)}
    junk = {name: b"junk" for name in ("cat/Thumbs.db", "dog/desktop.ini", "a.txt", "b.JSON", "dog/c.csv", "README.md")}
    source = write(tmp_path / f"data{kind}", files | {around + name: data for name, data in junk.items()})
    listing = image_folder(source / around if kind == "" else source, tmp_path / "unpacked")
    assert list(listing.class_names) == ["cat", "dog", "emu"]
    expected = [("cat/1.webp", 0), ("cat/deep/er/0.jpeg", 0), ("dog/10.tiff", 1), ("dog/2.PNG", 1), ("emu/x y.Gif", 2)]
    assert named(listing) == expected
    assert list(listing.splits) == ["train"]
    assert len(listing.problems) == 0
    read, items = pickle.loads(pickle.dumps((listing.read, listing.splits["train"])))
    assert [read(item) for item in items] == [files[around + item.name] for item in items]


@pytest.mark.parametrize("kind", ["", ".zip"])
@pytest.mark.parametrize(
    ("others", "reference"),
    [
        (["val"], "val"),
        (["test"], "test"),
        (["test", "validation", "valid"], "valid"),
        (["test", "validation"], "validation"),
    ],
)
def test_splits(tmp_path, kind, others, reference):
    files = ["train/b/1.png", "train/a/2.png"] + [
        f"{other}/{c}/{i}.png" for other in others for c in "ba" for i in (3, 4)
    ]
    listing = image_folder(write(tmp_path / f"data{kind}", files), tmp_path)
    assert list(listing.class_names) == ["a", "b"]
    assert named(listing) == [("train/a/2.png", 0), ("train/b/1.png", 1)]
    assert named(listing, "reference") == [
        (f"{reference}/{c}/{i}.png", label) for label, c in enumerate("ab") for i in (3, 4)
    ]
    assert len(listing.problems) == 0


def test_classes_of_only_one_split(tmp_path):
    source = write(tmp_path / "data", ["train/a/1.png", "train/b/1.png", "val/b/2.png", "val/c/2.png"])
    listing = image_folder(source, tmp_path)
    assert listing.problems.wrong == {
        "classes that only one split has": [f"{source}: a, only in train", f"{source}: c, only in val"]
    }
    assert list(listing.class_names) == ["a", "b"]
    assert named(listing, "reference") == [("val/b/2.png", 1)]


def test_reports_problems(tmp_path):
    source = write(tmp_path / "data", ["a/1.png", "b/1.png", "lost.png", "a/movie.mp4", "c/only.txt", "a/noext"])
    for name in ("empty", ".hidden", "__MACOSX"):
        (source / name).mkdir()
    listing = image_folder(source, tmp_path)
    assert {kind: sorted(things) for kind, things in listing.problems.wrong.items()} == {
        "files that are no images": [f"{source}/a/movie.mp4", f"{source}/a/noext"],
        "images outside the class folders": [f"{source}/lost.png"],
        "classes without images": [f"{source}/c", f"{source}/empty"],
    }
    assert list(listing.class_names) == ["a", "b"]


def test_problems_of_splits_say_where(tmp_path):
    source = write(tmp_path / "data", ["train/a/1.png", "train/x.png", "val/a/1.png", "val/a/y.mov"])
    (source / "val" / "b").mkdir()
    assert image_folder(source, tmp_path).problems.wrong == {
        "images outside the class folders": [f"{source}/train/x.png"],
        "files that are no images": [f"{source}/val/a/y.mov"],
        "classes without images": [f"{source}/val/b"],
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["images/cat/1.png", "images/dog/1.png", "labels/x.txt"],
            "only in its folder images, which has 2 folders in it",
        ),
        (
            ["train/cat/1.png", "train/dog/1.png"],
            "one level too many; give a folder or archive with a folder of images",
        ),
        (["1.png", "2.png"], "has images, but none in a folder of its class; give"),
        (["a/readme.txt"], "has no image; give"),
        (["train/cat/1.png", "val/1.png"], r"data/val has images, but none"),
    ],
)
def test_refuses_other_layouts(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        image_folder(write(tmp_path / "data", files), tmp_path)


def test_refuses_a_missing_source(tmp_path):
    with pytest.raises(UserError, match="There is no"):
        image_folder(tmp_path / "data", tmp_path)


def test_one_class_is_fine(tmp_path):
    assert named(image_folder(write(tmp_path / "data", ["a/1.png"]), tmp_path)) == [("a/1.png", 0)]


def counts(listing):
    labels = [label for _, label in named(listing)]
    return [labels.count(c) for c in range(len(listing.class_names))]


def test_makes_a_long_tail(tmp_path):
    source = write(tmp_path / "data", in_classes({"a": 20, "b": 40, "c": 20, "d": 3}))
    everything = image_folder(source, tmp_path)
    listing = image_folder(source, tmp_path, imbalance_factor=0.1)
    assert counts(listing) == [18, 40, 8, 3]  # wanted by size: 40, 18, 8, 4, and d has only 3
    assert [item for item in everything.splits["train"] if item in set(listing.splits["train"])] == listing.splits[
        "train"
    ]
    assert counts(image_folder(source, tmp_path, imbalance_factor=0.1, largest=10)) == [4, 10, 2, 1]
    assert counts(image_folder(source, tmp_path, largest=10)) == [10, 10, 10, 3]

    kept = [
        set(named(image_folder(source, tmp_path, imbalance_factor=factor, largest=largest)))
        for factor, largest in ((0.1, 10), (0.1, 40), (0.2, 40), (1.0, None))
    ]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(kept))
    assert named(listing) == named(image_folder(source, tmp_path, imbalance_factor=0.1))
    assert named(listing) != named(image_folder(source, tmp_path, imbalance_factor=0.1, seed=1))
    first = [name for name, label in named(listing) if label == 2]
    assert first != sorted(in_classes({"c": 20}))[:8]  # drawn, not the first ones


def test_the_tail_is_only_of_training_images(tmp_path):
    files = [f"{split}/{name}" for split in ("train", "val") for name in in_classes({"a": 10, "b": 10})]
    listing = image_folder(write(tmp_path / "data.zip", files), tmp_path, imbalance_factor=0.1)
    assert counts(listing) == [10, 1]
    assert len(listing.splits["reference"]) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imbalance_factor": 1.5}, "at most 1"),
        ({"imbalance_factor": 0.01}, "rarest class would have no image"),
        ({"largest": 0}, "at least one image"),
        ({"imbalance_factor": 0.5, "seed": -1}, "must not be negative"),
        ({"reference_list": "x.txt"}, "needs a list of training images"),
        ({"train_list": "none.txt"}, r"The list none\.txt cannot be read"),
    ],
)
def test_refuses_bad_options(tmp_path, options, message):
    source = write(tmp_path / "data", in_classes({"a": 10, "b": 10}))
    with pytest.raises(UserError, match=message):
        image_folder(source, tmp_path, **options)


@pytest.mark.parametrize("kind", ["", ".zip"])
def test_lists(tmp_path, kind):
    top = "top/" if kind else ""
    source = write(tmp_path / f"data{kind}", [top + n for n in ("x/1.png", "x/2.png", "y/1.png", "z/1.png", "3.png")])
    (tmp_path / "train.txt").write_text("y/1.png 1\nx/2.png 0\nz/1.png 2\nx/1.png 2\n3.png 3\ngone.png 0\nwrong\n")
    (tmp_path / "val.txt").write_text("x/1.png 0\n")
    listing = image_folder(source, tmp_path, train_list=tmp_path / "train.txt", reference_list=tmp_path / "val.txt")
    assert named(listing) == [("y/1.png", 1), ("x/2.png", 0), ("z/1.png", 2), ("x/1.png", 2), ("3.png", 3)]
    assert named(listing, "reference") == [("x/1.png", 0)]
    assert list(listing.class_names) == ["x", "y", "class 2", "class 3"]
    assert listing.read(listing.splits["train"][1]) == png(1)
    assert set(listing.problems.wrong) == {
        "list lines that are not '<path> <class id>'",
        "listed images that are missing",
    }


def test_lists_of_one_common_folder_number_the_classes(tmp_path):
    source = write(tmp_path / "data.zip", ["images/1.png", "images/2.png", "images/3.png"])
    (tmp_path / "train.txt").write_text("images/1.png 0\nimages/2.png 1\nimages/3.png 1\n")
    listing = image_folder(source, tmp_path, train_list=tmp_path / "train.txt")
    assert list(listing.splits) == ["train"]
    assert list(listing.class_names) == ["class 0", "class 1"]
    assert counts(listing) == [1, 2]
    thinned = image_folder(source, tmp_path, train_list=tmp_path / "train.txt", imbalance_factor=0.5)
    assert counts(thinned) == [1, 2]  # class 1 is the largest one


TWENTY = [f"{chr(ord('A') + i)}Head" for i in range(20)]


@pytest.mark.parametrize("kind", ["", ".zip"])
@pytest.mark.parametrize("around", ["", "Image/"])
def test_animal_face(tmp_path, kind, around):
    files = [f"{around}{name}/{i}.jpg" for name in [*TWENTY, "natural"] for i in (1, 2)] + [f"{around}Natural/odd.xyz"]
    listing = animal_face(write(tmp_path / f"faces{kind}", files), tmp_path)
    assert list(listing.class_names) == TWENTY
    assert named(listing) == [(f"{name}/{i}.jpg", c) for c, name in enumerate(TWENTY) for i in (1, 2)]
    assert list(listing.splits) == ["train"]
    assert listing.read(listing.splits["train"][3]) == png(3)
    assert len(listing.problems) == 0
    assert listing.published_counts == {}


@pytest.mark.parametrize("kind", ["", ".zip"])
@pytest.mark.parametrize("around", ["", "ImageNet_Carnivores_20_100/"])
def test_imagenet_carnivore(tmp_path, kind, around):
    files = [f"{around}{name}/{i}.JPEG" for name in TWENTY for i in range(3)]
    listing = imagenet_carnivore(write(tmp_path / f"carnivores{kind}", files), tmp_path)
    assert list(listing.class_names) == TWENTY
    assert counts(listing) == [3] * 20
    assert listing.read(listing.splits["train"][4]) == png(4)
    assert listing.published_counts == {"train": 2000}
    assert len(listing.problems) == 0


@pytest.mark.parametrize("build", [animal_face, imagenet_carnivore])
def test_twenty_classes_are_expected(tmp_path, build):
    source = write(tmp_path / "data", ["a/1.jpg", "b/1.jpg"])
    (source / "empty").mkdir()
    assert build(source, tmp_path).problems.wrong == {
        "classes without images": [f"{source}/empty"],
        "unexpected numbers of classes": [f"{source}: 2 instead of 20"],
    }
