"""Prepared data in a bucket: copied to this machine once, file by file, and read from there."""

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
    """A directory of this machine with the files of a prepared data set.

    A local path is returned as it is. For anything with ``://`` (gs://, s3://, …; fsspec's file systems) the files that
    `info_file` names are copied into `cache` if they are not there yet; several processes of a machine share one copy.

    Args:
      address: of the data set's directory.
      info_file: the file in it that names the others, with their sizes.
      cache: a directory; empty for `DEFAULT_CACHE`.

    Raises:
      UserError: the address cannot be read, a file of the data set is missing there, or there is no space.
    """
    if "://" not in address:
        return Path(address).expanduser()
    target = (Path(cache) if cache else DEFAULT_CACHE).expanduser() / address.replace("://", "/")
    try:
        target.mkdir(parents=True, exist_ok=True)
        with (target / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the other processes of this machine wait, and find everything there
            _mirror(address, info_file, target)
    except UserError:
        raise
    except FileNotFoundError:
        pass  # of the data set as a whole: the caller says so
    except ImportError as error:
        raise UserError(f"{address} needs a package that is not installed ({first_line(error)}).") from None
    except Exception as error:  # of many types, one for each kind of storage
        if is_full(error):
            raise UserError(
                f"There is no space left in {target} for {address}; free some, or set config.data.cache."
            ) from None
        raise UserError(f"{address} cannot be copied to {target} ({first_line(error)}).") from None
    return target


def _mirror(address: str, info_file: str, target: Path) -> None:
    files, root = fsspec.core.url_to_fs(address)
    text = retry(lambda: files.cat_file(f"{root}/{info_file}"), f"Reading {address}/{info_file}")
    wanted = dict(_files_of(json.loads(text)))
    whole, begun = target / info_file, target / f".{info_file}.part"
    if text not in (_content(whole), _content(begun)):  # prepared anew: other files, though of the same sizes perhaps
        for path in (whole, begun, *(target / name for name in wanted)):
            path.unlink(missing_ok=True)
    begun.write_bytes(text)
    missing = {name: size for name, size in wanted.items() if _size(target / name) != size}
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
    os.replace(begun, whole)  # last: now it is whole


def _files_of(info: dict[str, Any]) -> list[tuple[str, int]]:
    """Every file of a data set and its size in bytes."""
    shards = [(shard["file"], shard["bytes"]) for split in info["splits"].values() for shard in split["shards"]]
    return shards + [(entry["file"], entry["bytes"]) for entry in info["files"]]


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
