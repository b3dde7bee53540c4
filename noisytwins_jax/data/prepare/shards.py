"""Writing the images of a listing into shards: on all cores, a whole shard at a time, so that a killed run goes on.

Shards lie in a directory of their own until all are done. Each is written under another name first, and counts once its
notes (a JSON file beside it) are there. Images are put into an order that mixes the classes, always the same one.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from noisytwins_jax.data import records
from noisytwins_jax.data.prepare.listing import Item, Listing, Problems, Reader, RenderedImage
from noisytwins_jax.data.preprocessing import Preprocessing
from noisytwins_jax.utils.errors import UserError, first_line
from noisytwins_jax.utils.retry import is_full

SHARD_BYTES = 2**25  # of pixels: what a killed run loses for each process, unless there would be too many shards
MIN_SHARD_IMAGES, MIN_SHARDS = 256, 16  # small sets have smaller shards, so that every core has some
MAX_SHARDS = 256  # of a split: every reading thread keeps all of them open, and a process has often 1024 files
MAX_UNREADABLE = 1000  # wrong images, after which nothing more is tried
UNREADABLE = "unreadable images"
DUPLICATES = "training images that are reference images too"
_REPORT_EVERY = 32  # images, between two reports of a process
# Records can be read one by one, and pixels hardly shrink under compression.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class Format(NamedTuple):
    """What every image becomes."""

    resolution: int
    channels: int
    preprocessing: Preprocessing

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        return self.resolution, self.resolution, self.channels


@dataclass(frozen=True)
class Shard:
    """One shard that is to be written, and how."""

    path: Path
    split: str
    items: Sequence[Item]
    read: Reader
    format: Format

    @property
    def metadata_path(self) -> Path:
        """Where it says what is in the shard."""
        return self.path.with_name(f"{self.path.name}.json")


@dataclass
class ShardMetadata:
    """What is in a shard, image by image, and what went wrong with the others."""

    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)  # SHA-256 of the pixels, 32 hexadecimal digits
    factors: list[list[float]] = field(default_factory=list)
    size: int = 0  # bytes of the file
    sha256: str = ""  # of the file
    wrong: dict[str, list[str]] = field(default_factory=dict)
    converted: dict[str, int] = field(default_factory=dict)


def plan_shards(listing: Listing, format: Format, directory: Path, name: str) -> list[Shard]:
    """The shards of a listing, of one size in each split but for the last; a file name says which of how many it is."""
    largest = max(1, SHARD_BYTES // int(np.prod(format.shape)))
    shards = []
    for split, items in listing.splits.items():
        size = min(largest, max(MIN_SHARD_IMAGES, -(-len(items) // MIN_SHARDS)))
        size = max(size, -(-len(items) // MAX_SHARDS))
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(items))
        count = -(-len(items) // size)
        for i in range(count):
            path = directory / f"{name}-{split}.array_record-{i:05d}-of-{count:05d}"
            members = [items[j] for j in order[i * size : (i + 1) * size]]
            shards.append(Shard(path, split, members, listing.read, format))
    return shards


def plan_fingerprint(listing: Listing, format: Format) -> str:
    """SHA-256 of everything that decides what is written, except where the source lies."""
    digest = hashlib.sha256(repr((format.shape, format.preprocessing.name, SHARD_BYTES)).encode())
    digest.update(repr((tuple(listing.class_names), listing.factor_names)).encode())
    # What a reader was bound to, such as the seed of drawn images, decides what they show.
    digest.update(repr(sorted(getattr(listing.read, "keywords", {}).items())).encode())
    for split, items in sorted(listing.splits.items()):
        digest.update(split.encode())
        for item in items:
            digest.update(f"{item.name}\0{item.label}\0".encode())
    return digest.hexdigest()


def read_metadata(shard: Shard) -> ShardMetadata | None:
    """What is in a shard, or ``None`` if it is not there as a whole."""
    try:
        notes = ShardMetadata(**json.loads(shard.metadata_path.read_text()))
        return notes if shard.path.stat().st_size == notes.size else None
    except (OSError, ValueError, TypeError):
        return None


def write_shards(shards: Sequence[Shard], jobs: int, description: str) -> None:
    """Writes shards with `jobs` processes and shows the progress; those that are written stay, whatever happens.

    Raises:
      UserError: no space is left, far too much is wrong, or a process was killed.
    """
    total = sum(len(shard.items) for shard in shards)
    context = multiprocessing.get_context("spawn")  # the caller may have threads
    done = context.Value("q", 0)
    with (
        tqdm(total=total, desc=description, unit="img", unit_scale=False, dynamic_ncols=True) as bar,
        ProcessPoolExecutor(min(jobs, max(1, len(shards))), context, _start, (done,)) as pool,
    ):
        running: set[Future] = {pool.submit(write_shard, shard) for shard in shards}
        wrong = 0
        try:
            while running:
                ended, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                bar.update(done.value - bar.n)
                wrong += sum(future.result() for future in ended)
                if wrong > MAX_UNREADABLE:
                    raise UserError(
                        f"More than {MAX_UNREADABLE} images cannot be read; see whether --source is the right one and whole."
                    )
            bar.update(total - bar.n)
        except BrokenProcessPool:
            raise UserError(
                "A process that prepares images was killed, perhaps for want of memory; run the same command to go on, "
                "with fewer --jobs."
            ) from None
        except OSError as error:
            if not is_full(error):
                raise
            raise UserError(
                f"There is no space left in {shards[0].path.parent}; free some and run the same command to go on."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def write_shard(shard: Shard, leave_out: Mapping[str, str] | None = None) -> int:
    """Writes one shard and its notes; returns how many of its images are wrong.

    Args:
      shard: what to write.
      leave_out: images of it that are left out as `DUPLICATES`: the reference image by the name of the other.

    Raises:
      OSError: the shard cannot be written; what there is of it does not count.
    """
    notes, problems = ShardMetadata(), Problems()
    unfinished = shard.path.with_name(f"{shard.path.name}.part")
    written = 0
    try:
        writer = ArrayRecordWriter(str(unfinished), _WRITER_OPTIONS)
        try:
            for count, item in enumerate(shard.items, start=1):
                if item.name in (leave_out or {}):
                    problems.add(DUPLICATES, f"{item.name}: as {leave_out[item.name]}")
                    continue
                record = _read(item, shard, problems)
                if record is not None:
                    data = records.encode(record)
                    writer.write(data)
                    written += len(data)
                    notes.names.append(item.name)
                    notes.labels.append(item.label)
                    notes.hashes.append(hashlib.sha256(record.image.tobytes()).hexdigest()[:32])
                    if record.factors is not None:
                        notes.factors.append([float(x) for x in record.factors])
                if count % _REPORT_EVERY == 0 or count == len(shard.items):
                    _report((count - 1) % _REPORT_EVERY + 1)
        finally:
            writer.close()
    except RuntimeError as error:  # the writer has no other kind
        unfinished.unlink(missing_ok=True)
        raise _writing_error(error, unfinished) from None
    notes.size, notes.sha256 = _size_and_sha256(unfinished)
    if notes.size < written:  # some versions of the writer are silent about a full disk
        unfinished.unlink()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(unfinished))
    notes.wrong, notes.converted = problems.wrong, dict(problems.converted)
    shard.metadata_path.unlink(missing_ok=True)  # those of an earlier shard, which may have the same size
    os.replace(unfinished, shard.path)
    text = shard.metadata_path.with_name(f"{shard.metadata_path.name}.part")
    text.write_text(json.dumps(vars(notes)))
    os.replace(text, shard.metadata_path)
    return len(problems)


def _read(item: Item, shard: Shard, problems: Problems) -> records.Record | None:
    resolution, channels, preprocess = shard.format
    try:
        found: Any = shard.read(item)
        if isinstance(found, RenderedImage):
            return records.Record(found.image, item.label, item.name, np.asarray(found.factors, np.float32))
        return records.Record(preprocess(found, resolution, channels, problems.convert), item.label, item.name)
    except Exception as error:  # image libraries raise many types for what they cannot read
        if is_full(error):
            raise
        problems.add(UNREADABLE, f"{item.name}: {first_line(error)}")
        return None


def _writing_error(error: RuntimeError, path: Path) -> OSError:
    """What the writer says in words, as the operating system's error."""
    number = next((number for number in errno.errorcode if os.strerror(number) in str(error)), errno.EIO)
    return OSError(number, first_line(error) if number == errno.EIO else os.strerror(number), str(path))


def _size_and_sha256(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return path.stat().st_size, digest


_done: Any = None  # in a process of `write_shards`: the counter that all of them share


def _start(done: Any) -> None:
    global _done
    _done = done
    # Ctrl-C reaches every process of the terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process once the first one is gone: else both it and the next run would write the same files."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _report(count: int) -> None:
    if _done is not None:
        with _done.get_lock():
            _done.value += count
