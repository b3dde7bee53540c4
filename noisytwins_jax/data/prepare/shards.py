"""Writing the images of a listing into shards, with several processes; a killed run resumes after its complete shards.

Shards are written into a working directory, each under a temporary name first. A shard is complete once its metadata, a
JSON file beside it, exist. The images are shuffled, always in the same way, to mix the classes.
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

SHARD_BYTES = 2**25  # of pixels, unless that gives too many shards; a killed run loses one shard per process
MIN_SHARD_IMAGES, MIN_SHARDS = 256, 16  # small sets have smaller shards, so that every core has some
MAX_SHARDS = 256  # per split: every reading thread keeps all open, and the limit of a process is often 1024 files
MAX_UNREADABLE = 1000  # images, above which the preparation stops
UNREADABLE = "unreadable images"
DUPLICATES = "training images that are reference images too"
_REPORT_EVERY = 32  # images between two progress reports of a process
# Groups of one record give random access; compression hardly shrinks pixels.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class Format(NamedTuple):
    """The format of all prepared images."""

    resolution: int
    channels: int
    preprocessing: Preprocessing

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        return self.resolution, self.resolution, self.channels


@dataclass(frozen=True)
class Shard:
    """A shard to write."""

    path: Path
    split: str
    items: Sequence[Item]
    read: Reader
    format: Format

    @property
    def metadata_path(self) -> Path:
        """The path of the shard's `ShardMetadata`."""
        return self.path.with_name(f"{self.path.name}.json")


@dataclass
class ShardMetadata:
    """The images in a shard, and the problems with those left out."""

    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)  # SHA-256 of the pixels, 32 hexadecimal digits
    factors: list[list[float]] = field(default_factory=list)
    picture_sizes: list[tuple[int, int]] = field(default_factory=list)  # width and height before they were made square
    size: int = 0  # bytes of the file
    sha256: str = ""  # of the file
    wrong: dict[str, list[str]] = field(default_factory=dict)
    converted: dict[str, int] = field(default_factory=dict)


def plan_shards(listing: Listing, format: Format, directory: Path, name: str) -> list[Shard]:
    """Split a listing into shards, all but the last of a split of equal size."""
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
    """Return the SHA-256 of everything that determines the shards' content, except the location of the source."""
    digest = hashlib.sha256(repr((format.shape, format.preprocessing.name, SHARD_BYTES)).encode())
    digest.update(repr((tuple(listing.class_names), listing.factor_names)).encode())
    # Bound arguments of the reader, such as the seed of rendered images, determine the pixels.
    digest.update(repr(sorted(getattr(listing.read, "keywords", {}).items())).encode())
    for split, items in sorted(listing.splits.items()):
        digest.update(split.encode())
        for item in items:
            digest.update(f"{item.name}\0{item.label}\0".encode())
    return digest.hexdigest()


def read_metadata(shard: Shard) -> ShardMetadata | None:
    """Read the metadata of a shard, or return ``None`` if the shard is incomplete."""
    try:
        metadata = ShardMetadata(**json.loads(shard.metadata_path.read_text()))
        return metadata if shard.path.stat().st_size == metadata.size else None
    except (OSError, ValueError, TypeError):
        return None


def write_shards(shards: Sequence[Shard], jobs: int, description: str) -> None:
    """Write shards with `jobs` processes and a progress bar; complete shards remain if an error occurs.

    Raises:
      UserError: the disk is full, too many images are unreadable, or a process was killed.
    """
    total = sum(len(shard.items) for shard in shards)
    context = multiprocessing.get_context("spawn")  # the caller may have threads
    done = context.Value("q", 0)
    with (
        tqdm(total=total, desc=description, unit="img", unit_scale=False, dynamic_ncols=True) as bar,
        ProcessPoolExecutor(min(jobs, max(1, len(shards))), context, _initialize_worker, (done,)) as pool,
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
                        f"More than {MAX_UNREADABLE} images cannot be read; check that --source is right and complete."
                    )
            bar.update(total - bar.n)
        except BrokenProcessPool:
            raise UserError(
                "A process that prepares images was killed, perhaps for lack of memory; run the same command with fewer "
                "--jobs to resume."
            ) from None
        except OSError as error:
            if not is_full(error):
                raise
            raise UserError(
                f"There is no space left in {shards[0].path.parent}; free some and run the same command to resume."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def write_shard(shard: Shard, duplicates: Mapping[str, str] | None = None) -> int:
    """Write one shard and its metadata; return the number of images with errors.

    Args:
      shard: the shard.
      duplicates: names of training images to leave out as `DUPLICATES`, with the names of the equal reference images.

    Raises:
      OSError: the shard cannot be written; it stays incomplete.
    """
    metadata, problems = ShardMetadata(), Problems()
    partial = shard.path.with_name(f"{shard.path.name}.part")
    written = 0
    try:
        writer = ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
        try:
            for count, item in enumerate(shard.items, start=1):
                if duplicates and item.name in duplicates:
                    problems.add(DUPLICATES, f"{item.name}: as {duplicates[item.name]}")
                    continue
                record = _read(item, shard, metadata, problems)
                if record is not None:
                    data = records.encode(record)
                    writer.write(data)
                    written += len(data)
                    metadata.names.append(item.name)
                    metadata.labels.append(item.label)
                    metadata.hashes.append(hashlib.sha256(record.image.tobytes()).hexdigest()[:32])
                    if record.factors is not None:
                        metadata.factors.append([float(x) for x in record.factors])
                if count % _REPORT_EVERY == 0 or count == len(shard.items):
                    _report((count - 1) % _REPORT_EVERY + 1)
        finally:
            writer.close()
    except RuntimeError as error:  # the writer raises no other type
        partial.unlink(missing_ok=True)
        raise _writing_error(error, partial) from None
    metadata.size, metadata.sha256 = _size_and_sha256(partial)
    if metadata.size < written:  # some versions of the writer ignore a full disk
        partial.unlink()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial))
    metadata.wrong, metadata.converted = problems.wrong, dict(problems.converted)
    shard.metadata_path.unlink(missing_ok=True)  # of an earlier shard, which may have the same size
    os.replace(partial, shard.path)
    partial_metadata = shard.metadata_path.with_name(f"{shard.metadata_path.name}.part")
    partial_metadata.write_text(json.dumps(vars(metadata)))
    os.replace(partial_metadata, shard.metadata_path)
    return len(problems)


def _read(item: Item, shard: Shard, metadata: ShardMetadata, problems: Problems) -> records.Record | None:
    resolution, channels, preprocess = shard.format
    try:
        source = shard.read(item)
        if isinstance(source, RenderedImage):
            return records.Record(source.image, item.label, item.name, np.asarray(source.factors, np.float32))
        picture = preprocess.load(source, channels, problems.convert)
        record = records.Record(preprocess.fit(picture, resolution), item.label, item.name)
        metadata.picture_sizes.append(picture.size)
        return record
    except Exception as error:  # image libraries raise many types for unreadable images
        if is_full(error):
            raise
        problems.add(UNREADABLE, f"{item.name}: {first_line(error)}")
        return None


def _writing_error(error: RuntimeError, path: Path) -> OSError:
    """Convert the writer's error, which has only a text, to the operating system's error."""
    number = next((number for number in errno.errorcode if os.strerror(number) in str(error)), errno.EIO)
    return OSError(number, first_line(error) if number == errno.EIO else os.strerror(number), str(path))


def _size_and_sha256(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return path.stat().st_size, digest


_done: Any = None  # in a worker of `write_shards`: the shared counter of images


def _initialize_worker(done: Any) -> None:
    global _done
    _done = done
    # Ctrl-C reaches every process of the terminal; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process once its parent has ended: it must not write the same files as the next run."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _report(count: int) -> None:
    if _done is not None:
        with _done.get_lock():
            _done.value += count
