"""Data sets of StyleGAN2-ADA, StyleGAN3 and EDM: images and ``dataset.json`` in a zip or folder."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from noisytwins_jax.data.prepare import shards
from noisytwins_jax.data.prepare.command import main
from noisytwins_jax.data.prepare.folders import image_folder
from noisytwins_jax.data.prepared import prepared_splits
from noisytwins_jax.data.source import read_images
from noisytwins_jax.evaluation.image_reading import read_image_files
from noisytwins_jax.utils.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
NAMES = [f"00000/img{i:08d}.png" for i in range(6)]
LABELS = dict(zip(NAMES, [2, 0, 1, 0, 0, 1], strict=True))


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def write(path, labels=LABELS, around="", images=IMAGES, names=NAMES, **others):
    """A data set as zip (stored, as published) or folder; `labels`: class by name, entries, or the text of the file."""
    files = dict(zip(names, map(png, images), strict=True))
    for file, value in {"dataset": labels, **others}.items():
        entries = list(map(list, value.items())) if isinstance(value, dict) else value
        if value is not False:
            files[f"{file}.json"] = value if isinstance(value, bytes) else json.dumps({"labels": entries}).encode()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(around + name, data)
    else:
        for name, data in files.items():
            (path / around / name).parent.mkdir(parents=True, exist_ok=True)
            (path / around / name).write_bytes(data)
    return path


def listed(source, **options):
    return image_folder(source, source.parent / "unpacked", **options)


def items(listing):
    return {item.name: listing.class_names[item.label] for item in listing.splits["train"]}


def refused(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message and message[-1] == ".", message
    return message


@pytest.mark.parametrize("kind", ["", ".zip"])
@pytest.mark.parametrize("around", ["", "cifar/"])
def test_classes_are_those_of_the_file(tmp_path, kind, around):
    source = write(tmp_path / f"data{kind}", around=around)
    listing = listed(source)
    assert list(listing.class_names) == ["0", "1", "2"] and not listing.problems
    assert [item.name for item in listing.splits["train"]] == NAMES
    assert items(listing) == {name: str(label) for name, label in LABELS.items()}
    assert [listing.read(item) for item in listing.splits["train"]] == [*map(png, IMAGES)]
    found = read_image_files(source)
    assert found.class_names == ("0", "1", "2") and found.labels.tolist() == [*LABELS.values()]
    assert np.array_equal(found.take(np.arange(6))["image"], IMAGES)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_arrive_bit_for_bit(tmp_path, monkeypatch, channels):
    monkeypatch.setattr(shards, "write_shards", lambda missing, *_: [shards.write_shard(shard) for shard in missing])
    images = IMAGES[..., :channels]
    source = write(tmp_path / "data.zip", images=images)
    main(["image_folder", f"--source={source}", f"--data_dir={tmp_path}", "--resolution=8", f"--channels={channels}"])
    train = prepared_splits("image_folder", resolution=8, directory=str(tmp_path)).train
    batch = read_images(train, np.arange(6))
    found = {image.tobytes(): int(label) for image, label in zip(batch["image"], batch["label"], strict=True)}
    expected = dict(zip((image.tobytes() for image in images), LABELS.values(), strict=True))
    assert found == expected and train.class_names == ("0", "1", "2")


def test_backslashes_and_entries_without_images(tmp_path):
    labels = {f".\\{name}".replace("/", "\\"): label for name, label in LABELS.items()} | {"elsewhere.png": 9}
    assert items(listed(write(tmp_path / "a.zip", labels))) == {name: str(label) for name, label in LABELS.items()}
    members = [name.replace("/", "\\") for name in NAMES]
    assert items(listed(write(tmp_path / "b.zip", names=members))) == items(listed(tmp_path / "a.zip"))


def test_another_file_of_labels(tmp_path):
    source = write(tmp_path / "data.zip", lt_100=dict.fromkeys(NAMES, 0))
    assert list(listed(source, labels_json="lt_100.json").class_names) == ["0"]
    assert "no file lt.json beside its images" in refused(listed, source, labels_json="lt.json")
    assert "both give classes" in refused(listed, source, labels_json="lt_100.json", train_list=tmp_path / "list.txt")


@pytest.mark.parametrize("labels", [None, False], ids=["null", "no file"])
@pytest.mark.parametrize("kind", ["", ".zip"])
def test_without_labels_the_images_are_one_class(tmp_path, labels, kind):
    """The folders, of a thousand images each, are no classes."""
    names = [f"{i % 2:05d}/img{i % 2:05d}{i:03d}.png" for i in range(6)]
    source = write(tmp_path / f"data{kind}", labels, names=names)
    listing = listed(source)
    assert list(listing.class_names) == ["all"] and items(listing) == dict.fromkeys(sorted(names), "all")
    assert read_image_files(source).class_names == ("all",)


@pytest.mark.parametrize("content", [b'{"name": "pets", "images": 6}', b"[1, 2]"])
def test_a_file_of_something_else_is_left_alone(tmp_path, content):
    names = [f"{'cat' if i % 2 else 'dog'}/{i}.png" for i in range(6)]
    source = write(tmp_path / "pets", content, names=names)
    assert list(listed(source).class_names) == ["cat", "dog"]
    assert read_image_files(source).class_names == ("cat", "dog")


def test_images_and_labels_that_do_not_match(tmp_path):
    missing = write(tmp_path / "missing.zip", {name: LABELS[name] for name in NAMES[1:]})
    problems = listed(missing).problems.wrong
    assert problems == {
        "images without a label in dataset.json": [NAMES[0]],
    }
    assert f"1 images without a label in dataset.json, for example {NAMES[0]}" in refused(read_image_files, missing)
    cut = write(tmp_path / "cut.zip", LABELS, images=IMAGES[:-1], names=NAMES[:-1])
    assert listed(cut).problems.wrong == {"labels in dataset.json of images that are not there": [NAMES[-1]]}
    assert f"1 labels in dataset.json of images that are not there, for example {NAMES[-1]}" in refused(
        read_image_files, cut
    )
    twice = write(tmp_path / "twice.zip", [[NAMES[0], 1], *map(list, LABELS.items()), [NAMES[1], 0]])
    listing = listed(twice)
    assert listing.problems.wrong["images with two labels in dataset.json"] == [f"{NAMES[0]}: 1 and 2"]
    assert NAMES[0] not in items(listing) and NAMES[1] in items(listing)
    assert "images with two labels" in refused(read_image_files, twice)
    ambiguous = [[name, label] for name in NAMES for label in (0, 1)]
    assert not items(listed(write(tmp_path / "ambiguous.zip", ambiguous)))
    gaps = listed(write(tmp_path / "gaps.zip", {name: 3 * label + 1 for name, label in LABELS.items()}))
    assert list(gaps.class_names) == ["1", "4", "7"] and len(gaps.problems.wrong["classes without images"]) == 5
    assert read_image_files(tmp_path / "gaps.zip").class_names == ("1", "4", "7")  # these need not be all classes
    other = write(tmp_path / "other.zip", {f"x/{name}": label for name, label in LABELS.items()})
    for read in (listed, read_image_files):
        message = refused(read, other)
        assert (
            f"labels none of the 6 images beside it: it names x/{NAMES[0]}, and the first image is {NAMES[0]}"
            in message
        )


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({name: [0.0, 1.0] for name in NAMES}, "labels images with vectors"),
        ({name: [1] for name in NAMES}, "labels images with vectors"),
        ({name: -1 for name in NAMES}, f'has the entry ["{NAMES[0]}", -1]'),
        ({name: True for name in NAMES}, "has the entry"),
        ({name: 10**9 for name in NAMES}, "has the entry"),
        ({name: 0.5 for name in NAMES}, "has the entry"),
        ({name: "cat" for name in NAMES}, "has the entry"),
        ([1, 2], "has the entry 1"),
        ([], "has the entry []"),
        ("cat", 'has the entry "cat"'),
        (b'{"labels": [', "cannot be read as JSON"),
        (b"\xff\xfe\xff", "cannot be read as JSON"),
    ],
)
def test_labels_that_are_no_class_ids(tmp_path, labels, says):
    source = write(tmp_path / "data.zip", labels)
    for read in (listed, read_image_files):
        assert says in refused(read, source)


def test_the_command_reports_labels_before_it_writes(tmp_path, capsys):
    source = write(tmp_path / "data.zip", {name: LABELS[name] for name in NAMES[1:]})
    with pytest.raises(SystemExit) as exit:
        main(["image_folder", f"--source={source}", f"--data_dir={tmp_path / 'data'}", "--resolution=8"])
    printed = capsys.readouterr()
    assert exit.value.code == 2 and printed.err.count("Error: ") == 1
    assert f"1 images without a label in dataset.json:\n  {NAMES[0]}\n" in printed.err
    assert not [*(tmp_path / "data").glob("**/*.array_record*")]


def test_archives_without_labels_are_refused_for_evaluation(tmp_path):
    source = write(tmp_path / "pets.zip", False, names=[f"cat/{i}.png" for i in range(6)])
    assert "unpack it, and give the folder" in refused(read_image_files, source)
    damaged = write(tmp_path / "damaged.zip", names=NAMES)
    data = bytearray(damaged.read_bytes())
    data[80:160] = bytes(80)
    damaged.write_bytes(data)
    assert "00000/img00000000.png cannot be read as an image" in refused(read_image_files, damaged)
