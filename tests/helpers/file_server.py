"""A local HTTP server of files that can be told to misbehave."""

import contextlib
import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves bytes by path, with ranges, on 127.0.0.1.

    Attributes:
      files: path → content.
      behaviours: what to do with the next requests, one each; honest when there are none left. ``cut:N`` closes the
        connection after N bytes, ``whole:N`` does so and ignores the range; ``status:N`` answers with a status; ``page`` with
        a web page; ``size:N`` announces N bytes of the whole file; ``other`` sends other bytes; ``shifted`` sends a range that
        begins one byte late; ``unsaid`` does not say how long the file is; ``chunked`` sends chunks, with no size either;
        ``slow`` stops after half of what was asked for until `release` is set.
      forever: the behaviour after those.
      requests: path and range of each request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.behaviours, self.forever, self.requests = {}, [], "honest", []
        self.release, self.waiting = threading.Event(), threading.Event()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # a client that went away


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((self.path, asked))
        behaviour, _, number = (server.behaviours.pop(0) if server.behaviours else server.forever).partition(":")
        if behaviour == "status":
            self.answer(int(number), b"<html>no</html>", {"Content-Type": "text/html"})
        elif behaviour == "page":
            self.answer(200, b"<html>Log in to the network</html>", {"Content-Type": "text/html; charset=utf-8"})
        elif self.path not in server.files:
            self.answer(404, b"<html>not here</html>", {"Content-Type": "text/html"})
        else:
            self.send_file(server.files[self.path], asked, behaviour, int(number or 0))

    def send_file(self, content, asked, behaviour, number):
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and behaviour != "whole" else 0
        if behaviour == "shifted" and start:
            start += 1
        if behaviour == "other":
            content = bytes(byte ^ 1 for byte in content)
        if asked and start >= len(content):
            return self.answer(416, b"")
        size = number if behaviour == "size" else len(content)
        partial = {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if asked and behaviour != "whole" else {}
        length = {} if behaviour == "unsaid" else {"Content-Length": str(size - start)}
        if behaviour == "chunked":
            length = {"Transfer-Encoding": "chunked"}
        body = content[start:]
        if behaviour in ("cut", "whole"):
            body = body[:number]
        if behaviour == "chunked":
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        self.close_connection = True
        self.send(206 if partial else 200, partial | length | {"Content-Type": "application/octet-stream"})
        if behaviour == "slow":
            self.wfile.write(body[: len(body) // 2])
            self.server.waiting.set()
            self.server.release.wait()
            body = body[len(body) // 2 :]
        self.wfile.write(body)

    def answer(self, status, body, headers=()):
        self.close_connection = True
        self.send(status, {"Content-Length": str(len(body)), **dict(headers)})
        self.wfile.write(body)

    def send(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()


@contextlib.contextmanager
def serve():
    """Run a server in a thread."""
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.release.set()
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def serve_public_set(monkeypatch, dataset, files):
    """Run a mirror on which small files, content by name, pass for the public ones of a data set."""
    from noisytwins_jax.data.prepare.public_files import PUBLIC_SETS
    from noisytwins_jax.utils import retry

    public = PUBLIC_SETS[dataset]
    assert {file.name for file in public.files} == files.keys()
    with serve() as server:
        monkeypatch.setenv("NOISYTWINS_MIRROR", server.address)
        monkeypatch.setattr(retry.time, "sleep", lambda _: None)
        remote = []
        for file in public.files:
            content = files[file.name]
            server.files[f"/{file.address.partition('://')[2]}"] = content
            known = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} if file.sha256 else {}
            remote.append(file._replace(**known))
        small = public._replace(files=tuple(remote), installed="")
        monkeypatch.setitem(PUBLIC_SETS, dataset, small)
        yield server
