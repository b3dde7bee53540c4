"""Atomic writes of files, and a full disk."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.retry import is_full, retry


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` at the end: readers see the old file or the complete new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a file atomically, trying again after transient errors of storage."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")

    def write() -> None:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)

    try:
        retry(write, f"Writing {path}")
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def handle_disk_full(workdir: Path) -> Iterator[None]:
    """Convert errors of a full disk into an error message.

    Raises:
      UserError: the body could not write, as there is no space left.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(f"There is no space left in {workdir}: free some and run the same command.") from None
