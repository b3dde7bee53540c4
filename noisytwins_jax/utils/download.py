"""Downloads of public files: resumed after interruptions, checked, and complete or not there.

Proxies are those of the environment (``HTTPS_PROXY``, ``HTTP_PROXY``, ``NO_PROXY``). With ``NOISYTWINS_MIRROR=https://mirror``
the file of ``https://host/path`` comes from ``https://mirror/host/path``, the layout that ``wget --force-directories`` writes.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from noisytwins_jax.utils.errors import UserError, first_line
from noisytwins_jax.utils.files import handle_disk_full
from noisytwins_jax.utils.progress_bar import bytes_bar
from noisytwins_jax.utils.retry import is_full, retry
from noisytwins_jax.utils.version import __version__

MIRROR_VARIABLE = "NOISYTWINS_MIRROR"
_TIMEOUT = 60.0  # seconds without a byte
_CHUNK = 2**20  # bytes
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP statuses that another attempt may not meet


class RemoteFile(NamedTuple):
    """Public file.

    Attributes:
      address: its http or https address, whose last part is the file's name.
      size: bytes; 0 if unknown.
      sha256: hexadecimal SHA-256; empty if unknown.
      terms: licence or terms of use, in words.
    """

    address: str
    size: int = 0
    sha256: str = ""
    terms: str = ""

    @property
    def name(self) -> str:
        """Return the file's name."""
        return self.address.rpartition("/")[2]


def download(file: RemoteFile, folder: Path, by_hand: str = "") -> Path:
    """Return the path of a file in a folder, downloading it first unless it is there.

    An interrupted download is resumed from its ``.part`` file; a file whose SHA-256 is unknown starts anew instead, as nothing
    would tell whether its parts belong together. The file gets its name after size and SHA-256 were checked. Processes that
    want the same file wait for the one that downloads it.

    Args:
      file: the public file.
      folder: it is created if necessary.
      by_hand: what to do with the file where this machine cannot download it, for messages; by default to put it into the
        folder.

    Raises:
      UserError: the file cannot be downloaded, is another one than expected, or cannot be written. The message has the
        address, the file's name and what to do.
    """
    target, part = folder / file.name, folder / f"{file.name}.part"
    by_hand = by_hand or f"put it into {folder}, and run the same command"
    try:
        if not target.exists():
            with handle_disk_full(folder), locked(folder):
                if not target.exists():
                    _download(file, part, by_hand)
                    part.replace(target)
                    return target
        found = _difference(file, target)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be used ({error.strerror or first_line(error)}).") from None
    if found:
        raise UserError(f"{target} is not the file of {file.address} ({found}); remove it, and run the same command.")
    return target


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time into the body; the folder is created if necessary.

    Raises:
      UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); choose another folder.") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(file: RemoteFile, part: Path, by_hand: str) -> None:
    """Download the whole file to `part` and check it; remove what is not the file."""
    way_out = (
        f"get {file.name} with a browser or on another machine and {by_hand} (or set {MIRROR_VARIABLE} to a mirror, or "
        "HTTPS_PROXY to a proxy)."
    )
    address = _address(file)
    terms = f" Its terms: {file.terms}." if file.terms else ""
    print(f"Downloading {address}.{terms}", flush=True)
    resumed = file.sha256 and part.exists() and part.stat().st_size > 0
    _fetch_all(file, address, part, way_out)
    if resumed and _difference(file, part):  # what an earlier run left may be damaged
        part.unlink()
        _fetch_all(file, address, part, way_out)
    if found := _difference(file, part):
        part.unlink()
        raise UserError(f"{address} holds another file than the published {file.name} ({found}); {way_out}")


def _fetch_all(file: RemoteFile, address: str, part: Path, way_out: str) -> None:
    """Fetch until `part` is complete; attempts are counted from the last one that brought the file further."""
    if not file.sha256:
        part.unlink(missing_ok=True)
    part.touch()
    furthest = -1
    with bytes_bar(file.name, file.size or None) as bar:
        while part.stat().st_size > furthest:
            furthest = part.stat().st_size
            try:
                return retry(lambda: _fetch(file, address, part, way_out, bar), f"Downloading {file.name}")
            except OSError as error:
                if is_full(error):
                    raise
                reason = error.strerror or first_line(error)
        raise UserError(f"{address} cannot be downloaded ({reason}); {way_out}")


def _fetch(file: RemoteFile, address: str, part: Path, way_out: str, bar: tqdm) -> None:
    """Fetch what `part` lacks, or everything from a server that only sends all of it.

    Raises:
      OSError: with a number of `retry.TRANSIENT` if another attempt may succeed.
      UserError: it cannot.
    """
    start = part.stat().st_size if file.sha256 else 0
    if file.size and start >= file.size:
        if start == file.size:
            return
        start = 0
    headers = {"User-Agent": f"noisytwins_jax/{__version__}"} | ({"Range": f"bytes={start}-"} if start else {})
    with _open(urllib.request.Request(address, headers=headers), part, way_out) as response:
        start, total = _announced(response, start, part)
        is_page = response.headers.get_content_type() == "text/html"
        if is_page and (not file.size or total != file.size):
            raise UserError(f"{address} answers with a web page instead of the file; {way_out}")
        if file.size and total not in (None, file.size):
            raise UserError(f"{address} has {total} bytes, not the {file.size} of the published file; {way_out}")
        total = file.size or total
        if total is None:
            raise UserError(f"{address} does not say how long the file is; {way_out}")
        if (free := shutil.disk_usage(part.parent).free) < total - start:
            raise OSError(errno.ENOSPC, f"{total - start} bytes are needed, and {free} are free")
        bar.total, bar.n = total, start
        with part.open("r+b") as output:
            output.seek(start)
            output.truncate()
            for data in iter(functools.partial(_read, response), b""):
                start += output.write(data)
                bar.update(len(data))
                if start > total:
                    raise UserError(f"{address} has more than the {total} bytes of the file; {way_out}")
    if start < total:
        raise ConnectionResetError(errno.ECONNRESET, f"the connection was cut after {start} of {total} bytes")


def _open(request: urllib.request.Request, part: Path, way_out: str) -> http.client.HTTPResponse:
    """Open an address; the errors are those of `_fetch`."""
    try:
        return urllib.request.build_opener().open(request, timeout=_TIMEOUT)  # reads the proxies' variables now
    except urllib.error.HTTPError as error:
        with error:
            status = f"HTTP status {error.code} {error.reason}".rstrip()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # what is there is no beginning of the file
            os.truncate(part, 0)
        elif error.code not in _PASSING:
            raise UserError(f"{request.full_url} cannot be downloaded ({status}); {way_out}") from None
        raise ConnectionAbortedError(errno.ECONNABORTED, status) from None
    except urllib.error.URLError as error:  # no connection was made
        if isinstance(error.reason, TimeoutError):
            raise _passing(error.reason) from None
        raise error.reason if isinstance(error.reason, OSError) else OSError(0, str(error.reason)) from None
    except http.client.InvalidURL as error:
        raise OSError(0, str(error)) from None
    except (OSError, http.client.HTTPException) as error:
        raise _passing(error) from None


def _announced(response: http.client.HTTPResponse, start: int, part: Path) -> tuple[int, int | None]:
    """Return the first byte that the response sends, and the size of the whole file; None if it is not said.

    Raises:
      ConnectionAbortedError: they are other bytes than asked for; the next attempt asks for all of them.
    """
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0, response.length
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not span or int(span[1]) != start:
        os.truncate(part, 0)
        raise ConnectionAbortedError(errno.ECONNABORTED, "the server sent another part of the file than asked for")
    return start, None if span[2] == "*" else int(span[2])


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _passing(error) from None


def _passing(error: Exception) -> OSError:
    """Return an error of a connection as one that another attempt may not meet."""
    return ConnectionResetError(errno.ECONNRESET, first_line(error))


def _address(file: RemoteFile) -> str:
    """Return the address to download from: the publisher's, or the mirror's."""
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    if mirror and not re.fullmatch(r"https?://[^/\s]\S*", mirror):
        raise UserError(f"{MIRROR_VARIABLE}={mirror} is no http or https address; give one, or unset the variable.")
    return f"{mirror.rstrip('/')}/{file.address.partition('://')[2]}" if mirror else file.address


def _difference(file: RemoteFile, path: Path) -> str:
    """Return how a file on the disk differs from the published one, as far as that is known; empty if it does not."""
    size = path.stat().st_size
    if file.size and size != file.size:
        return f"{size} bytes instead of {file.size}"
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest() if file.sha256 else ""
    return f"SHA-256 {sha256[:16]}… instead of {file.sha256[:16]}…" if sha256 != file.sha256 else ""
