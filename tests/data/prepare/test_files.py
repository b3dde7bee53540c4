import errno
import io
import multiprocessing
import os
import pickle
import shutil
import subprocess
import tarfile
import zipfile

import pytest

from noisytwins_jax.data.prepare import files
from noisytwins_jax.data.prepare.files import list_files, list_nested_tar, read_file
from noisytwins_jax.data.prepare.listing import Item
from noisytwins_jax.utils.errors import UserError

CONTENT = {"b/2.png": b"second", "a/1.png": b"first", "a/deep/3.png": b"x" * 1500, "top.txt": b"", "a b/ü.png": b"4"}
UNWANTED = {"a/.hidden": b"1", ".git/x.png": b"2", "__MACOSX/a/1.png": b"3"}
TARS = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def write_tar(path, content, mode="w", prefix="./"):
    with tarfile.open(path, mode) as tar:
        for kind, name in ((tarfile.DIRTYPE, "folder"), (tarfile.SYMTYPE, "a/link.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "1.png"
            tar.addfile(info)
        for name, data in content.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write(folder, kind, content):
    """The content as a folder (kind "") or archive."""
    if kind == "":
        for name, data in content.items():
            (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "data" / name).write_bytes(data)
        (folder / "data" / "empty").mkdir()
        return folder / "data"
    if kind == ".zip":
        with zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("empty")
            for name, data in content.items():
                archive.writestr(name, data)
        return folder / "data.zip"
    return write_tar(folder / f"data{kind}", content, TARS[kind])


def read_all(listed):
    return {name: read_file(pickle.loads(pickle.dumps(Item(name, 0, location)))) for name, location in listed.items()}


@pytest.mark.parametrize("kind", ["", ".zip", *TARS])
def test_lists_and_reads(tmp_path, kind):
    listed = list_files(write(tmp_path, kind, CONTENT | UNWANTED), tmp_path / "unpacked")
    assert list(listed) == sorted(CONTENT)
    assert read_all(listed) == CONTENT
    assert (tmp_path / "unpacked").exists() == (kind not in ("", ".zip", ".tar"))


def test_tar_and_zip_are_read_where_they_are(tmp_path):
    for kind in (".tar", ".zip"):
        location = list_files(write(tmp_path, kind, CONTENT), tmp_path)["a/1.png"]
        assert location.path == str(tmp_path / f"data{kind}")
    data = (tmp_path / "data.tar").read_bytes()
    location = list_files(tmp_path / "data.tar", tmp_path)["a/deep/3.png"]
    assert data[location.offset : location.offset + location.size] == CONTENT["a/deep/3.png"]


def test_the_later_file_of_a_path_counts(tmp_path):
    with tarfile.open(write_tar(tmp_path / "x.tar", {"1": b"old"}), "a") as tar:
        tar.addfile(info := tarfile.TarInfo("1"), io.BytesIO(b"new"))
        info.size = 3
        tar.addfile(info, io.BytesIO(b"new"))
    assert read_all(list_files(tmp_path / "x.tar", tmp_path)) == {"1": b"new"}


def test_sparse_members_are_left_out(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**20)
        file.seek(2**19)
        file.write(b"1")
    (tmp_path / "plain").write_bytes(b"plain")
    if shutil.which("tar") is None:
        pytest.skip("no tar that could write sparse files")
    subprocess.run(["tar", "--sparse", "-cf", "x.tar", "sparse", "plain"], cwd=tmp_path, check=True)
    with tarfile.open(tmp_path / "x.tar") as tar:
        if not any(member.issparse() for member in tar):
            pytest.skip("no sparse files on this disk")
    assert read_all(list_files(tmp_path / "x.tar", tmp_path)) == {"plain": b"plain"}


def test_folders_may_be_links_even_circular_ones(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").write_bytes(b"1")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    assert list(list_files(tmp_path / "data", tmp_path)) == ["a/1.png"]


@pytest.mark.parametrize("kind", [".zip", ".tar"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_at_the_same_time(tmp_path, kind, method):
    content = {f"{i}.png": os.urandom(100_000) for i in range(40)}
    listed = list_files(write(tmp_path, kind, content), tmp_path)
    items = [Item(name, 0, location) for name, location in listed.items()]
    assert [read_file(item) for item in items] == list(map(content.get, listed))  # the parent has it open, too
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(read_file, items * 5, chunksize=1) == [content[name] for name in listed] * 5


def test_unpacks_once(tmp_path):
    archive = write(tmp_path, ".tar.gz", CONTENT)
    listed = list_files(archive, tmp_path / "unpacked")
    assert listed["top.txt"] == str(tmp_path / "unpacked" / "data.tar.gz" / "top.txt")
    (tmp_path / "unpacked" / "data.tar.gz" / "top.txt").write_bytes(b"touched")
    assert read_all(list_files(archive, tmp_path / "unpacked"))["top.txt"] == b"touched"

    write_tar(archive, {"other.png": b"another archive of this name"}, "w:gz")
    assert list(list_files(archive, tmp_path / "unpacked")) == ["other.png"]


def test_interrupted_unpacking_begins_again(tmp_path, monkeypatch):
    archive = write(tmp_path, ".tar.gz", CONTENT)
    extract = tarfile.TarFile.extract
    done = []

    def interrupted(self, member, *args, **kwargs):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(member)
        extract(self, member, *args, **kwargs)

    monkeypatch.setattr(tarfile.TarFile, "extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list_files(archive, tmp_path / "unpacked")
    (tmp_path / "unpacked" / "data.tar.gz" / "left over.png").write_bytes(b"")
    monkeypatch.undo()
    assert read_all(list_files(archive, tmp_path / "unpacked")) == CONTENT


def test_unpacking_on_a_full_disk(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    with pytest.raises(UserError, match=r"no space left to unpack .*data\.tar\.xz into .*; free some, or"):
        list_files(write(tmp_path, ".tar.xz", CONTENT), tmp_path / "unpacked")


def test_unpacking_leaves_other_files_alone(tmp_path):
    archive = write(tmp_path, ".tgz", CONTENT)
    with pytest.raises(UserError, match="could not be unpacked"):
        list_files(archive, tmp_path)  # the folder would have the archive's name
    mine = tmp_path / "unpacked" / "data.tgz" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(UserError, match="holds other files; remove them"):
        list_files(archive, tmp_path / "unpacked")
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize(("kind", "what"), [*((kind, "tar") for kind in TARS), (".zip", "zip")])
def test_refuses_damaged_archives(tmp_path, kind, what):
    archive = write(tmp_path, kind, CONTENT | {"z.bin": os.urandom(20_000)})
    data = archive.read_bytes()
    for wrong in (
        b"",
        b"no archive at all" * 100,
        data[: len(data) // 2],
        data[:1024] if kind == ".tar" else data[:-4],
    ):
        archive.write_bytes(wrong)
        with pytest.raises(UserError, match=rf"data{kind} cannot be read as an? [a-z ]*{what} \(.*get it again\.$"):
            list_files(archive, tmp_path / "unpacked")


def test_refuses_a_tar_that_ends_or_breaks_between_two_files(tmp_path):
    archive = write(tmp_path, ".tar", {"1": b"1" * 512, "2": b"2" * 512})
    data = archive.read_bytes()
    for wrong in (data[:2048], data[:2048] + b"?" * 512 + data[2560:]):
        archive.write_bytes(wrong)
        with pytest.raises(UserError, match="no end mark"):
            list_files(archive, tmp_path)


def test_refuses_what_is_missing_or_of_another_kind(tmp_path):
    with pytest.raises(UserError, match=r"There is no .*nothing; give the folder or archive"):
        list_files(tmp_path / "nothing", tmp_path)
    (tmp_path / "data.rar").write_bytes(b"")
    with pytest.raises(UserError, match=r"data\.rar is neither a folder nor an archive"):
        list_files(tmp_path / "data.rar", tmp_path)


def test_reading_fails_with_an_os_error(tmp_path):
    tar, archive = write(tmp_path, ".tar", CONTENT), write(tmp_path, ".zip", CONTENT)
    in_tar, in_zip = (list_files(path, tmp_path)["a/deep/3.png"] for path in (tar, archive))
    tar.write_bytes(tar.read_bytes()[: in_tar.offset + 5])
    data = bytearray(archive.read_bytes())
    start = data.index(b"a/deep/3.png") + len(b"a/deep/3.png")
    data[start : start + 4] = b"\xff" * 4
    archive.write_bytes(data)
    for location in (in_tar, in_zip, str(tmp_path / "gone.png")):
        with pytest.raises(OSError):
            read_file(Item("x", 0, location))


def nested(folder, cut=None):
    """A tar of two tars, the last one cut off at some byte."""
    inner = {}
    for wnid in ("n02", "n01"):
        content = {f"{wnid}_{i}.JPEG": f"{wnid} {i}".encode() * 300 for i in (10, 9)}
        inner[f"{wnid}.tar"] = write_tar(folder / "inner", content, prefix="").read_bytes()[
            : cut if wnid == "n01" else None
        ]
    return write_tar(folder / "outer.tar", {"readme": b"text"} | inner, prefix="")


def test_nested_tar(tmp_path):
    listed = list_nested_tar(nested(tmp_path))
    assert list(listed) == ["n01/n01_10.JPEG", "n01/n01_9.JPEG", "n02/n02_10.JPEG", "n02/n02_9.JPEG"]
    assert read_all(listed)["n02/n02_9.JPEG"] == b"n02 9" * 300


def test_nested_tar_reads_headers_only(tmp_path, monkeypatch):
    tar = nested(tmp_path)
    monkeypatch.setattr(files, "read_location", None)
    monkeypatch.setattr(tarfile.TarFile, "extractfile", None)
    assert len(list_nested_tar(tar)) == 4


def test_refuses_damaged_nested_tars(tmp_path):
    with pytest.raises(UserError, match="There is no"):
        list_nested_tar(tmp_path / "outer.tar")
    data = nested(tmp_path).read_bytes()
    inner = list_files(tmp_path / "outer.tar", tmp_path)["n01.tar"]
    for wrong in (
        data[: len(data) // 2],
        data[: inner.offset] + b"?" * 512 + data[inner.offset + 512 :],
        data[: inner.offset + 512 * 7] + b"?" * 512 + data[inner.offset + 512 * 8 :],
    ):
        (tmp_path / "outer.tar").write_bytes(wrong)
        with pytest.raises(UserError, match="damaged or cut off"):
            list_nested_tar(tmp_path / "outer.tar")
    nested(tmp_path, cut=11 * 512)  # members of one, one, five and four blocks, but no end mark
    with pytest.raises(UserError, match="no end mark"):
        list_nested_tar(tmp_path / "outer.tar")
