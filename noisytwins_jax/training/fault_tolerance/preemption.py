"""Preemption notices of Google Cloud machines, which come before SIGTERM.

Every machine there, TPU hosts included, has a metadata server. A request can hang until a value changes:
``instance/preempted`` becomes ``TRUE`` when a spot or preemptible machine is taken back, and
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

NOTICES = {"instance/preempted": "TRUE", "instance/maintenance-event": "TERMINATE"}  # key, and how a notice begins
HANG = 60  # seconds that a request waits for a change
PAUSE = 1.0  # seconds between requests, and before the first one after an error
MAX_PAUSE = 60.0  # seconds, after many errors


def on_google_cloud() -> bool:
    """Return whether this machine may get a preemption notice."""
    return jax.devices()[0].platform == "tpu" or "GCE_METADATA_HOST" in os.environ


class PreemptionWatch:
    """Context in which a thread calls `on_notice`, once for each kind of notice, when the notice comes.

    It does nothing where there is no metadata server. ``GCE_METADATA_HOST`` overrides the server's address.
    """

    def __init__(self, on_notice: Callable[[], None]) -> None:
        self._on_notice = on_notice
        self._host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
        self._ended = threading.Event()
        self._connections: dict[str, http.client.HTTPConnection] = {}
        # Daemons: a DNS lookup cannot be interrupted, and must not keep the program from ending.
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
                tag, pause = None, min(2 * pause, MAX_PAUSE)
            else:
                pause = PAUSE
                if value.upper().startswith(NOTICES[key]):
                    self._on_notice()
                    return
            self._ended.wait(pause)

    def _request(self, key: str, tag: str | None) -> tuple[str, str | None]:
        """Return a value and its tag; given the tag of the last value, wait until the value has changed."""
        path = f"/computeMetadata/v1/{key}"
        if tag is not None:
            path += f"?wait_for_change=true&timeout_sec={HANG}&last_etag={tag}"
        connection = http.client.HTTPConnection(self._host, timeout=HANG + 10)
        self._connections[key] = connection
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Metadata-Flavor": "Google"})
            response = connection.getresponse()
            if response.status != 200 or response.headers.get("Metadata-Flavor") != "Google":
                raise http.client.HTTPException(f"status {response.status}")
            return response.read(1000).decode(errors="replace").strip(), response.headers.get("ETag")
