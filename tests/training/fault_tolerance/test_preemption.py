"""A server that plays Google Cloud's: hangs until a value changes."""

import http.server
import threading
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from waiting import wait_until

from noisytwins_jax.training.fault_tolerance import preemption
from noisytwins_jax.training.fault_tolerance.signals import StopSignal


class Metadata(http.server.ThreadingHTTPServer):
    """Values by key, and the requests that came."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.values = {"instance/preempted": "FALSE", "instance/maintenance-event": "NONE"}
        self.changed = threading.Condition()
        self.requests, self.broken = [], False

    def handle_error(self, *_):
        """Nothing is printed, least of all into the output of other tests: clients may go away while they wait."""

    def set(self, key, value):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, url = self.server, urlsplit(self.path)
        key, query = url.path.removeprefix("/computeMetadata/v1/"), parse_qs(url.query)
        server.requests.append(self.path)
        if server.broken or self.headers["Metadata-Flavor"] != "Google":
            self.send_error(503)
            return
        with server.changed:
            if "wait_for_change" in query and query["last_etag"] == [server.values[key]]:
                server.changed.wait(timeout=float(query["timeout_sec"][0]))
            value = server.values[key]
        self.send_response(200)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("ETag", value)
        self.end_headers()
        self.wfile.write(value.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    server = Metadata()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
    monkeypatch.setattr(preemption, "PAUSE", 0.02)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("key", "value"),
    [("instance/preempted", "TRUE"), ("instance/maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")],
)
def test_a_notice_asks_to_stop(server, key, value):
    with StopSignal(watch_preemption=True) as stop:
        hanging = [f"/computeMetadata/v1/{k}?wait_for_change=true" for k in preemption.NOTICES]
        wait_until(lambda: all(any(r.startswith(h) for r in server.requests) for h in hanging))
        time.sleep(0.2)
        assert not stop.agreed()
        assert len(server.requests) == 4  # for each key the value now, and one request that hangs
        server.set(key, value)
        wait_until(stop.agreed)
        assert (stop.name, stop.exit_status) == ("a preemption notice", 143)


def test_a_machine_that_is_moved_goes_on(server):
    with StopSignal(watch_preemption=True) as stop:
        server.set("instance/maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")
        wait_until(lambda: sum("last_etag=MIGRATE" in request for request in server.requests) > 0)
        assert not stop.agreed()


def test_goes_on_asking_after_errors(server):
    server.broken = True
    with StopSignal(watch_preemption=True) as stop:
        wait_until(lambda: len(server.requests) >= 4)
        assert not stop.agreed()
        server.values["instance/preempted"] = "TRUE"
        server.broken = False
        wait_until(stop.agreed)


def test_ends_with_the_context(server):
    before = threading.active_count()
    with StopSignal(watch_preemption=True):
        wait_until(lambda: len(server.requests) >= 4)
    # Long before the answers to the hanging requests would have come.
    wait_until(
        lambda: not any("_watch" in thread.name for thread in threading.enumerate()), timeout=preemption.HANG / 2
    )
    server.set("instance/preempted", "FALSE")  # the server's own threads end
    wait_until(lambda: threading.active_count() <= before)


def test_is_quiet_without_a_server(monkeypatch, capfd):
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    monkeypatch.setattr(preemption, "PAUSE", 0.01)
    with StopSignal(watch_preemption=True) as stop:
        time.sleep(0.1)
        assert not stop.agreed()
    assert capfd.readouterr() == ("", "")


def test_is_not_asked_unless_wanted(server):
    with StopSignal():
        time.sleep(0.1)
    assert not server.requests
