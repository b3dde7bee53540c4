"""Local copies of prepared data in a bucket."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import fsspec
from tqdm import tqdm

from noisytwins_jax.utils.errors import UserError, first_line
from noisytwins_jax.utils.retry import is_full, retry

DEFAULT_CACHE = Path("~/.cache/noisytwins_jax/data")


def local_directory(address: str, info_file: str, cache: str = "") -> Path:
    """Return a local directory with the files of a prepared data set, copying them first if necessary.

    A local path is returned unchanged. For an address with ``://`` (gs://, s3://, …; fsspec's file systems), the files
    that `info_file` lists are copied into `cache` unless they are there; the processes of a machine share one copy.

    Args:
      address: directory of the data set.
      info_file: name of the file in it that lists the others with their sizes.
      cache: local directory; empty for `DEFAULT_CACHE`.

    Raises:
      UserError: the address cannot be read, a file of the data set is missing, or the disk is full.
    """
    if "://" not in address:
        return Path(address).expanduser()
    target = (Path(cache) if cache else DEFAULT_CACHE).expanduser() / address.replace("://", "/")
    try:
        target.mkdir(parents=True, exist_ok=True)
        with (target / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # this machine's other processes wait, then find all files
            _mirror(address, info_file, target)
    except UserError:
        raise
    except FileNotFoundError:
        pass  # the whole data set is missing: the caller reports it
    except ImportError as error:
        raise UserError(f"{address} needs a package that is not installed ({first_line(error)}).") from None
    except Exception as error:  # every file system has its own types
        if is_full(error):
            raise UserError(
                f"There is no space left in {target} for {address}; free some, or set config.data.cache."
            ) from None
        raise UserError(f"{address} cannot be copied to {target} ({first_line(error)}).") from None
    return target


def _mirror(address: str, info_file: str, target: Path) -> None:
    files, root = fsspec.core.url_to_fs(address)
    text = retry(lambda: files.cat_file(f"{root}/{info_file}"), f"Reading {address}/{info_file}")
    sizes = dict(_list_files(json.loads(text)))
    complete, partial = target / info_file, target / f".{info_file}.part"
    if text not in (_read_bytes(complete), _read_bytes(partial)):  # prepared again: sizes may agree, contents differ
        for path in (complete, partial, *(target / name for name in sizes)):
            path.unlink(missing_ok=True)
    partial.write_bytes(text)
    missing = {name: size for name, size in sizes.items() if _size(target / name) != size}
    with tqdm(
        total=sum(missing.values()), unit="B", unit_scale=True, desc=f"Copying {address}", disable=not missing
    ) as bar:
        for name, size in missing.items():
            part = target / f".{name}.part"
            try:
                retry(
                    lambda name=name, part=part: files.get_file(f"{root}/{name}", str(part)),
                    f"Copying {address}/{name}",
                )
            except FileNotFoundError:
                raise UserError(f"{address}/{name} is missing; copy all of the prepared data there.") from None
            os.replace(part, target / name)
            bar.update(size)
    os.replace(partial, complete)  # last: it marks the copy as complete


def _list_files(info: dict[str, Any]) -> list[tuple[str, int]]:
    """Return the name and size in bytes of every file of a data set."""
    shards = [(shard["file"], shard["bytes"]) for split in info["splits"].values() for shard in split["shards"]]
    return shards + [(entry["file"], entry["bytes"]) for entry in info["files"]]


def _read_bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
