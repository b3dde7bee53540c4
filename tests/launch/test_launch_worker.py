"""worker.sh, which runs on the workers of a TPU, with a stub of the package."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from launch_tools import LAUNCH, PYTHON
from waiting import TIMEOUT, wait_until


class Worker:
    """A checkout's worker.sh in a directory of its own, with a stub of the package."""

    def __init__(self, directory: Path, program: str):
        self.directory = directory
        (directory / "launch").mkdir(parents=True)
        shutil.copy(LAUNCH / "worker.sh", directory / "launch")
        (directory / "noisytwins_jax").mkdir()
        (directory / "noisytwins_jax" / "__init__.py").touch()
        (directory / "noisytwins_jax" / "main.py").write_text(program)

    def __call__(self, *words: str, **variables: str) -> subprocess.CompletedProcess:
        command = ["bash", str(self.directory / "launch" / "worker.sh"), *words]
        return subprocess.run(
            command, env={**os.environ, **PYTHON, **variables}, capture_output=True, text=True, timeout=TIMEOUT
        )

    def state(self) -> str:
        return " ".join(self("state").stdout.split()[2:])

    def log(self) -> str:
        return (self.directory / ".run" / "log").read_text()


WAITS = """
import signal, sys, time
def save(number, frame):
    print("saved", flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, save)
print("ready", sys.argv[1:], flush=True)
time.sleep(3600)
"""


def test_worker_runs_detached_and_saves_when_stopped(tmp_path: Path) -> None:
    worker = Worker(tmp_path, WAITS)
    assert worker.state() == "idle"
    assert worker("start", "--a=it's").stdout.split()[2:] == ["running"]
    wait_until(lambda: 'ready ["--a=it\'s"]' in worker.log())
    again = worker("start", "--a")
    assert again.returncode == 2 and "already in progress" in again.stderr
    assert worker("stop").stdout.split()[2:] == ["stopped"]
    assert worker.log().endswith("saved\n")
    assert (tmp_path / ".run" / "status").read_text().split()[0] == "143"
    assert worker("start").stdout.split()[2:] == ["running"]  # and is no longer stopped
    wait_until(lambda: worker.log().count("ready") == 2)
    assert worker("stop", "30").stdout.split()[2:4] == ["ended", "143"]  # by watch, which is about to start it again


def test_worker_reports_how_a_run_ended(tmp_path: Path) -> None:
    worker = Worker(tmp_path, "import sys; sys.exit(int(sys.argv[1]))")
    for status in (0, 2):
        began = int(time.time())
        worker("start", str(status))
        wait_until(lambda: "ended" in worker.state())
        word, ended, when = worker.state().split()
        assert (word, int(ended)) == ("ended", status) and began <= int(when) <= time.time()
    assert worker("start", PYTHON="/nowhere").returncode == 2


def test_worker_detects_a_lost_machine(tmp_path: Path) -> None:
    worker = Worker(tmp_path, WAITS)
    worker("start")
    wait_until(lambda: "ready" in worker.log())
    pid = int((tmp_path / ".run" / "pid").read_text())
    os.killpg(os.getpgid(pid), signal.SIGKILL)  # with the shell that would have recorded its status
    wait_until(lambda: worker.state() == "lost")
    (tmp_path / ".run" / "pid").write_text(str(os.getpid()))  # another process has the number now
    assert worker.state() == "lost"


def test_worker_stop_does_not_wait_for_ever(tmp_path: Path) -> None:
    worker = Worker(tmp_path, "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('deaf')\ntime.sleep(3600)")
    worker("start")
    wait_until(lambda: "deaf" in worker.log())
    assert worker("stop", "1").stdout.split()[2:4] == ["ended", "137"]
