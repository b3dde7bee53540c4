import io
import pickle
import random
import re
import tarfile

import pytest
from PIL import Image

from noisytwins_jax.data.prepare.imagenet import imagenet, imagenet_lt
from noisytwins_jax.utils.errors import UserError

TRAIN = "train/n02/n02_7.JPEG 1\ntrain/n01/n01_10.JPEG 0\ntrain/n01/n01_2.JPEG 0\n"
VAL = "train/n01/n01_30.JPEG 0\ntrain/n02/n02_5.JPEG 1\n"
NAMES = ["n01/n01_2.JPEG", "n01/n01_10.JPEG", "n01/n01_30.JPEG", "n02/n02_5.JPEG", "n02/n02_7.JPEG", "n03/n03_1.JPEG"]


def jpeg(shade):
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, 0, 0)).save(file, "JPEG")
    return file.getvalue()


IMAGES = {name: jpeg(40 * i) for i, name in enumerate(NAMES)}


def tar_bytes(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def nested_tar(images=None):
    inner = {}
    for name, data in (images or IMAGES).items():
        inner.setdefault(name.split("/")[0], {})[name.split("/")[1]] = data
    return tar_bytes({f"{w}.tar": tar_bytes(content) for w, content in inner.items()})


def write_folder(folder, images=None):
    for name, data in (images or IMAGES).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "ilsvrc"
    folder.mkdir()
    (folder / "ImageNet_LT_train.txt").write_text(TRAIN)
    (folder / "ImageNet_LT_val.txt").write_text(VAL)
    return folder


@pytest.mark.parametrize("layout", ["tar in folder", "tar", "flat tar", "train", "ILSVRC2012_img_train", "direct"])
def test_lists_and_reads(source, tmp_path, layout):
    given = source
    if layout in ("tar in folder", "tar"):
        (source / "ILSVRC2012_img_train.tar").write_bytes(nested_tar())
        given = source / "ILSVRC2012_img_train.tar" if layout == "tar" else source
    elif layout == "flat tar":
        given = source / "train.tar"
        given.write_bytes(tar_bytes({f"train/{name}": data for name, data in IMAGES.items()}))
    else:
        write_folder(source if layout == "direct" else source / layout)
    listing = imagenet_lt(given, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()
    assert list(listing.class_names) == ["n01", "n02"]
    assert listing.published_counts == {"train": 115846, "reference": 20000}
    assert len(listing.problems) == 0
    read, splits = pickle.loads(pickle.dumps((listing.read, listing.splits)))
    for split, text in (("train", TRAIN), ("reference", VAL)):
        assert [f"{item.name} {item.label}" for item in splits[split]] == text.splitlines()
        for item in splits[split]:
            assert read(item) == IMAGES[item.name.removeprefix("train/")]


@pytest.mark.parametrize("layout", ["tar", "val"])
def test_validation_images(source, tmp_path, layout):
    write_folder(source / "train")
    val = {f"ILSVRC2012_val_0000000{i}.JPEG": jpeg(i) for i in (1, 2)}
    if layout == "tar":
        (source / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(val))
    else:
        write_folder(source / "val", val)
    text = "val/ILSVRC2012_val_00000002.JPEG 0\nval/ILSVRC2012_val_00000001.JPEG 1\ntrain/n01/n01_30.JPEG 0\n"
    (source / "ImageNet_LT_val.txt").write_text(text)
    listing = imagenet_lt(source, tmp_path)
    read = [listing.read(item) for item in listing.splits["reference"]]
    assert read == [*reversed(val.values()), IMAGES["n01/n01_30.JPEG"]]
    assert list(listing.class_names) == ["n01", "n02"]
    assert len(listing.problems) == 0


def test_lists_elsewhere(source, tmp_path):
    write_folder(tmp_path / "images" / "train")
    assert len(imagenet_lt(tmp_path / "images", tmp_path, source).splits["train"]) == 3


def test_reports_problems(source, tmp_path):
    write_folder(source / "train")
    (source / "train" / "n01" / "n01_2.JPEG").unlink()
    train = source / "ImageNet_LT_train.txt"
    train.write_text(TRAIN + "train/n03/n03_1.JPEG 1\nwrong\ntrain/n02/n02_7.JPEG 1\n")
    listing = imagenet_lt(source, tmp_path)
    assert listing.problems.wrong == {
        "list lines that are not '<path> <class id>'": [f"{train}:5: wrong"],
        "paths that a list has twice": [f"{train}:6: train/n02/n02_7.JPEG 1"],
        "classes whose images are in several folders": ["class 1: n02, n03"],
        "listed images that are missing": [f"{train}: train/n01/n01_2.JPEG"],
    }
    assert [item.name for item in listing.splits["train"]] == [f"train/{n}" for n in (NAMES[4], NAMES[1], NAMES[5])]
    assert list(listing.class_names) == ["n01", "n02"]


def test_refuses_missing_things(source, tmp_path):
    with pytest.raises(UserError, match=r"There is no .*nothing; give ILSVRC2012_img_train\.tar"):
        imagenet_lt(tmp_path / "nothing", tmp_path)
    with pytest.raises(UserError, match=r"holds no training images .* ILSVRC2012_img_train\.tar, a folder train, or"):
        imagenet_lt(source, tmp_path)
    write_folder(source / "train", {"n09/n09_1.JPEG": b""})
    with pytest.raises(UserError, match=r"None of the 3 images of .*ImageNet_LT_train\.txt is in"):
        imagenet_lt(source, tmp_path)
    write_folder(source / "train")
    (source / "ImageNet_LT_val.txt").write_text("val/ILSVRC2012_val_00000001.JPEG 0\n")
    with pytest.raises(UserError, match=r"neither ILSVRC2012_img_val\.tar nor a folder val; add"):
        imagenet_lt(source, tmp_path)
    (source / "ImageNet_LT_val.txt").unlink()
    with pytest.raises(UserError, match=r"get the public list ImageNet_LT_val\.txt of ImageNet-LT \(https"):
        imagenet_lt(source, tmp_path)
    (source / "ILSVRC2012_img_train.tar").write_bytes(nested_tar()[:3000])
    (source / "ImageNet_LT_val.txt").write_text(VAL)
    with pytest.raises(UserError, match="damaged or cut off"):
        imagenet_lt(source, tmp_path)


# --- ImageNet ------------------------------------------------------------------------------------------------------------

WNIDS = [f"n{1440764 + 37 * i:08d}" for i in range(1000)]
# Two images in the first class, one in every other; in no order, as in folders and in archives of other people.
TRAIN_IMAGES = {f"{w}/{w}_{n}.JPEG": f"{w} {n}".encode() for w in WNIDS for n in ([10, 7] if w == WNIDS[0] else [10])}
TRAIN_IMAGES = dict(random.Random(0).sample(sorted(TRAIN_IMAGES.items()), len(TRAIN_IMAGES)))
VAL_LABELS = {f"ILSVRC2012_val_0000000{i}.JPEG": label for i, label in ((1, 65), (2, 970), (3, 0), (4, 65))}
VAL_IMAGES = {name: jpeg(label % 256) for name, label in VAL_LABELS.items()}
VAL_IN_CLASSES = {f"{WNIDS[label]}/{name}": VAL_IMAGES[name] for name, label in VAL_LABELS.items()}
VAL_LIST = "".join(f"{name} {label}\n" for name, label in VAL_LABELS.items())
TRAIN_TAR = nested_tar(TRAIN_IMAGES)
TRAIN_ITEMS = [(f"train/{name}", WNIDS.index(name.split("/")[0])) for name in sorted(TRAIN_IMAGES)]
VAL_ITEMS = [(f"val/{name}", label) for name, label in VAL_LABELS.items()]


def named(items):
    return [(item.name, item.label) for item in items]


@pytest.fixture
def ilsvrc(tmp_path):
    """A folder with the public archive of the training images alone."""
    folder = tmp_path / "ilsvrc"
    folder.mkdir()
    (folder / "ILSVRC2012_img_train.tar").write_bytes(TRAIN_TAR)
    return folder


@pytest.mark.parametrize("val", ["tar and list", "folder and list", "val", "ILSVRC2012_img_val"])
@pytest.mark.parametrize(
    "train", ["tar", "tar in folder", "flat tar", "train", "in train", "ILSVRC2012_img_train", "direct"]
)
def test_imagenet_is_the_same_in_every_layout(tmp_path, train, val):
    source = given = tmp_path / "images"
    source.mkdir()
    if train in ("tar", "tar in folder"):
        (source / "ILSVRC2012_img_train.tar").write_bytes(TRAIN_TAR)
        given = source / "ILSVRC2012_img_train.tar" if train == "tar" else source
    elif train == "flat tar":
        given = source / "images.tar"
        given.write_bytes(tar_bytes({f"./train/{name}": data for name, data in TRAIN_IMAGES.items()}))
    else:
        folder = source if train == "direct" else source / train.removeprefix("in ")
        write_folder(folder, TRAIN_IMAGES | {f"{WNIDS[3]}/notes.xml": b"passed over"})
        given = folder if train == "in train" else source
    if val == "tar and list":
        (source / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(VAL_IMAGES))
    else:
        write_folder(source / val.split()[0].replace("folder", "val"), VAL_IMAGES if "list" in val else VAL_IN_CLASSES)
    if "list" in val:
        (source / "val.txt").write_text(VAL_LIST)

    listing = imagenet(given, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()
    assert list(listing.class_names) == WNIDS
    assert listing.published_counts == {"train": 1281167, "reference": 50000}
    assert "the validation set" in listing.description
    assert len(listing.problems) == 0
    read, splits = pickle.loads(pickle.dumps((listing.read, listing.splits)))
    assert {split: named(items) for split, items in splits.items()} == {"train": TRAIN_ITEMS, "reference": VAL_ITEMS}
    assert all(read(item) == TRAIN_IMAGES[item.name.removeprefix("train/")] for item in splits["train"][::50])
    assert [read(item) for item in splits["reference"]] == list(VAL_IMAGES.values())


@pytest.mark.parametrize("val", ["no images", "tar without list", "folder without list"])
def test_imagenet_without_a_reference_says_so(ilsvrc, tmp_path, capsys, val):
    (ilsvrc / "val.txt").write_text(VAL_LIST)
    if val == "tar without list":
        (ilsvrc / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(VAL_IMAGES))
    elif val == "folder without list":
        write_folder(ilsvrc / "val", VAL_IMAGES)
    if val != "no images":
        (ilsvrc / "val.txt").unlink()
    listing = imagenet(ilsvrc, tmp_path)
    assert list(listing.splits) == ["train"]
    assert "validation" not in listing.description
    said = capsys.readouterr().out
    missing = "ilsvrc holds no validation images (a folder val, or" if val == "no images" else str(ilsvrc / "val.txt")
    assert said.startswith("Note: ") and missing in said
    assert said.endswith("; metrics will compare with the training images.\n")


def test_imagenet_reports_problems_of_the_list(ilsvrc, tmp_path):
    (ilsvrc / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(VAL_IMAGES))
    (ilsvrc / "val.txt").write_text(VAL_LIST + "ILSVRC2012_val_00000009.JPEG 4\nwrong\n")
    listing = imagenet(ilsvrc, tmp_path)
    assert listing.problems.wrong == {
        "list lines that are not '<path> <class id>'": [f"{ilsvrc / 'val.txt'}:6: wrong"],
        "listed images that are missing": [f"{ilsvrc / 'val.txt'}: val/ILSVRC2012_val_00000009.JPEG"],
    }
    assert named(listing.splits["reference"]) == VAL_ITEMS


def test_imagenet_reports_validation_images_of_other_classes(ilsvrc, tmp_path):
    write_folder(ilsvrc / "val", VAL_IN_CLASSES | {"n99999999/ILSVRC2012_val_00000005.JPEG": b""})
    listing = imagenet(ilsvrc, tmp_path)
    where = ilsvrc / "val"
    assert listing.problems.wrong == {
        "validation images of classes without training images": [
            f"{where}: n99999999/ILSVRC2012_val_00000005.JPEG",
        ]
    }
    assert named(listing.splits["reference"]) == VAL_ITEMS


def test_imagenet_names_validation_images_apart(ilsvrc, tmp_path):
    write_folder(ilsvrc / "val", {f"{wnid}/1.png": b"" for wnid in WNIDS[:2]})
    names = [f"val/{wnid}/1.png" for wnid in WNIDS[:2]]
    assert named(imagenet(ilsvrc, tmp_path).splits["reference"]) == [(names[0], 0), (names[1], 1)]


def test_imagenet_refuses_other_things(ilsvrc, tmp_path):
    tar, val_list = ilsvrc / "ILSVRC2012_img_train.tar", ilsvrc / "val.txt"
    with pytest.raises(UserError, match=r"There is no .*nothing; give ILSVRC2012_img_train\.tar"):
        imagenet(tmp_path / "nothing", tmp_path)
    with pytest.raises(UserError, match=r"holds no training images .* ILSVRC2012_img_train\.tar, a folder train, or"):
        imagenet(tmp_path, tmp_path)
    write_folder(ilsvrc / "val", VAL_IMAGES)
    val_list.write_text(VAL_LIST.replace(" 970", " 1000"))
    with pytest.raises(UserError, match=rf"{val_list} has the class id 1000, but class ids are 0 to 999, .* Caffe"):
        imagenet(ilsvrc, tmp_path)
    val_list.write_text("ILSVRC2012_val_00000009.JPEG 4\n")
    with pytest.raises(UserError, match=rf"None of the 1 images of {val_list} is in {ilsvrc / 'val'}"):
        imagenet(ilsvrc, tmp_path)
    tar.write_bytes(TRAIN_TAR[: len(TRAIN_TAR) // 2])
    with pytest.raises(UserError, match="damaged or cut off"):
        imagenet(ilsvrc, tmp_path)


@pytest.mark.parametrize(("wnids", "count"), [(WNIDS[1:], 999), ([*WNIDS, "n99999999"], 1001), (["n1"], 0)])
def test_imagenet_refuses_other_numbers_of_classes(tmp_path, wnids, count):
    # Class ids would be those of other classes.
    tar = tmp_path / "ILSVRC2012_img_train.tar"
    tar.write_bytes(nested_tar({f"{wnid}/{wnid}_1.JPEG": b"" for wnid in wnids}))
    says = rf"{re.escape(str(tar))} has training images of {count} classes instead of ImageNet's 1000; .* image_folder"
    with pytest.raises(UserError, match=says):
        imagenet(tar, tmp_path)
