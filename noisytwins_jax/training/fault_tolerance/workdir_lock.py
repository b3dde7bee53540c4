"""The lock that allows one training in a workdir at a time."""

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

import jax

from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.multihost import raise_on_all_processes

LOCK_FILE = ".lock"


class WorkdirLock:
    """Context in which no other training can enter the same workdir; all processes of a run enter it together.

    The primary process holds an advisory lock of the operating system on a file. It ends with the process, so no stale
    lock has to be removed by hand. Where the file system has no such locks, nothing is checked.

    Args:
      workdir: an existing directory.

    Raises:
      UserError: on entry, in every process, if another training holds the lock; names its process and host.
    """

    def __init__(self, workdir: str | Path) -> None:
        self._path = Path(workdir) / LOCK_FILE
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        with raise_on_all_processes():
            if jax.process_index() == 0:
                self._acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _acquire(self) -> None:
        try:
            self._file = self._path.open("a+")
        except OSError as error:
            raise UserError(f"{self._path} cannot be opened ({error.strerror}); give another --workdir.") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # no locks on this file system
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown process"
            self._file.close()
            raise UserError(
                f"The workdir {self._path.parent} is being trained in ({holder}); wait for that run or stop it, or "
                "give another --workdir."
            ) from None
        with contextlib.suppress(OSError):  # the name is only for the message
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on host {socket.gethostname()}\n")
            self._file.flush()
