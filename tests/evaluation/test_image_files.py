import zipfile

import numpy as np
import pytest
from PIL import Image

from noisytwins_jax.data.source import ArraySource
from noisytwins_jax.evaluation import image_files
from noisytwins_jax.evaluation.image_files import ALL, FileFakes, OneClass
from noisytwins_jax.evaluation.image_reading import read_image_files
from noisytwins_jax.utils.errors import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 8, 8, 1), np.uint8)
COLOUR = RNG.integers(0, 256, (12, 8, 8, 3), np.uint8)
LABELS = np.repeat([0, 1, 2], 4)


def write_folder(folder, images, labels=None, names=("0", "2", "10")):
    """PNG files, in a folder for each class if there are labels."""
    for i, image in enumerate(images):
        place = folder if labels is None else folder / names[labels[i]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(place / f"{i:03d}.png")
    return folder


def refused(*arguments) -> str:
    with pytest.raises(UserError) as error:
        read_image_files(*arguments)
    message = str(error.value)
    assert "\n" not in message and message[-1] == ".", message
    return message


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_class_folders_are_an_image_source(tmp_path, images):
    found = read_image_files(write_folder(tmp_path / "samples", images, LABELS))
    assert found.name == "samples" and len(found) == 12
    assert found.class_names == ("0", "2", "10")  # as numbers
    assert (found.resolution, found.channels, found.num_classes) == (8, images.shape[-1], 3)
    assert found.labels.dtype == np.int32 and found.class_counts.tolist() == [4, 4, 4]
    batch = found.take(np.array([5, 0, 5]))
    assert np.array_equal(batch["image"], images[[5, 0, 5]]) and batch["label"].tolist() == [1, 0, 1]
    assert np.array_equal(found[7]["image"], images[7]) and found[7]["label"] == 1
    assert found.fingerprint == ArraySource(images, LABELS, found.class_names, "same").fingerprint


def test_flat_folder_is_one_class_and_junk_is_left_alone(tmp_path):
    folder = write_folder(tmp_path / "flat", GREY)
    for junk in (".DS_Store", "._000.png", "Thumbs.db", "desktop.ini", "notes.txt"):
        (folder / junk).write_bytes(b"junk")
    (folder / "__MACOSX").mkdir()
    (folder / ".hidden").mkdir()
    found = read_image_files(f"{folder}/")
    assert found.class_names == (ALL,) and np.array_equal(found.take(np.arange(12))["image"], GREY)


def test_names_that_are_no_numbers_are_sorted_as_text(tmp_path):
    folder = write_folder(tmp_path, GREY, LABELS, names=["b", "10", "9"])
    assert read_image_files(folder).class_names == ("10", "9", "b")


def test_fingerprint_is_of_content(tmp_path):
    one = read_image_files(write_folder(tmp_path / "one", GREY, LABELS, names="abc"))
    renamed = read_image_files(write_folder(tmp_path / "renamed", GREY, LABELS, names="xyz"))
    changed = GREY.copy()
    changed[11, 7, 7] ^= 1
    pixel = read_image_files(write_folder(tmp_path / "pixel", changed, LABELS, names="abc"))
    divided = read_image_files(write_folder(tmp_path / "divided", GREY, np.repeat([0, 1, 2], [4, 5, 3]), names="abc"))
    assert one.fingerprint == renamed.fingerprint
    assert len({x.fingerprint for x in (one, pixel, divided)}) == 3


def test_one_image_of_colours_makes_all_rgb(tmp_path):
    grey, deep = GREY[0, ..., 0], np.full((8, 8), 257 * 200, np.uint16)
    see_through = np.concatenate([COLOUR[1], np.full((8, 8, 1), 7, np.uint8)], axis=-1)
    for i, picture in enumerate((grey, COLOUR[0], see_through, deep)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    found = read_image_files(tmp_path)
    assert found.channels == 3
    images = found.take(np.arange(4))["image"]
    assert np.array_equal(images[0], np.repeat(GREY[0], 3, axis=-1))
    assert np.array_equal(images[1], COLOUR[0]) and np.array_equal(images[2], COLOUR[1]) and (images[3] == 200).all()


def test_conversion_of_all_images(tmp_path):
    grey = read_image_files(write_folder(tmp_path / "grey", GREY))
    assert grey.convert(1) is grey
    colour = grey.convert(3)
    assert colour.channels == 3 and np.array_equal(colour.take(np.arange(12))["image"], np.repeat(GREY, 3, axis=-1))
    back = read_image_files(write_folder(tmp_path / "colour", np.repeat(GREY, 3, axis=-1))).convert(1)
    assert np.array_equal(back.take(np.arange(12))["image"], GREY)
    assert back.fingerprint == grey.fingerprint


@pytest.mark.parametrize(
    ("images", "labels", "arrange"),
    [("images", "labels", (0, 1, 2, 3)), ("arr_0", "arr_1", (0, 1, 2, 3)), ("x", "y", (0, 3, 1, 2))],
)
def test_arrays(tmp_path, images, labels, arrange):
    ids = np.array([7, 0, 12] * 4)
    np.savez(tmp_path / "a.npz", **{images: COLOUR.transpose(arrange), labels: ids})
    found = read_image_files(tmp_path / "a.npz")
    assert found.class_names == ("0", "7", "12") and found.labels.tolist() == [1, 0, 2] * 4
    assert np.array_equal(found.take(np.arange(12))["image"], COLOUR) and found.resolution == 8
    np.savez(tmp_path / "b.npz", **{images: COLOUR.transpose(arrange)})
    assert read_image_files(tmp_path / "b.npz").class_names == (ALL,)


def test_what_cannot_be_read_is_refused(tmp_path):
    assert "There is no" in refused(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("x")
    assert "neither a folder" in refused(tmp_path / "a.txt")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no images" in refused(empty)
    damaged = write_folder(tmp_path / "damaged", GREY)
    data = (damaged / "003.png").read_bytes()
    (damaged / "003.png").write_bytes(b"no image")
    assert "003.png cannot be read as an image" in refused(damaged)
    (damaged / "003.png").write_bytes(data[: len(data) // 2])  # its header is whole
    with pytest.raises(UserError, match=r"003\.png cannot be read as an image"):
        read_image_files(damaged).take(np.arange(12))


def test_arrays_in_a_folder_are_named_first(tmp_path):
    np.savez(tmp_path / "step9.npz", images=GREY)
    assert f"holds arrays of images; give one of their files, for example {tmp_path}/step9.npz." in refused(tmp_path)
    Image.new("L", (16, 12)).save(tmp_path / "step9.png")  # a grid, as --mode=sample writes it
    assert f"for example {tmp_path}/step9.npz; if you mean the images beside them" in refused(tmp_path)
    (tmp_path / "step9.png").unlink()
    write_folder(tmp_path, GREY, LABELS)
    assert read_image_files(tmp_path).num_classes == 3  # statistics of a data set, say


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html lang='en'>", "it begins with '<!DOCTYPE html><html lan'"),
        (b"", "it is empty"),
        (b"\x93NUMPY\x01\x00v\x00", r"it begins with '\x93NUMPY"),
        (b"PK\x03\x04 and no end", "cut off"),
    ],
)
def test_what_is_only_called_npz_is_refused(tmp_path, content, message):
    (tmp_path / "a.npz").write_bytes(content)
    said = refused(tmp_path / "a.npz")
    assert message in said and "pickle" not in said


def test_other_archives_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.array([None]))
    said = refused(tmp_path / "a.npz")
    assert "holds Python objects" in said and "pickle" not in said
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images", b"no array")
    assert "no numpy array" in refused(tmp_path / "a.npz")


def test_folders_of_another_layout_are_refused(tmp_path):
    folder = write_folder(tmp_path / "one", GREY, LABELS)
    (folder / "11").mkdir()
    assert "class folder" in refused(folder) and "one/11 holds no images" in refused(folder)
    (folder / "11" / "deeper").mkdir()
    assert "11/deeper" in refused(folder)
    mixed = write_folder(write_folder(tmp_path / "mixed", GREY, LABELS), GREY)
    assert "beside folders" in refused(mixed)


def test_images_of_several_sizes_are_refused(tmp_path):
    folder = write_folder(tmp_path, GREY)
    Image.new("L", (16, 12)).save(folder / "005.png")
    assert "000.png of 8x8 and 005.png of 16x12" in refused(folder)
    oblong = tmp_path / "oblong"
    oblong.mkdir()
    Image.new("L", (16, 12)).save(oblong / "a.png")
    assert "16x12 pixels, but evaluation takes squares" in refused(oblong)
    Image.fromarray(np.zeros((8, 8), np.float32)).save(oblong / "a.tif")
    (oblong / "a.png").unlink()
    assert "floating-point" in refused(oblong)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"samples": GREY}, "the arrays samples, but"),
        ({"images": GREY / 255.0}, "float64; save them as uint8"),
        ({"images": GREY[..., 0]}, "layout NHWC"),
        ({"x": COLOUR}, "layout NCHW"),
        ({"images": GREY[:, :4]}, "squares"),
        ({"images": GREY[:0]}, "holds no images"),
        ({"images": GREY, "labels": LABELS[:11]}, r"labels is int64 of shape \[11\]"),
        ({"images": GREY, "labels": LABELS - 1}, "class id from 0"),
        ({"arr_0": GREY, "arr_1": LABELS / 2}, "arr_1 is float64"),
        ({"images": GREY, "labels": LABELS, "class_names": np.array(["a", "b"])}, "2 class_names, but class id 2"),
        ({"images": GREY, "labels": LABELS, "class_names": np.array([b"a", b"b", b"c"])}, "no list of strings"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_image_files(tmp_path / "a.npz")


def test_names_of_labels(tmp_path):
    names = np.array([f"bird {c}" for c in range(13)])
    np.savez(tmp_path / "a.npz", images=COLOUR, labels=np.array([7, 0, 12] * 4), class_names=names)
    found = read_image_files(tmp_path / "a.npz")
    assert found.class_names == ("bird 0", "bird 7", "bird 12") and found.class_ids == (0, 7, 12) and found.named
    grey = found.convert(1)
    assert grey.class_ids == (0, 7, 12) and grey.named
    np.savez(tmp_path / "b.npz", images=COLOUR, labels=np.array([7, 0, 12] * 4))
    unnamed = read_image_files(tmp_path / "b.npz")
    assert unnamed.class_ids == (0, 7, 12) and not unnamed.named and not unnamed.convert(1).named


def test_source_without_its_classes():
    source = ArraySource(COLOUR, LABELS, "abc", "abc")
    whole = OneClass(source)
    assert len(whole) == 12 and whole.class_counts.tolist() == [12] and whole.fingerprint == source.fingerprint
    batch = whole.take(np.array([11, 3]))
    assert np.array_equal(batch["image"], COLOUR[[11, 3]]) and batch["label"].tolist() == [0, 0]
    assert whole[4]["label"] == 0 and np.array_equal(whole[4]["image"], COLOUR[4])


def test_fakes_are_sorted_by_class_and_read_some_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "_READ_BATCH", 5)
    np.savez(tmp_path / "a.npz", images=COLOUR, labels=np.tile([2, 0, 1], 4))
    images = read_image_files(tmp_path / "a.npz")
    sizes, read = [], images._read
    images._read = lambda indices: sizes.append(len(indices)) or read(indices)
    fakes = FileFakes(images, images.labels, per_device_batch=2)
    assert fakes.image_size == (8, 8, 3)
    labels = np.repeat([0, 1, 2], 4)
    seen, w = fakes.extract_features(lambda x: (x[:, :, :, 0],), labels, np.arange(12))
    order = [1, 4, 7, 10, 2, 5, 8, 11, 0, 3, 6, 9]
    assert np.array_equal(seen, COLOUR[order, ..., 0]) and w.shape == (12, 0) and sizes == [5, 5, 2]
