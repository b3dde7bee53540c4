"""Random access to the files of a source: a folder, a tar, a zip or a compressed tar.

Uncompressed tars and zips are read in place; a compressed tar has no random access and is unpacked once.
"""

import errno
import functools
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from noisytwins_jax.data.prepare.listing import Item
from noisytwins_jax.utils.errors import UserError, first_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_BLOCK = 512  # bytes per block of a tar
_MARKER = ".unpacked"  # holds the archive's size once it is unpacked; hidden, so it is never listed
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError)


class ByteRange(NamedTuple):
    """A file that is a range of bytes of another one, such as a member of an uncompressed tar."""

    path: str
    offset: int
    size: int


class ZipMember(NamedTuple):
    """A file in a zip."""

    path: str
    name: str


# Where a file is: its path, or its position in an archive.
Location = str | ByteRange | ZipMember


def list_files(source: Path, unpack_in: Path) -> dict[str, Location]:
    """List the files of a folder or archive, except hidden ones and ``__MACOSX``; links to folders are followed.

    Args:
      source: a folder, a .tar, a .zip, or a compressed tar (.tar.gz, .tgz, .tar.bz2, .tar.xz).
      unpack_in: folder in which a compressed tar is unpacked, into a folder of the archive's name; a complete earlier
        copy there is used again.

    Returns:
      ``{relative POSIX path: location}``, sorted by path. Only regular files of an archive count. If an archive holds
      a path twice, the later file counts.

    Raises:
      UserError: the source is missing, damaged or of another kind, or unpacking failed.
    """
    source = Path(source)
    name = source.name.lower()
    if source.is_dir():
        files = _list_folder(source)
    elif not source.is_file():
        raise UserError(
            f"There is no {source}; give the folder or archive (.tar, .zip, {', '.join(_COMPRESSED)}) that holds the "
            "data set."
        )
    elif name.endswith(".tar"):
        files = _list_tar(source)
    elif name.endswith(".zip"):
        files = _list_zip(source)
    elif name.endswith(_COMPRESSED):
        folder = Path(unpack_in) / source.name
        _unpack(source, folder)
        files = _list_folder(folder)
    else:
        raise UserError(
            f"{source} is neither a folder nor an archive by its name; give a folder, a .tar, a .zip or a compressed "
            f"tar ({', '.join(_COMPRESSED)})."
        )
    return dict(sorted(files.items()))


def list_nested_tar(tar: Path) -> dict[str, Location]:
    """List the files of all tars in a tar, such as ILSVRC2012_img_train.tar; only headers are read.

    Args:
      tar: an uncompressed tar of uncompressed tars.

    Returns:
      ``{"n01440764/n01440764_10026.JPEG": location}``, sorted by path: the name of the inner tar without ``.tar``,
      then the path within it. Other members of the outer tar are left out.

    Raises:
      UserError: the tar is missing or damaged.
    """
    tar = Path(tar)
    if not tar.is_file():
        raise UserError(f"There is no {tar}; give a tar that holds a tar for each class.")
    inner_tars = {name: part for name, part in _list_tar(tar).items() if name.endswith(".tar")}
    files: dict[str, Location] = {}
    total = sum(part.size for part in inner_tars.values())
    with (
        open(tar, "rb") as file,
        tqdm(total=total, unit="B", unit_scale=True, desc=f"Listing {tar.name}", disable=None, delay=1) as bar,
    ):
        for inner, (_, offset, size) in inner_tars.items():
            for name, part in _tar_parts(tar, file, offset, offset + size):
                files[f"{inner.removesuffix('.tar')}/{name}"] = part
            bar.update(size)
    return dict(sorted(files.items()))


def read_file(item: Item) -> bytes:
    """Read the whole file at ``item.location``: the `Reader` of all files from `list_files`.

    Raises:
      OSError: the file cannot be read.
    """
    return read_location(item.location)


def read_location(location: Location) -> bytes:
    """Read the whole file at a location; raise an ``OSError`` if that fails."""
    if isinstance(location, ByteRange):
        opened = _open(location.path)  # a reference, so that the file stays open while it is read
        data = os.pread(opened.descriptor, location.size, location.offset)
        if len(data) != location.size:
            raise OSError(f"{location.path} ends within a file that starts at byte {location.offset}")
        return data
    if isinstance(location, ZipMember):
        try:
            return _open_zip(location.path, os.getpid()).read(location.name)
        except (*_DAMAGED, KeyError, RuntimeError) as error:  # RuntimeError: encrypted
            raise OSError(f"{location.name} in {location.path} cannot be read: {first_line(error)}") from error
    return Path(location).read_bytes()


def is_visible(name: str) -> bool:
    """Return whether a file or folder is neither hidden (which excludes ``..``) nor added to archives by macOS."""
    return not name.startswith(".") and name != "__MACOSX"


def is_image(path: str) -> bool:
    """Return whether a file's name is that of an image."""
    return path.lower().endswith(IMAGE_SUFFIXES)


class _OpenFile:
    """An open file, closed when it leaves the cache."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.descriptor)


@functools.lru_cache(maxsize=4)
def _open(path: str) -> _OpenFile:
    """Open a file to read ranges of bytes."""
    return _OpenFile(os.open(path, os.O_RDONLY))


@functools.lru_cache(maxsize=4)
def _open_zip(path: str, pid: int) -> zipfile.ZipFile:
    """Open a zip; each process opens its own, as forked processes would share the position in the file."""
    return zipfile.ZipFile(path)


def _clean(name: str) -> str | None:
    """Return the path of a file in an archive without ``./``; None if any part of it is not visible."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "/".join(parts) if parts and all(map(is_visible, parts)) else None


def _list_folder(source: Path) -> dict[str, Location]:
    """List all visible files below a folder, unsorted."""
    try:
        return dict(_walk(str(source), "", ()))
    except OSError as error:
        raise UserError(
            f"The folder {source} cannot be listed ({first_line(error)}); make all of it readable."
        ) from error


def _walk(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield relative and full paths of all visible files below a folder; skip links back to a folder above."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_visible(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, real))
            elif entry.is_file():
                yield prefix + entry.name, entry.path


def _list_tar(source: Path) -> dict[str, ByteRange]:
    """List all visible files of an uncompressed tar, unsorted."""
    with open(source, "rb") as file:
        return dict(_tar_parts(source, file, 0, source.stat().st_size))


def _tar_parts(path: Path, file: BinaryIO, start: int, end: int) -> Iterator[tuple[str, ByteRange]]:
    """Yield names and locations of the visible files of an uncompressed tar in bytes `start` to `end` of a file."""
    try:
        file.seek(start)
        with tarfile.TarFile(fileobj=file) as tar:
            while tar.offset <= end and (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # bounds the memory for a million files
                name = _clean(member.name)
                if name and _is_contiguous(member):
                    yield name, ByteRange(str(path), member.offset_data, member.size)
            # A tar ends with blocks of zeros; `next` also stops, silently, at an invalid header.
            file.seek(tar.offset)
            last = file.read(_BLOCK)
        if tar.offset >= end or len(last) < _BLOCK or any(last):
            raise tarfile.ReadError("it has no end mark")
    except (tarfile.TarError, OSError, EOFError) as error:
        inside = f" holds a tar at byte {start} that" if start else ""
        raise UserError(
            f"{path}{inside} cannot be read as an uncompressed tar ({first_line(error)}): it is damaged or cut off, so "
            "get it again."
        ) from error


def _is_contiguous(member: tarfile.TarInfo) -> bool:
    """Return whether a member is a regular file in one range of bytes."""
    return member.isreg() and not member.issparse()


def _list_zip(source: Path) -> dict[str, Location]:
    """List all visible files of a zip, unsorted."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (*_DAMAGED, OSError, ValueError) as error:
        raise UserError(
            f"{source} cannot be read as a zip ({first_line(error)}): it is damaged or cut off, so get it again."
        ) from error
    named = [(_clean(member), ZipMember(str(source), member)) for member in members]
    return {name: location for name, location in named if name}


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a compressed tar unless this is done already; start over after an interruption."""
    marker = folder / _MARKER
    try:
        size = str(archive.stat().st_size)
        if marker.is_file():
            if marker.read_text() == size:
                return
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(
                f"{archive} is to be unpacked into {folder}, which holds other files; remove them, or choose another "
                "folder to unpack in."
            )
        marker.write_text("unfinished")
        _extract(archive, folder)
        marker.write_text(size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"There is no space left to unpack {archive} into {folder}; free some, or choose a folder to unpack in "
                "on a larger disk."
            ) from error
        if error.errno is not None:
            raise UserError(
                f"{archive} could not be unpacked into {folder} ({first_line(error)}); fix that, or choose another "
                "folder to unpack in."
            ) from error
        raise _damaged(archive, error) from error  # the message of a decompressor
    except _DAMAGED as error:
        raise _damaged(archive, error) from error


def _extract(archive: Path, folder: Path) -> None:
    """Unpack the visible files, and check that the compressed data are complete."""
    with (
        open(archive, "rb") as file,
        tqdm(
            total=archive.stat().st_size, unit="B", unit_scale=True, desc=f"Unpacking {archive.name}", disable=None
        ) as bar,
        tarfile.open(fileobj=file, mode="r:*") as tar,
    ):
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]
            if _clean(member.name) and _is_contiguous(member):
                tar.extract(member, folder, filter="data")
            bar.update(file.tell() - bar.n)
        while tar.fileobj.read(2**20):  # the checksum is at the very end
            pass
        bar.update(file.tell() - bar.n)


def _damaged(archive: Path, error: Exception) -> UserError:
    """Build the error of a compressed tar that cannot be unpacked."""
    return UserError(
        f"{archive} cannot be read as a compressed tar ({first_line(error)}): it is damaged or cut off, so get it again."
    )
