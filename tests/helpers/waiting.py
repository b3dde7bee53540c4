"""Waiting for other processes and threads."""

import subprocess
import time
from collections.abc import Callable

TIMEOUT = 3600.0  # seconds; ends what hangs, and nothing that a busy machine only makes slow


def wait_until(
    condition: Callable[[], object],
    process: subprocess.Popen | None = None,
    timeout: float = TIMEOUT,
    interval: float = 0.01,
) -> None:
    """Return once `condition` is true, or `process` has ended."""
    deadline = time.monotonic() + timeout
    while not condition() and (process is None or process.poll() is None):
        assert time.monotonic() < deadline, f"nothing happened for {timeout:.0f} s"
        time.sleep(interval)
