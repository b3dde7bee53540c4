import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from waiting import TIMEOUT, wait_until

from noisytwins_jax.data.prepare import command, shards
from noisytwins_jax.data.prepared import INFO_FILE, prepared_splits
from noisytwins_jax.utils.errors import UserError

COUNTS = {"train": {"ant": 30, "bee": 12, "cow": 5}, "val": {"ant": 4, "bee": 3, "cow": 2}}


def save_photo(path, seed, size=(20, 14)):
    """A smooth coloured picture of its own for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(coarse).resize(size).save(path, "JPEG")


def photos(folder, counts=COUNTS, size=(20, 14)):
    """A folder with splits and classes of photographs; returns it."""
    seed = 0
    for split, classes in counts.items():
        for name, count in classes.items():
            for i in range(count):
                save_photo(folder / split / name / f"{i:04}.jpg", seed, size)
                seed += 1
    return folder


def run(*arguments):
    """What the command prints on stdout and stderr, and its status."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code
    return out.getvalue(), err.getvalue(), status


def folder_arguments(source, data_dir, *more):
    return "image_folder", f"--source={source}", f"--data_dir={data_dir}", "--resolution=8", "--name=farm", *more


def prepared(data_dir, name="farm", resolution=8):
    return data_dir / name / f"{resolution}px" / "1.0.0"


def contents(directory):
    """All files of a folder by their names."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def assert_refused(printed, *, data_dir=None, says):
    """One sentence on stderr, nothing on stdout that looks like a result, and nothing that counts as whole."""
    out, err, status = printed
    last = err.strip().splitlines()[-1]
    assert status == 2
    assert last.startswith("Error: ") and says in last
    assert "Traceback" not in err and "Prepared in" not in out
    if data_dir is not None and data_dir.is_dir():
        assert not list(data_dir.glob(f"**/{command.VERSION}"))
    return last


@pytest.fixture
def in_process(monkeypatch):
    """Writes shards in this process, where starting others is not what is tested."""

    def write_shards(missing, jobs, description):
        for shard in missing:
            shards.write_shard(shard)

    monkeypatch.setattr(shards, "write_shards", write_shards)


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    """A source, its prepared data and what the command printed."""
    folder = tmp_path_factory.mktemp("farm")
    source = photos(folder / "photos")
    return source, folder / "data", run(*folder_arguments(source, folder / "data", "--jobs=2"))


def test_prints_results_and_progress_apart(farm):
    _, data_dir, (out, err, status) = farm
    assert status == 0
    assert out.startswith("Listing the images of image_folder.\n56 images in ")
    assert "3 classes, 47 train, 9 reference images of 8 px (center-lanczos-white-upright)" in out
    assert out.endswith(f"Prepared in {prepared(data_dir)}; its class counts are plotted in class_counts.png there.\n")
    assert "Preparing farm: 100%" in err and "56/56" in err
    assert "Preparing" not in out and "classes" not in err


def test_images_are_pillows(farm):
    source, data_dir, _ = farm
    splits = prepared_splits("farm", resolution=8, directory=str(data_dir))
    assert splits.train.class_names == ("ant", "bee", "cow")
    for split, folder in ((splits.train, "train"), (splits.reference, "val")):
        expected = {}
        for path in sorted((source / folder).glob("*/*.jpg")):
            square = Image.open(path).crop((3, 0, 17, 14))
            pixels = np.asarray(square.resize((8, 8), Image.Resampling.LANCZOS))
            expected[pixels.tobytes()] = path.parent.name
        assert len(expected) == sum(COUNTS[folder].values())
        found = {split[i]["image"].tobytes(): splits.train.class_names[split[i]["label"]] for i in range(len(split))}
        assert found == expected
        assert split.class_counts.tolist() == list(COUNTS[folder].values())


def test_says_how_it_was_prepared(farm):
    _, data_dir, _ = farm
    info = json.loads((prepared(data_dir) / INFO_FILE).read_text())
    assert (info["name"], info["resolution"], info["channels"]) == ("farm", 8, 3)
    assert info["preprocessing"] == "center-lanczos-white-upright"
    assert info["imbalance_factor"] == pytest.approx(5 / 30)
    assert info["group_sizes"] == {"head": 0, "medium": 1, "tail": 2}
    assert (info["left_out"], info["converted"], info["options"]) == ({}, {}, {})
    assert {split: facts["images"] for split, facts in info["splits"].items()} == {"train": 47, "reference": 9}
    assert not (data_dir / "farm" / "8px" / "1.0.0.incomplete").exists()
    assert not (prepared(data_dir) / command.PROBLEMS_FILE).exists()
    picture = Image.open(prepared(data_dir) / "class_counts.png")
    picture.load()
    assert picture.format == "PNG"


def test_tfds_reads_it_without_tensorflow(farm):
    pytest.importorskip("tensorflow_datasets")
    _, data_dir, _ = farm
    # In a process of its own, which says whether it had to import TensorFlow.
    program = f"""
import json
import sys
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory({str(prepared(data_dir))!r})
info = builder.info
rows = {{
    split: [[row["image"].tobytes().hex(), int(row["label"]), row["id"].decode()] for row in source]
    for split, source in builder.as_data_source().items()
}}
shape = list(info.features["image"].shape)
assert "tensorflow" not in sys.modules
print(json.dumps([info.name, str(info.version), info.features["label"].names, shape, rows]))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == 0, result.stderr
    name, version, class_names, shape, rows = json.loads(result.stdout)
    assert (name, version, class_names, shape) == ("farm", "1.0.0", ["ant", "bee", "cow"], [8, 8, 3])
    splits = prepared_splits("farm", resolution=8, directory=str(data_dir))
    for split, folder in (("train", "train"), ("reference", "val")):
        source = getattr(splits, split)
        own = [(source[i]["image"].tobytes().hex(), int(source[i]["label"])) for i in range(len(source))]
        assert [(image, label) for image, label, _ in rows[split]] == own
        ids = [id for _, _, id in rows[split]]
        names = [f"{folder}/{c}/{i:04}.jpg" for c, count in COUNTS[folder].items() for i in range(count)]
        assert sorted(ids) == names
        assert [class_names[label] for _, label, _ in rows[split]] == [id.split("/")[1] for id in ids]


def test_jobs_and_place_change_nothing(farm, tmp_path):
    source, data_dir, _ = farm
    moved = shutil.copytree(source, tmp_path / "moved" / source.name)
    assert run(*folder_arguments(moved, tmp_path / "data", "--jobs=1"))[2] == 0
    assert contents(prepared(tmp_path / "data")) == contents(prepared(data_dir))


def test_second_run_says_it_is_there(farm):
    source, data_dir, _ = farm
    before = {path: path.stat().st_mtime_ns for path in prepared(data_dir).iterdir()}
    out, err, status = run(*folder_arguments(source, data_dir))
    assert (status, err) == (0, "")
    assert out.endswith(f"{prepared(data_dir)} exists already, prepared in the same way.\n")
    assert {path: path.stat().st_mtime_ns for path in prepared(data_dir).iterdir()} == before
    assert [path.name for path in prepared(data_dir).parent.iterdir()] == ["1.0.0"]


def test_other_options_are_refused_or_replace(farm, tmp_path, in_process):
    source, original, _ = farm
    data_dir = shutil.copytree(original, tmp_path / "data")
    before = contents(prepared(data_dir))
    other = folder_arguments(source, data_dir, "--preprocessing=stretch-box")
    last = assert_refused(run(*other), says="was prepared differently")
    assert "--name" in last and "--overwrite" in last
    assert contents(prepared(data_dir)) == before
    out, _, status = run(*other, "--overwrite")
    assert status == 0 and "(stretch-box)" in out
    train = prepared_splits("farm", resolution=8, directory=str(data_dir)).train
    square = Image.open(source / "train" / "ant" / "0000.jpg").resize((8, 8), Image.Resampling.BOX)
    assert np.asarray(square).tobytes() in {train[i]["image"].tobytes() for i in range(47)}
    assert json.loads((prepared(data_dir) / INFO_FILE).read_text())["preprocessing"] == "stretch-box"
    assert [path.name for path in prepared(data_dir).parent.iterdir()] == ["1.0.0"]
    assert contents(prepared(data_dir)).keys() == before.keys()


def test_other_thresholds_are_refused_or_replace(farm, tmp_path, in_process):
    source, original, _ = farm
    data_dir = shutil.copytree(original, tmp_path / "data")
    other = folder_arguments(source, data_dir, "--thresholds=5,12")
    assert_refused(run(*other), says="was prepared differently")
    assert run(*other, "--overwrite")[2] == 0
    info = json.loads((prepared(data_dir) / INFO_FILE).read_text())
    assert info["group_sizes"] == {"head": 1, "medium": 2, "tail": 0}


@pytest.mark.parametrize("file", [INFO_FILE, command.PLAN_FILE])
def test_damaged_data_set_is_not_taken_for_the_same(farm, tmp_path, in_process, file):
    source, original, _ = farm
    data_dir = shutil.copytree(original, tmp_path / "data")
    (prepared(data_dir) / file).write_text("{")
    assert_refused(run(*folder_arguments(source, data_dir)), says="was prepared differently")
    assert run(*folder_arguments(source, data_dir, "--overwrite"))[2] == 0
    assert contents(prepared(data_dir)) == contents(prepared(original))


def test_failed_overwrite_keeps_what_is_there(farm, tmp_path, in_process):
    _, original, _ = farm
    data_dir = shutil.copytree(original, tmp_path / "data")
    source = photos(tmp_path / "photos", COUNTS | {"val": {"ant": 2, "bee": 2, "cow": 2}})
    (source / "val" / "ant" / "0000.jpg").write_bytes(b"")
    assert_refused(run(*folder_arguments(source, data_dir, "--overwrite")), says="The source has 1 error,")
    assert contents(prepared(data_dir)) == contents(prepared(original))


def test_other_resolution_and_channels_lie_beside(farm, tmp_path, in_process):
    source, _, _ = farm
    arguments = [a for a in folder_arguments(source, tmp_path) if a != "--resolution=8"]
    assert run(*arguments, "--resolution=16", "--channels=1", "--thresholds=5,12")[2] == 0
    splits = prepared_splits("farm", resolution=16, directory=str(tmp_path))
    assert splits.train[0]["image"].shape == (16, 16, 1)
    info = json.loads((prepared(tmp_path, resolution=16) / INFO_FILE).read_text())
    assert info["group_sizes"] == {"head": 1, "medium": 2, "tail": 0}
    assert info["converted"] == {"colour images": 56}


def test_drawn_images_of_another_seed(tmp_path, in_process):
    arguments = ["petals", f"--data_dir={tmp_path}", "--resolution=8", "--num_classes=2", "--largest=4"]
    arguments += ["--imbalance_factor=0.5", "--reference_per_class=2", "--classifier_per_class=2"]
    assert run(*arguments, "--seed=0")[2] == 0
    first = contents(prepared(tmp_path, "petals"))
    assert_refused(run(*arguments, "--seed=1"), says="was prepared differently")
    assert run(*arguments, "--seed=1", "--overwrite")[2] == 0
    assert contents(prepared(tmp_path, "petals"))["petals-train.array_record-00000-of-00001"] not in first.values()


def test_class_name_in_capitals_and_of_other_letters(tmp_path, in_process):
    tfds = pytest.importorskip("tensorflow_datasets")
    source = photos(tmp_path / "photos", {"": {"Größe": 3, "Ant bear": 2}})
    arguments = ["image_folder", f"--source={source}", f"--data_dir={tmp_path}", "--resolution=8", "--name=MyFarm"]
    assert run(*arguments)[2] == 0
    assert prepared_splits("MyFarm", resolution=8, directory=str(tmp_path)).train.class_names == ("Ant bear", "Größe")
    builder = tfds.builder_from_directory(prepared(tmp_path, "MyFarm"))
    assert builder.info.features["label"].names == ["Ant bear", "Größe"]
    assert len(builder.as_data_source("train")) == 5


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Photographs for four shards."""
    return photos(tmp_path_factory.mktemp("many"), {"": {"ant": 600, "bee": 250, "cow": 50}}, size=(320, 240))


def test_killed_and_going_on(tmp_path, many, in_process):
    arguments = folder_arguments(many, tmp_path / "killed", "--jobs=2")
    program = [sys.executable, "-m", "noisytwins_jax.data.prepare", *arguments]
    working = prepared(tmp_path / "killed").with_name("1.0.0.incomplete")
    process = subprocess.Popen(program, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: list(working.glob("*.array_record-*.json")), process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not prepared(tmp_path / "killed").exists()
    whole = len(list(working.glob("*.array_record-?????-of-?????.json")))
    assert 1 <= whole < 4

    out, _, status = run(*arguments)
    assert status == 0
    assert re.search(r"^Resuming: (\d) of 4 shards are complete\.$", out, re.M)[1] == str(whole)
    assert run(*folder_arguments(many, tmp_path / "whole"))[2] == 0
    expected = contents(prepared(tmp_path / "whole"))
    assert len([name for name in expected if "array_record" in name]) == 4
    assert contents(prepared(tmp_path / "killed")) == expected


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="lists processes as Linux does")
def test_processes_end_with_the_first_one(tmp_path, many):
    # Else they would write the very files that the next run writes.
    program = [sys.executable, "-m", "noisytwins_jax.data.prepare", *folder_arguments(many, tmp_path, "--jobs=2")]
    working = prepared(tmp_path).with_name("1.0.0.incomplete")
    process = subprocess.Popen(program, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: list(working.glob("*.part")), process)
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL
        wait_until(lambda: not alive(process.pid), timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def alive(group):
    """Processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                found.append(path.parent.name)
    return found


def test_unreadable_image_stops_until_mended(tmp_path, in_process):
    source, data_dir = photos(tmp_path / "photos"), tmp_path / "data"
    damaged = source / "train" / "bee" / "0003.jpg"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    printed = run(*folder_arguments(source, data_dir))
    last = assert_refused(printed, data_dir=data_dir, says="The source has 1 error, listed above")
    assert "1 unreadable images:\n  train/bee/0003.jpg: " in printed[1]
    problems = prepared(data_dir).with_name("1.0.0.incomplete") / "problems.txt"
    assert str(problems) in last and "train/bee/0003.jpg" in problems.read_text()
    damaged.write_bytes(whole)
    out, _, status = run(*folder_arguments(source, data_dir))
    assert status == 0 and "Resuming: 1 of 2 shards are complete." in out
    assert not (prepared(data_dir) / "problems.txt").exists()  # there are none any more
    assert json.loads((prepared(data_dir) / INFO_FILE).read_text())["left_out"] == {}
    assert run(*folder_arguments(source, tmp_path / "afresh"))[2] == 0
    assert contents(prepared(data_dir)) == contents(prepared(tmp_path / "afresh"))


@pytest.mark.parametrize("stopped_before", [False, True])
def test_unreadable_image_is_skipped(tmp_path, in_process, stopped_before):
    source = photos(tmp_path / "photos")
    (source / "train" / "bee" / "0003.jpg").write_bytes(b"")
    if stopped_before:
        assert run(*folder_arguments(source, tmp_path))[2] == 2
    out, _, status = run(*folder_arguments(source, tmp_path, "--on_error=skip"))
    assert status == 0
    assert "3 classes, 46 train" in out and "1 unreadable images:" in out
    assert "train/bee/0003.jpg" in (prepared(tmp_path) / "problems.txt").read_text()
    info = json.loads((prepared(tmp_path) / INFO_FILE).read_text())
    assert info["left_out"] == {"unreadable images": 1}
    assert info["splits"]["train"]["class_counts"] == [30, 11, 5]
    assert len(prepared_splits("farm", resolution=8, directory=str(tmp_path)).train) == 46


def with_duplicate(folder):
    source = photos(folder / "photos")
    shutil.copy(source / "val" / "cow" / "0001.jpg", source / "train" / "ant" / "twin.jpg")
    return source


def test_duplicates_stop(tmp_path, in_process):
    source, data_dir = with_duplicate(tmp_path), tmp_path / "data"
    printed = run(*folder_arguments(source, data_dir))
    assert_refused(printed, data_dir=data_dir, says="The source has 1 error,")
    assert "training images that are reference images too:\n  train/ant/twin.jpg: as val/cow/0001.jpg" in printed[1]
    (source / "train" / "ant" / "twin.jpg").unlink()
    assert run(*folder_arguments(source, data_dir))[2] == 0
    assert not (prepared(data_dir) / "problems.txt").exists()


@pytest.mark.parametrize("stopped_before", [False, True])
def test_duplicates_are_skipped(tmp_path, in_process, stopped_before):
    source = with_duplicate(tmp_path)
    if stopped_before:
        assert run(*folder_arguments(source, tmp_path))[2] == 2
    out, _, status = run(*folder_arguments(source, tmp_path, "--on_error=skip"))
    assert status == 0 and "3 classes, 47 train, 9 reference" in out
    info = json.loads((prepared(tmp_path) / INFO_FILE).read_text())
    assert info["left_out"] == {shards.DUPLICATES: 1}
    assert info["splits"]["train"]["class_counts"] == [30, 12, 5]
    assert "train/ant/twin.jpg: as val/cow/0001.jpg" in (prepared(tmp_path) / "problems.txt").read_text()
    splits = prepared_splits("farm", resolution=8, directory=str(tmp_path))
    pixels = [{split[i]["image"].tobytes() for i in range(len(split))} for split in (splits.train, splits.reference)]
    assert [len(images) for images in pixels] == [47, 9] and not pixels[0] & pixels[1]


def test_published_duplicates_stay(tmp_path, in_process):
    # Each reference image of this set is a training image, or may be.
    out, _, status = run("digits_lt", f"--data_dir={tmp_path}")
    assert status == 0
    assert re.search(
        r"^Note: \d+ training images that are reference images too; they are kept, as published\.$", out, re.M
    )
    info = json.loads((prepared(tmp_path, "digits_lt") / INFO_FILE).read_text())
    assert info["splits"]["reference"]["images"] == 1797 and info["left_out"] == {}
    assert not (prepared(tmp_path, "digits_lt") / "problems.txt").exists()


def test_fewer_images_than_published(tmp_path, in_process):
    # A tiny CIFAR-10: two images of each class a file.
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        labels = np.arange(20, dtype=np.uint8)[:, None] % 10
        (folder / name).write_bytes(np.hstack([labels, rng.integers(0, 256, (20, 3072), np.uint8)]).tobytes())
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    shutil.copy(folder / "test_batch.bin", folder / "data_batch_1.bin")
    out, _, status = run("cifar10_lt", f"--source={folder}", f"--data_dir={tmp_path}", "--imbalance_factor=1")
    assert status == 0
    assert "Note: 20 reference images were found; 10000 were published." in out
    assert "Note: 20 training images that are reference images too; they are kept, as published." in out
    info = json.loads((prepared(tmp_path, "cifar10_lt", 32) / INFO_FILE).read_text())
    assert info["options"] == {"imbalance_factor": 1.0}
    assert info["splits"]["train"]["class_counts"] == [10] * 10


def test_imagenet(tmp_path, in_process):
    # One image of each of 1000 classes, by default cropped and resized as for BigGAN.
    wnids = [f"n{1440764 + 37 * i:08d}" for i in range(1000)]
    source = photos(tmp_path / "ilsvrc", {"train": dict.fromkeys(wnids, 1)})
    photo = source / "val" / wnids[7] / "ILSVRC2012_val_00000001.JPEG"
    save_photo(photo, 1000)
    out, _, status = run("imagenet", f"--source={source}", f"--data_dir={tmp_path}", "--resolution=8")
    assert status == 0
    assert "Note: 1000 train images were found; 1281167 were published." in out
    assert "Note: 1 reference images were found; 50000 were published." in out
    splits = prepared_splits("imagenet", resolution=8, directory=str(tmp_path), preprocessing="center-box")
    assert splits.train.class_names == tuple(wnids)
    assert splits.train.class_counts.tolist() == [1] * 1000
    square = Image.open(photo).crop((3, 0, 17, 14))
    assert (splits.reference[0]["image"] == np.asarray(square.resize((8, 8), Image.Resampling.BOX))).all()
    assert splits.reference[0]["label"] == 7


def test_wrong_list_line(tmp_path, in_process):
    source = photos(tmp_path / "photos")
    names = [f"{path.relative_to(source)} {'abc'.index(path.parts[-2][0])}" for path in (source / "train").glob("*/*")]
    (tmp_path / "list.txt").write_text("\n".join([*sorted(names), "train/ant/0000.jpg seven"]))
    arguments = folder_arguments(source, tmp_path / "data", f"--train_list={tmp_path / 'list.txt'}")
    printed = run(*arguments)
    assert_refused(printed, data_dir=tmp_path / "data", says="The source has 1 error,")
    assert f"{tmp_path / 'list.txt'}:48: train/ant/0000.jpg seven" in printed[1]
    out, _, status = run(*arguments, "--on_error=skip")
    assert status == 0 and "47 train images" in out
    info = json.loads((prepared(tmp_path / "data") / INFO_FILE).read_text())
    assert info["options"] == {"train_list": str(tmp_path / "list.txt")}
    assert info["class_names"] == ["ant", "bee", "cow"]


def test_class_without_images(tmp_path, in_process):
    source = photos(tmp_path / "photos")
    (source / "train" / "dog").mkdir()
    printed = run(*folder_arguments(source, tmp_path / "data"))
    assert_refused(printed, data_dir=tmp_path / "data", says="The source has 1 error,")
    assert "classes without images" in printed[1] and "train/dog" in printed[1]
    out, _, status = run(*folder_arguments(source, tmp_path / "data", "--on_error=skip"))
    assert status == 0 and "3 classes, 47 train" in out


def test_class_whose_images_are_all_unreadable(tmp_path, in_process):
    source = photos(tmp_path / "photos")
    for path in (source / "train" / "cow").iterdir():
        path.write_bytes(b"no image")
    printed = run(*folder_arguments(source, tmp_path / "data", "--on_error=skip"))
    assert_refused(printed, data_dir=tmp_path / "data", says="no images of class 2")


def test_reference_of_other_classes(tmp_path, in_process):
    source = photos(tmp_path / "photos", {"train": {"ant": 3, "bee": 3}, "val": {"cow": 2}})
    assert_refused(
        run(*folder_arguments(source, tmp_path / "data")), data_dir=tmp_path / "data", says="The source has 3 errors"
    )
    printed = run(*folder_arguments(source, tmp_path / "data", "--on_error=skip"))
    assert_refused(printed, data_dir=tmp_path / "data", says="There is no usable reference image at all")


def test_no_space(farm, tmp_path, monkeypatch):
    source, _, _ = farm

    def full(*arguments):
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", full)
        patched.setattr(
            shards, "write_shards", lambda missing, *arguments: [shards.write_shard(shard) for shard in missing]
        )
        printed = run(*folder_arguments(source, tmp_path / "data"))
        assert_refused(printed, data_dir=tmp_path / "data", says="There is no space left in ")
        patched.undo()
    out, _, status = run(*folder_arguments(source, tmp_path / "data"))
    assert status == 0 and "Resuming: 2 of 2 shards are complete." in out


def test_without_tfds(farm, tmp_path, monkeypatch):
    source, _, _ = farm
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setattr(shards, "write_shards", lambda *arguments: pytest.fail("it should be said at once"))
    last = assert_refused(run(*folder_arguments(source, tmp_path)), data_dir=tmp_path, says="tensorflow-datasets")
    assert "pip install" in last


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["imagefolder"], "There is no data set 'imagefolder'; did you mean 'image_folder'?"),
        (["image_folder"], "image_folder needs --source="),
        (["image_folder", "--source=/none/such"], "There is no /none/such; give the folder or archive"),
        (["image_folder", "--source={source}", "--lists=x"], "image_folder takes no --lists; its own options: "),
        (["petals", "--source={source}"], "petals needs no source files and takes no --source; leave it out."),
        (["petals", "--train_list=x"], "petals takes no --train_list"),
        (["image_folder", "--source={source}", "--name=my-farm"], "--name=my-farm is no name of a data set"),
        (["image_folder", "--source={source}", "--name=../x"], "--name=../x is no name of a data set"),
        (["image_folder", "--source={source}", "--thresholds=20"], "--thresholds=20 is not low,high"),
        (["image_folder", "--source={source}", "--thresholds=a,b"], "--thresholds=a,b is not low,high"),
        (["image_folder", "--source={source}", "--thresholds=9,3"], "low must be at most high"),
        (["image_folder", "--source={source}", "--thresholds=-1,3"], "low must be at most high"),
        (["image_folder", "--source={source}", "--resolution=100"], "power of two of at least 8, but it is 100"),
        (["image_folder", "--source={source}", "--resolution=0"], "power of two of at least 8, but it is 0"),
        (["image_folder", "--source={source}", "--resolution=x"], "--resolution: invalid int value"),
        (["image_folder", "--source={source}", "--preprocessing=cnter"], "did you mean 'center'?"),
        (["image_folder", "--source={source}", "--channels=2"], "--channels: invalid choice"),
        (["image_folder", "--source={source}", "--jobs=0"], "--jobs=0 is below 1"),
        (["image_folder", "--source={source}", "--sorce=x"], "--sorce=x"),
        (["image_folder", "--source={source}", "--train_list=/none"], "The list /none cannot be read"),
        (["image_folder", "--source={source}", "--imbalance_factor=2"], "imbalance_factor must be above 0"),
        (["image_folder", "--source={empty}"], "has no image; give a folder or archive"),
        ([], "the following arguments are required: dataset".capitalize()),
    ],
)
def test_bad_input(farm, tmp_path, arguments, says):
    source, _, _ = farm
    empty, data_dir = tmp_path / "empty", tmp_path / "data"
    empty.mkdir()
    arguments = [argument.format(source=source, empty=empty) for argument in arguments]
    last = assert_refused(run(*arguments, f"--data_dir={data_dir}"), data_dir=data_dir, says=says)
    assert last.endswith((".", "?", ")"))
    assert not list(tmp_path.glob("**/*.array_record*"))


def test_data_dir_that_cannot_be_written(farm, tmp_path):
    source, _, _ = farm
    (tmp_path / "file").write_text("")
    for data_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        last = assert_refused(run(*folder_arguments(source, data_dir)), says=str(tmp_path / "file"))
        assert last.endswith("fix this and run the same command.")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_data_dir_of_somebody_else(farm, tmp_path):
    source, _, _ = farm
    tmp_path.chmod(0o500)
    assert_refused(run(*folder_arguments(source, tmp_path / "data")), says="Permission denied")


def test_interrupted(farm, tmp_path, monkeypatch):
    source, _, _ = farm

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "write_shards", interrupted)
    _, err, status = run(*folder_arguments(source, tmp_path))
    assert status == 130 and err.endswith("Stopped; run the same command to resume.\n")


def test_errors_of_arguments_are_for_people():
    with pytest.raises(UserError, match="did you mean 'petals'"):
        command.parse_arguments(["petal"])


def test_the_shape_of_pictures_that_were_padded_is_kept(tmp_path, in_process):
    source = photos(tmp_path / "photos")
    for name in ("pad", "stretch", "center"):
        out, _, _ = run(*folder_arguments(source, tmp_path, f"--preprocessing={name}", f"--name={name}"))
        aspect = prepared_splits(name, resolution=8, directory=str(tmp_path)).train.aspect
        assert aspect == (None if name == "center" else (name, 1.4286))
        assert ("shown 1.43 times as wide as high in samples" in out) == (name != "center")
    photos(tmp_path / "photos", {"train": {"ant": 25}}, size=(14, 20))
    out, _, _ = run(*folder_arguments(source, tmp_path, "--preprocessing=pad"))
    assert prepared_splits("farm", resolution=8, directory=str(tmp_path)).train.aspect is None
    assert "pictures have several aspect ratios: samples and reports show the squares" in out
