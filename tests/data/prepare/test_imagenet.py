import io
import pickle
import tarfile

import pytest
from PIL import Image

from noisytwins_jax.data.prepare.imagenet import imagenet_lt
from noisytwins_jax.errors import UserError

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


def nested_tar():
    wnids = sorted({name.split("/")[0] for name in NAMES})
    inner = {w: {n.split("/")[1]: data for n, data in IMAGES.items() if n.startswith(w)} for w in wnids}
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
