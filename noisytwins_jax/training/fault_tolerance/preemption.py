"""The notice that a Google Cloud machine is about to be taken away, which comes before its SIGTERM.

Every machine there, TPU hosts among them, has a server that holds values about it. A request can hang until a value
changes: ``instance/preempted`` becomes ``TRUE`` when a spot or preemptible machine is taken back, and
``instance/maintenance-event`` starts with ``TERMINATE`` before a machine that cannot be moved is stopped.
See https://cloud.google.com/compute/docs/metadata/querying-metadata.
"""

import contextlib
import http.client
import os
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import jax

NOTICES = {"instance/preempted": "TRUE", "instance/maintenance-event": "TERMINATE"}  # how the bad news begins
HANG = 60  # seconds that a request waits for a change
PAUSE = 1.0  # seconds between requests, and before the first one after an error
LONGEST_PAUSE = 60.0  # seconds, after many errors


def on_google_cloud() -> bool:
    """Whether there may be a notice before this machine is taken away."""
    return jax.devices()[0].platform == "tpu" or "GCE_METADATA_HOST" in os.environ


class PreemptionWatch:
    """While active, calls ``on_notice`` (once for each kind of notice) from a thread when the notice comes.

    Silent where there is no such server. The server's address is in ``GCE_METADATA_HOST`` where that is set.
    """

    def __init__(self, on_notice: Callable[[], None]) -> None:
        self._on_notice = on_notice
        self._host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
        self._ended = threading.Event()
        self._connections: dict[str, http.client.HTTPConnection] = {}
        # Daemons: looking up a host's name cannot be interrupted, and must not keep the program from ending.
        self._threads = [threading.Thread(target=self._watch, args=(key,), daemon=True) for key in NOTICES]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for connection in list(self._connections.values()):
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for an answer
        for thread in self._threads:
            thread.join(timeout=1.0)

    def _watch(self, key: str) -> None:
        tag, pause = None, PAUSE
        while not self._ended.is_set():
            try:
                value, tag = self._request(key, tag)
            except (OSError, http.client.HTTPException):
                tag, pause = None, min(2 * pause, LONGEST_PAUSE)
            else:
                pause = PAUSE
                if value.upper().startswith(NOTICES[key]):
                    self._on_notice()
                    return
            self._ended.wait(pause)

    def _request(self, key: str, tag: str | None) -> tuple[str, str | None]:
        """The value and its tag; with the tag of the value known so far, the answer comes when it has changed."""
        path = f"/computeMetadata/v1/{key}"
        if tag is not None:
            path += f"?wait_for_change=true&timeout_sec={HANG}&last_etag={tag}"
        connection = http.client.HTTPConnection(self._host, timeout=HANG + 10)
        self._connections[key] = connection
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Metadata-Flavor": "Google"})
            answer = connection.getresponse()
            if answer.status != 200 or answer.headers.get("Metadata-Flavor") != "Google":
                raise http.client.HTTPException(f"status {answer.status}")
            return answer.read(1000).decode(errors="replace").strip(), answer.headers.get("ETag")
