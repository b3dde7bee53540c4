"""Long computations in parts, each stored in a file when it is done, so that a killed evaluation resumes."""

import contextlib
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from noisytwins_jax.utils.files import replacing
from noisytwins_jax.utils.multihost import broadcast_from_primary

_ABANDONED_SECONDS = 24 * 3600.0
_RESULT = "result.npz"


class ResumableCache:
    """Cache of an evaluation in progress: its parts, then its result until that is stored elsewhere.

    Used by all processes of a run; the primary reads and writes.

    Args:
      directory: holds a folder for each evaluation; None to store nothing.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._folder: Path | None = None

    def open(self, name: str) -> dict[str, Any] | None:
        """Select the evaluation of that name, with whatever parts it has; return its result if it is finished."""
        if self._directory is None:
            return None
        self._folder = self._directory / name

        def load() -> dict[str, Any] | None:
            stored = _read(self._folder / _RESULT)
            return None if stored is None else json.loads(str(stored["result"]))

        return broadcast_from_primary(load)

    def folder(self, name: str) -> Path | None:
        """Return the folder in which `resumable_chunks` stores one piece of the work."""
        return None if self._folder is None else self._folder / name

    def finish(self, result: dict[str, Any]) -> None:
        """Store the result and delete the parts."""

        def finish() -> None:
            _write(self._folder / _RESULT, {"result": np.array(json.dumps(result))})
            for part in self._folder.glob("*/"):
                shutil.rmtree(part, ignore_errors=True)

        if self._folder is not None:
            broadcast_from_primary(finish)

    def remove_finished(self) -> None:
        """Remove finished evaluations, whose results are stored elsewhere by now, and those abandoned for a day."""

        def remove() -> None:
            for folder in self._directory.glob("*/"):
                newest = max((_modified(path) for path in folder.rglob("part_*")), default=0.0)
                if (folder / _RESULT).exists() or time.time() - newest > _ABANDONED_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # other evaluations are in progress, or it does not exist
                self._directory.rmdir()

        if self._directory is not None:
            broadcast_from_primary(remove)


def resumable_chunks(
    folder: Path | None,
    count: int,
    compute: Callable[[int], Mapping[str, np.ndarray]],
    between: Callable[[], None] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays of parts 0 to `count` - 1: read from their files where those are intact, else computed and stored.

    Called by all processes of a run. The primary reads and writes; the others get empty dicts for parts that were read.

    Args:
      folder: holds the parts of exactly this work, and is created if need be; None to store nothing.
      count: number of parts.
      compute: number of a part → its arrays by name; called by all processes together.
      between: called by all processes after each part that was computed and stored.
    """
    for number in range(count):
        path = None if folder is None else folder / f"part_{number:05d}.npz"
        stored: list[dict[str, np.ndarray] | None] = [None]

        def read(path: Path | None = path, stored: list = stored) -> bool:
            stored[0] = None if path is None else _read(path)
            return stored[0] is not None

        if broadcast_from_primary(read):
            yield stored[0] or {}
            continue
        arrays = dict(compute(number))
        if path is not None:
            broadcast_from_primary(lambda path=path, arrays=arrays: _write(path, arrays))
        yield arrays
        if between is not None:
            between()


def _modified(path: Path) -> float:
    """Return the time at which a file was last written; now, if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _read(path: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # missing or damaged
        return None


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
