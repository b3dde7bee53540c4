"""Downloads from a local server that cuts connections, ignores ranges, lies about sizes and sends other bytes."""

import collections
import hashlib
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from file_server import serve

from noisytwins_jax.utils import download as download_module
from noisytwins_jax.utils import retry as retry_module
from noisytwins_jax.utils.download import RemoteFile, download
from noisytwins_jax.utils.errors import UserError

CONTENT = np.random.default_rng(0).bytes(3_000_000)  # more than one chunk
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "NOISYTWINS_MIRROR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(retry_module.time, "sleep", lambda _: None)
    with serve() as server:
        server.files["/files/weights.pth"] = CONTENT
        yield server


def remote(server, **changes):
    address = f"{server.address}/files/weights.pth"
    return RemoteFile(address, len(CONTENT), SHA256, "MIT, https://example.org")._replace(**changes)


def refused(file, folder):
    """Return the message, which names address, file and the way out; no file passes for complete."""
    with pytest.raises(UserError) as caught:
        download(file, folder)
    message = str(caught.value)
    assert file.name in message and message.endswith(".") and "\n" not in message, message
    assert f"{file.address} " in message and f"put it into {folder}" in message and "HTTPS_PROXY" in message, message
    assert not (folder / file.name).exists()
    return message


def ranges(server):
    return [asked for _, asked in server.requests]


def test_a_file_is_downloaded_once(server, tmp_path, capsys):
    file, folder = remote(server), tmp_path / "new" / "folder"
    path = download(file, folder)
    assert path == folder / "weights.pth" and path.read_bytes() == CONTENT
    assert [name for name in os.listdir(folder) if not name.startswith(".")] == ["weights.pth"]
    output = capsys.readouterr().out
    assert file.address in output and "MIT, https://example.org" in output
    assert download(file, folder) == path and len(server.requests) == 1 and not capsys.readouterr().out


def test_cut_connections_are_resumed(server, tmp_path, capsys):
    server.behaviours = ["cut:100", "cut:2000000", "cut:5"]
    assert download(remote(server), tmp_path).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100-", "bytes=2000100-", "bytes=2000105-"]
    assert "cut after 100 of 3000000 bytes" in capsys.readouterr().err


def test_attempts_are_counted_from_the_last_progress(server, tmp_path):
    server.behaviours = ["cut:100000"] * 29
    assert download(remote(server), tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 30


def test_a_server_that_ignores_ranges(server, tmp_path):
    server.behaviours = ["cut:1000", "whole:500", "whole:3000000"]
    assert download(remote(server), tmp_path).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=1000-", "bytes=500-"]


def test_a_server_that_always_cuts(server, tmp_path):
    server.forever = "whole:1000"
    assert "cut after 1000 of 3000000 bytes" in refused(remote(server), tmp_path)
    assert (tmp_path / "weights.pth.part").stat().st_size == 1000
    server.requests.clear()
    server.forever = "honest"
    assert download(remote(server), tmp_path).read_bytes() == CONTENT
    assert ranges(server) == ["bytes=1000-"]


@pytest.mark.parametrize("behaviour", ["shifted", "status:416"])
def test_a_server_that_sends_another_range(server, tmp_path, behaviour):
    server.behaviours = ["cut:1000", behaviour]
    assert download(remote(server), tmp_path).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=1000-", None]


@pytest.mark.parametrize("left", [CONTENT[:1000], CONTENT, CONTENT + b"more"])
def test_what_an_earlier_run_left(server, tmp_path, left):
    (tmp_path / "weights.pth.part").write_bytes(left)
    assert download(remote(server), tmp_path).read_bytes() == CONTENT
    assert ranges(server) == {1000: ["bytes=1000-"], len(CONTENT): []}.get(len(left), [None])


@pytest.mark.parametrize("size", [1000, len(CONTENT)])
def test_damage_of_an_earlier_run_is_replaced(server, tmp_path, size):
    (tmp_path / "weights.pth.part").write_bytes(bytes(size))
    assert download(remote(server), tmp_path).read_bytes() == CONTENT
    assert ranges(server)[-1] is None


def test_other_bytes(server, tmp_path):
    server.forever = "other"
    message = refused(remote(server), tmp_path)
    assert "holds another file than the published weights.pth" in message and SHA256[:16] in message
    assert not (tmp_path / "weights.pth.part").exists()


@pytest.mark.parametrize("size", [2_999_999, 3_000_001])
def test_another_size_than_the_published_file(server, tmp_path, size):
    server.forever = f"size:{size}"
    assert f"has {size} bytes, not the 3000000 of the published file" in refused(remote(server), tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize("behaviour", ["unsaid", "chunked"])
def test_no_size_is_announced(server, tmp_path, behaviour):
    server.forever = behaviour
    assert download(remote(server), tmp_path / "known").read_bytes() == CONTENT
    assert "does not say how long" in refused(remote(server, size=0), tmp_path)
    server.files["/files/weights.pth"] = CONTENT + b"more"
    assert "more than the 3000000 bytes" in refused(remote(server), tmp_path)


def test_a_missing_file_is_said_at_once(server, tmp_path):
    assert "HTTP status 404 Not Found" in refused(remote(server, address=f"{server.address}/weights.pth"), tmp_path)
    assert len(server.requests) == 1


def test_a_server_with_problems(server, tmp_path):
    server.behaviours = ["status:503", "status:500", "status:429"]
    assert download(remote(server), tmp_path / "one").read_bytes() == CONTENT
    server.forever = "status:500"
    server.requests.clear()
    assert "HTTP status 500" in refused(remote(server), tmp_path / "two")
    assert 1 < len(server.requests) < 20


@pytest.mark.parametrize("size", [0, len(CONTENT)])
def test_a_web_page_instead_of_the_file(server, tmp_path, size):
    server.forever = "page"
    assert "answers with a web page" in refused(remote(server, size=size), tmp_path)
    assert len(server.requests) == 1


def test_a_file_of_unknown_sha256_is_never_put_together(server, tmp_path):
    file = remote(server, size=0, sha256="")
    (tmp_path / "weights.pth.part").write_bytes(b"of another version")
    server.behaviours = ["cut:1000"]
    assert download(file, tmp_path).read_bytes() == CONTENT
    assert ranges(server) == [None, None]


def test_no_server(server, tmp_path):
    file = remote(server)
    server.server_close()
    assert "cannot be downloaded (Connection refused)" in refused(file, tmp_path)


def test_a_mirror(server, tmp_path, monkeypatch):
    server.files = {"/mirror/example.org/~a/weights.pth": CONTENT}
    file = remote(server, address="https://example.org/~a/weights.pth")
    for slash in ("", "/"):
        monkeypatch.setenv("NOISYTWINS_MIRROR", f"{server.address}/mirror{slash}")
        assert download(file, tmp_path / f"to{slash}").read_bytes() == CONTENT
    for mistake in ("mirror.org", "file:///mirror", "https://", "https://a b"):
        monkeypatch.setenv("NOISYTWINS_MIRROR", mistake)
        with pytest.raises(UserError, match=r"NOISYTWINS_MIRROR=.* is no http or https address"):
            download(file, tmp_path / "other")


def test_a_proxy(server, tmp_path, monkeypatch):
    server.files = {"http://example.org/weights.pth": CONTENT}  # as a proxy is asked
    monkeypatch.setenv("http_proxy", server.address)
    assert download(remote(server, address="http://example.org/weights.pth"), tmp_path).read_bytes() == CONTENT


def test_a_file_put_there_by_hand(server, tmp_path):
    (tmp_path / "weights.pth").write_bytes(CONTENT)
    assert download(remote(server), tmp_path) == tmp_path / "weights.pth"
    for content, difference in ((CONTENT[:-1], "2999999 bytes"), (CONTENT[:-1] + b"?", "SHA-256")):
        (tmp_path / "weights.pth").write_bytes(content)
        with pytest.raises(UserError, match=rf"weights\.pth is not the file of http.*{difference}.*remove it"):
            download(remote(server), tmp_path)
        assert (tmp_path / "weights.pth").read_bytes() == content
    assert not server.requests


def test_one_of_several_processes_downloads(server, tmp_path):
    """Threads stand for processes: each opens the lock for itself."""
    server.behaviours = ["slow"]
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(download(remote(server), tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert server.waiting.wait(60)
    server.release.set()
    for thread in threads:
        thread.join()
    assert paths == [tmp_path / "weights.pth"] * 3 and len(server.requests) == 1


def test_killed_and_resumed(server, tmp_path):
    file = remote(server)
    server.behaviours = ["slow"]
    program = (
        "import sys; from pathlib import Path; from noisytwins_jax.utils.download import RemoteFile, download; "
        "download(RemoteFile(sys.argv[1], int(sys.argv[2]), sys.argv[3]), Path(sys.argv[4]))"
    )
    arguments = [file.address, str(file.size), file.sha256, str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.DEVNULL)
    part = tmp_path / "weights.pth.part"
    assert server.waiting.wait(120)
    while not (part.exists() and part.stat().st_size >= 2**20):  # a whole chunk is written
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not (tmp_path / "weights.pth").exists()
    server.release.set()
    had = part.stat().st_size
    assert download(file, tmp_path).read_bytes() == CONTENT
    assert 0 < had < len(CONTENT) and ranges(server) == [None, f"bytes={had}-"]


def test_too_little_space(server, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "free")(free=2_999_999)
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=f"no space left in {tmp_path}"):
        download(remote(server), tmp_path)
    assert not (tmp_path / "weights.pth").exists()


def test_a_folder_that_cannot_be(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/folder cannot be written \(Not a directory\)"):
        download(remote(server), tmp_path / "file" / "folder")
    (tmp_path / "weights.pth").mkdir()
    with pytest.raises(UserError, match=r"weights\.pth"):
        download(remote(server), tmp_path)
