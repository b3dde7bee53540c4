"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.retry import is_full, retry


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to, which in the end takes the place of `path`; readers see the old file or the whole new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a file as `replacing` does; renamed again, too, while storage fails for a moment."""
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
    """Says it in a sentence if the disk is full.

    Raises:
      UserError: the body could not write for want of space.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(f"There is no space left in {workdir}: free some and run the same command.") from None
