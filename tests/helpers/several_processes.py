"""Runs of several processes on this machine."""

import socket
import subprocess
import sys

import tiny_run
from paths import HELPERS
from waiting import TIMEOUT

PROGRAM = HELPERS / "processes_program.py"


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def run(count, *arguments, devices=1, double=False):
    """What each of `count` processes printed, when all have ended well."""
    environment = tiny_run.environment(devices) | ({"JAX_ENABLE_X64": "1"} if double else {})
    address = f"localhost:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAM, *map(str, arguments), address, str(count), str(i)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, outputs
    return outputs
