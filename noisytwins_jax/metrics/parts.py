"""Long work in parts, each kept in a file when it is done, so that a killed evaluation goes on where it was."""

import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from noisytwins_jax.together import on_first_process

_ABANDONED_SECONDS = 24 * 3600.0


def in_parts(
    folder: Path | None, count: int, compute: Callable[[int], Mapping[str, np.ndarray]]
) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of parts 0 to `count` - 1: from their files where they are whole, else computed and written.

    To be called by all processes of a run. The first one reads and writes; the others get empty dicts for parts that
    were read.

    Args:
      folder: holds the parts of exactly this work, and is made if need be; None to keep nothing.
      count: parts.
      compute: number of a part → its arrays by name; called by all processes together.
    """
    for number in range(count):
        path = None if folder is None else folder / f"part_{number:05d}.npz"
        found: list[dict[str, np.ndarray] | None] = [None]

        def read(path: Path | None = path, found: list = found) -> bool:
            found[0] = None if path is None else _read(path)
            return found[0] is not None

        if on_first_process(read):
            yield found[0] or {}
            continue
        arrays = dict(compute(number))
        if path is not None:
            on_first_process(lambda path=path, arrays=arrays: _write(path, arrays))
        yield arrays


def remove_parts(folder: Path | None) -> None:
    """Removes finished work, and beside it what was left unfinished a day ago or earlier; on the first process."""

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for other in folder.parent.glob("*/"):
            newest = max((path.stat().st_mtime for path in other.glob("part_*")), default=time.time())
            if time.time() - newest > _ABANDONED_SECONDS:
                shutil.rmtree(other, ignore_errors=True)

    if folder is not None:
        on_first_process(remove)


def _read(path: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # missing or damaged
        return None


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
