import errno
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from waiting import TIMEOUT

from noisytwins_jax.data.prepare.command import parse_arguments, prepare
from noisytwins_jax.data.prepared import INFO_FILE, VERSION, prepared_splits
from noisytwins_jax.data.remote import local_directory
from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.utils.errors import UserError

OPTIONS = ["--num_classes=2", "--largest=6", "--imbalance_factor=0.5"]
OPTIONS += ["--reference_per_class=3", "--classifier_per_class=3"]
PLACE = Path("few", "8px", VERSION)
BUCKET = "memory://bucket/data"
FILES = 9  # of the data set but for its information: a shard, labels and factors of each split


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory) -> list[Path]:
    """Two directories with a data set ``few`` of other images each, in files of the same names and sizes."""
    directories = [tmp_path_factory.mktemp("prepared") for _ in range(2)]
    for seed, directory in enumerate(directories):
        arguments = [f"--data_dir={directory}", "--name=few", "--resolution=8", f"--seed={seed}", "--jobs=1"]
        prepare(parse_arguments(["petals", *arguments, *OPTIONS]))
    return directories


@pytest.fixture
def bucket(data_dirs) -> Iterator[MemoryFileSystem]:
    files = fsspec.filesystem("memory")
    upload(files, data_dirs[0])
    yield files
    files.rm("/bucket", recursive=True)


@pytest.fixture
def copied(monkeypatch) -> list[str]:
    """The names of the files that were copied since, in their order."""
    names: list[str] = []
    get_file = MemoryFileSystem.get_file

    def counted(self, source, target, **options):
        names.append(Path(source).name)
        return get_file(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", counted)
    return names


def upload(files: MemoryFileSystem, directory: Path) -> None:
    for path in (directory / PLACE).iterdir():
        files.pipe_file(f"/bucket/data/{PLACE}/{path.name}", path.read_bytes())


def load(directory: str | Path, cache: str | Path = "", name: str = "few", resolution: int = 8) -> DataSplits:
    return prepared_splits(name, resolution=resolution, directory=str(directory), cache=str(cache))


def assert_same(found: DataSplits, directory: Path) -> None:
    expected = load(directory)
    for split in ("train", "reference", "classifier"):
        ours, theirs = getattr(found, split), getattr(expected, split)
        assert ours.fingerprint == theirs.fingerprint
        indices = np.arange(len(theirs))
        np.testing.assert_array_equal(ours.take(indices)["image"], theirs.take(indices)["image"])
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.factors, theirs.factors)


def test_the_same_data_through_a_copy(bucket, copied, data_dirs, tmp_path):
    assert_same(load(BUCKET, tmp_path), data_dirs[0])
    assert len(copied) == len(set(copied)) == FILES
    cached = tmp_path / "memory" / "bucket" / "data" / PLACE
    assert local_directory(f"{BUCKET}/{PLACE}", INFO_FILE, str(tmp_path)) == cached
    here = {path.name for path in cached.iterdir()}
    assert here == {*copied, INFO_FILE, ".lock"}  # nothing half done, nothing that training does not read
    assert (cached / INFO_FILE).read_bytes() == (data_dirs[0] / PLACE / INFO_FILE).read_bytes()


def test_the_second_use_copies_nothing(bucket, copied, data_dirs, tmp_path):
    load(BUCKET, tmp_path)
    copied.clear()
    assert_same(load(BUCKET + "/", tmp_path), data_dirs[0])
    assert copied == []


def test_copies_of_two_buckets_do_not_meet(bucket, data_dirs, tmp_path):
    load(BUCKET, tmp_path)
    assert_same(load(f"file://{data_dirs[1]}", tmp_path), data_dirs[1])
    assert_same(load(BUCKET, tmp_path), data_dirs[0])


@pytest.mark.parametrize("contents", [None, b"", b"half"])
def test_what_is_missing_or_of_another_size_is_copied_again(contents, bucket, copied, data_dirs, tmp_path):
    load(BUCKET, tmp_path)
    copied.clear()
    (shard,) = (tmp_path / "memory" / "bucket" / "data" / PLACE).glob("few-train.array_record-*")
    labels = shard.with_name("labels-reference.npy")
    for path in (shard, labels):
        path.unlink()
        if contents is not None:
            path.write_bytes(contents)
    assert_same(load(BUCKET, tmp_path), data_dirs[0])
    assert sorted(copied) == [shard.name, labels.name]


def test_data_that_were_prepared_anew_are_copied_anew(bucket, copied, data_dirs, tmp_path):
    """Though all files have the same sizes."""
    assert sizes(data_dirs[0]) == sizes(data_dirs[1])
    load(BUCKET, tmp_path)
    upload(bucket, data_dirs[1])
    copied.clear()
    assert_same(load(BUCKET, tmp_path), data_dirs[1])
    assert len(copied) == FILES
    copied.clear()
    load(BUCKET, tmp_path)
    assert copied == []


def sizes(directory: Path) -> dict[str, int]:
    names = [*(directory / PLACE).glob("*.array_record-*"), *(directory / PLACE).glob("*.npy")]
    return {path.name: path.stat().st_size for path in names}


def fail_after(monkeypatch, count: int, error: OSError, times: int = 10**6) -> None:
    """Lets the file system fail ``times`` times after ``count`` files."""
    get_file, calls = MemoryFileSystem.get_file, []

    def failing(self, source, target, **options):
        calls.append(source)
        if count < len(calls) <= count + times:
            Path(target).write_bytes(b"begun")
            raise error
        return get_file(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", failing)


def test_copying_goes_on_where_it_ended(bucket, copied, data_dirs, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        fail_after(patch, 4, PermissionError(errno.EACCES, "Permission denied"))
        with pytest.raises(UserError, match=f"{BUCKET}/{PLACE} cannot be copied to .*Permission denied"):
            load(BUCKET, tmp_path)
    assert not (tmp_path / "memory" / "bucket" / "data" / PLACE / INFO_FILE).exists()
    assert len(copied) == 4
    assert_same(load(BUCKET, tmp_path), data_dirs[0])
    assert len(copied) == len(set(copied)) == FILES


@pytest.mark.parametrize("whole_before", [False, True])
def test_no_file_is_of_a_copy_that_ended_before_data_were_prepared_anew(whole_before, bucket, data_dirs, tmp_path):
    if whole_before:
        load(BUCKET, tmp_path)
    upload(bucket, data_dirs[1])
    with pytest.MonkeyPatch.context() as patch:
        fail_after(patch, 4, PermissionError(errno.EACCES, "Permission denied"))
        with pytest.raises(UserError, match="cannot be copied"):
            load(BUCKET, tmp_path)
    upload(bucket, data_dirs[0])
    assert_same(load(BUCKET, tmp_path), data_dirs[0])


def test_storage_that_fails_for_a_moment_is_tried_again(bucket, data_dirs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    fail_after(monkeypatch, 2, OSError(errno.EIO, "Input/output error"), times=2)
    assert_same(load(BUCKET, tmp_path), data_dirs[0])
    assert capsys.readouterr().err.count("failed (Input/output error); trying again") == 2


def test_no_space_is_said(bucket, tmp_path, monkeypatch):
    fail_after(monkeypatch, 2, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(UserError, match=rf"no space left in {tmp_path}.* for {BUCKET}.*set config.data.cache"):
        load(BUCKET, tmp_path)


def test_a_missing_data_set_says_so(bucket, tmp_path):
    for name, resolution in (("many", 8), ("few", 16)):
        with pytest.raises(UserError) as error:
            load(BUCKET, tmp_path, name, resolution)
        message = str(error.value)
        assert message.startswith(
            f"There is no prepared data set {name} of {resolution} px in {BUCKET}; prepare it with"
        )
        assert f"--data_dir={BUCKET} --resolution={resolution}" in message


def test_a_file_that_is_missing_there_is_named(bucket, tmp_path):
    name = "labels-train.npy"
    bucket.rm(f"/bucket/data/{PLACE}/{name}")
    with pytest.raises(UserError, match=f"^{BUCKET}/{PLACE}/{name} is missing; copy all of the prepared data there.$"):
        load(BUCKET, tmp_path)


def test_damaged_information_is_one_sentence(bucket, tmp_path):
    bucket.pipe_file(f"/bucket/data/{PLACE}/{INFO_FILE}", b"{")
    with pytest.raises(UserError, match=f"{BUCKET}/{PLACE} cannot be copied to"):
        load(BUCKET, tmp_path)


def test_an_unknown_protocol_is_one_sentence(tmp_path):
    with pytest.raises(UserError) as error:
        load("gcs3://bucket/data", tmp_path)
    assert str(error.value).startswith(f"gcs3://bucket/data/{PLACE} cannot be copied to {tmp_path}")
    assert "Protocol not known: gcs3" in str(error.value) and "\n" not in str(error.value)


def test_a_package_that_is_not_installed_is_named(tmp_path):
    fsspec.register_implementation(
        "far", "no_such_package.FileSystem", errtxt="Please install no_such_package to access far storage"
    )
    with pytest.raises(UserError, match=r"needs a package that is not installed .*install no_such_package") as error:
        load("far://bucket/data", tmp_path)
    assert "\n" not in str(error.value)


def test_local_directories_are_read_where_they_are(data_dirs, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(data_dirs[0], tmp_path / "data")
    assert local_directory("~/data/few", INFO_FILE) == tmp_path / "data" / "few"
    assert_same(load("~/data"), data_dirs[0])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_copies_are_in_the_cache_directory_of_the_user(bucket, data_dirs, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_same(load(BUCKET), data_dirs[0])
    assert (tmp_path / ".cache/noisytwins_jax/data/memory/bucket/data" / PLACE / INFO_FILE).exists()
    assert_same(load(BUCKET, "~/elsewhere"), data_dirs[0])
    assert (tmp_path / "elsewhere/memory/bucket/data" / PLACE / INFO_FILE).exists()


# --- processes ---------------------------------------------------------------------------------------------------------


def load_in_a_process(directory: str, cache: str, results: str, barrier) -> None:
    """Loads with a slow file system, and writes what it copied and the fingerprint of the training images."""
    copied, get_file = [], LocalFileSystem.get_file

    def slow(self, source, target, **options):
        copied.append(Path(source).name)
        time.sleep(0.05)
        return get_file(self, source, target, **options)

    LocalFileSystem.get_file = slow
    barrier.wait(TIMEOUT)
    train = load(directory, cache).train
    images = train.take(np.arange(len(train)))["image"]
    result = {"copied": copied, "fingerprint": train.fingerprint, "sum": int(images.astype(int).sum())}
    Path(results, f"{os.getpid()}.json").write_text(json.dumps(result))


def test_processes_of_a_machine_share_one_copy(data_dirs, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), tmp_path / "results"
    results.mkdir()
    arguments = (f"file://{data_dirs[0]}", str(tmp_path / "cache"), str(results), barrier)
    processes = [context.Process(target=load_in_a_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (json.loads(path.read_text()) for path in results.iterdir())
    assert sorted(first["copied"] + second["copied"]) == sorted(sizes(data_dirs[0]))
    train = load(data_dirs[0]).train
    assert first["fingerprint"] == second["fingerprint"] == train.fingerprint
    assert first["sum"] == second["sum"] == train.take(np.arange(len(train)))["image"].astype(int).sum()
