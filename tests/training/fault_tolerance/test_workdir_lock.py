import errno
import fcntl
import signal
import socket
import subprocess
import sys

import pytest

from noisytwins_jax.training.fault_tolerance.workdir_lock import WorkdirLock
from noisytwins_jax.utils.errors import UserError

HOLD = """
import sys, time
from noisytwins_jax.training.fault_tolerance.workdir_lock import WorkdirLock
with WorkdirLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(3600)
"""


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"process {holder.pid} on host {socket.gethostname()}\); wait"),
            WorkdirLock(tmp_path),
        ):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with WorkdirLock(tmp_path):
        pass
    with WorkdirLock(tmp_path):  # left, it can be entered again
        pass


def test_a_file_system_without_locks_is_let_pass(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with WorkdirLock(tmp_path), WorkdirLock(tmp_path):
        pass


def test_a_directory_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="cannot be opened"), WorkdirLock(tmp_path / "absent"):
        pass
