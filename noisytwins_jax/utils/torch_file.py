"""Reads files of ``torch.save`` and ``torch.jit.save`` without PyTorch, and without running anything that is in them.

Three formats, as PyTorch's ``serialization.py`` and its exporter of TorchScript write them:

- the zip archive of PyTorch 1.6 and later (.pth, .pt, .bin): ``data.pkl`` and one file for each storage;
- the older one: pickles one after the other (a magic number, the protocol, the machine, the object, the storages' keys),
  then each storage as its length and its bytes;
- TorchScript: a zip archive whose ``data.pkl`` describes modules of ``__torch__.*``, whose tensors are the state dict.

What a pickle may name, and how it is run, is in `torch_pickle`.
"""

import contextlib
import io
import math
import mmap
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from noisytwins_jax.utils.errors import UserError, first_line
from noisytwins_jax.utils.torch_pickle import (
    Constructor,
    DamagedError,
    Module,
    Name,
    RefusedError,
    Storage,
    Tensor,
    expect,
    unpickle,
)

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_ZIP = b"PK\x03\x04"


def read_torch_file(path: str | Path, constructors: Mapping[str, Constructor] | None = None) -> Any:
    """The content of a file of ``torch.save`` or ``torch.jit.save``.

    Args:
      path: of the file.
      constructors: more that the file may name, as ``{"module.name": function}``: the function is called where the file
        calls what it names. It gets the file's arguments and returns what shall stand in its place, of plain values,
        dicts, lists, tuples and its arguments; tensors in them are not arrays yet and are to be passed on untouched.

    Returns:
      What was saved, of dicts (also for OrderedDict), lists, tuples (also for torch.Size), str, bytes, int, float, bool,
      None, and a numpy array for each tensor: of a state dict ``{key: array}``. For TorchScript: ``{"module.name":
      array}``, the state dict. Arrays have the file's dtype, but bfloat16 becomes float32; they are read-only, and views
      of one storage share its memory.

    Raises:
      UserError: the file is missing, of another kind, damaged, or names anything that is no part of tensors.
    """
    path = Path(path)
    constructors = constructors or {}
    with opened(path) as file:
        start = file.read(1024)
        file.seek(0)
        check_start(path, start)
        if not start.startswith((_ZIP, b"\x80")):
            raise _not_torch(path)
        return (_read_zip if start.startswith(_ZIP) else _read_legacy)(file, constructors)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, to be read within the context, in which whatever is wrong with it becomes a `UserError`."""
    with _open(path) as file:
        try:
            yield file
        except UserError:
            raise
        except RefusedError as error:
            raise UserError(
                f"{path} asks for {error}, which is no part of tensors, so it was not read and nothing of it was run; "
                "take the file from its publisher, or save the network's state_dict() alone."
            ) from None
        except MemoryError:
            raise UserError(
                f"{path} needs more memory than there is; check the file, or take a larger machine."
            ) from None
        except (DamagedError, zipfile.BadZipFile, *_MALFORMED) as error:
            raise UserError(
                f"{path} is damaged or incomplete ({first_line(error)}); download or copy it again."
            ) from None


# What reading malformed bytes raises, here, in torch_pickle, in pickletools and in zipfile.
_MALFORMED = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    struct.error,
    OverflowError,
    RuntimeError,  # also of too many lists in lists
    OSError,
)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(f"There is no {path}; give the file that you downloaded.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file that you can read.") from None


def check_start(path: Path, start: bytes) -> None:
    """Refuses by its first bytes what often stands in place of a downloaded file, as a `UserError`."""
    if not start:
        raise UserError(f"{path} is empty; download or copy it again.")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path} is a Git LFS pointer in place of the file; run `git lfs pull` there, or download the file."
        )
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page saved in place of the file; download the file itself.")


def _not_torch(path: Path | str) -> UserError:
    return UserError(f"{path} is not a file of torch.save or torch.jit.save; give the original .pth, .pt or .bin file.")


def _read_zip(file: BinaryIO, constructors: Mapping[str, Constructor]) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        roots = [match[1] for name in sorted(names) if (match := re.fullmatch(r"([^/]+/)data\.pkl", name))]
        if len(roots) != 1:
            raise _not_torch(file.name)
        root = roots[0]

        def content(name: str) -> bytes:
            info = archive.getinfo(root + name)
            if info.compress_type != zipfile.ZIP_STORED:  # no small file becomes a large array
                raise DamagedError(f"{name} is compressed")
            return archive.read(info)

        if root + "byteorder" in names and content("byteorder") != b"little":
            raise DamagedError("numbers in another byte order than little endian")
        torchscript = root + "constants.pkl" in names
        tree = unpickle(io.BytesIO(content("data.pkl")), constructors, torchscript)
        if torchscript:
            tree = _module_tensors(tree)
        return Arrays(lambda key: content(f"data/{key}")).resolve(tree)


def _read_legacy(file: BinaryIO, constructors: Mapping[str, Constructor]) -> Any:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        if unpickle(stream, constructors) != MAGIC_NUMBER:
            raise _not_torch(file.name)
        tree, contents = legacy_parts(stream, constructors)
        return Arrays(contents.__getitem__).resolve(tree)


def legacy_parts(stream: Any, constructors: Mapping[str, Constructor]) -> tuple[Any, dict[str, bytes]]:
    """The object and the storages, by key, of the older format; the stream is past its `MAGIC_NUMBER`."""
    if unpickle(stream, constructors) != PROTOCOL:
        raise DamagedError("an unknown version of the format")
    if unpickle(stream, constructors).get("little_endian") is not True:
        raise DamagedError("numbers in another byte order than little endian")
    sizes: dict[str, int] = {}  # bytes of each storage
    tree = unpickle(stream, constructors, sizes=sizes)
    contents: dict[str, bytes] = {}
    for key in unpickle(stream, constructors):
        items = int.from_bytes(stream.read(8), "little")
        contents[key] = stream.read(items * sizes[expect(str, key)])
    return tree, contents


def _module_tensors(tree: Any) -> dict[str, Tensor]:
    """The tensors of a tree of modules, by the names that a state dict gives them."""
    if not isinstance(tree, Module):
        raise DamagedError("TorchScript without a module")
    found: dict[str, Tensor] = {}
    pending, count = [("", tree)], 0
    while pending:
        prefix, module = pending.pop()
        count += 1
        if prefix.count(".") > 100 or count > 100_000:
            raise DamagedError("modules within themselves")
        for name, value in module.attributes.items():
            if isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, Module):
                pending.append((f"{prefix}{name}.", value))
    return found


class Arrays:
    """Puts arrays in place of tensors; reads each storage once."""

    def __init__(self, read: Callable[[str], bytes]):
        self._read = read
        self._storages: dict[str, np.ndarray] = {}
        self._done: dict[int, Any] = {}  # by identity: what stands in many places is resolved once

    def resolve(self, value: Any) -> Any:
        """The value with an array for each tensor in it.

        Raises:
          RefusedError: there is a class or a module in it.
          DamagedError: a tensor does not fit its storage, or there is something else that is no plain value.
        """
        if isinstance(value, str | bytes | int | float | set | None):
            return value
        if isinstance(value, Tensor):
            return self._array(value)
        if isinstance(value, Name | Module):
            raise RefusedError(value.text if isinstance(value, Name) else value.name)
        if id(value) not in self._done:
            if isinstance(value, dict):
                self._done[id(value)] = {key: self.resolve(item) for key, item in value.items()}
            elif isinstance(value, list):
                self._done[id(value)] = [self.resolve(item) for item in value]
            elif type(value) is tuple:
                self._done[id(value)] = tuple(self.resolve(item) for item in value)
            else:
                raise DamagedError(f"a {type(value).__name__} where tensors should be")
        return self._done[id(value)]

    def _array(self, tensor: Tensor) -> np.ndarray:
        storage = self._storage(tensor.storage)
        if not math.prod(tensor.shape):
            return np.zeros(tensor.shape, storage.dtype)
        strides = [stride * storage.itemsize for stride in tensor.strides]
        items = storage[tensor.storage.start + tensor.offset :]
        return np.lib.stride_tricks.as_strided(items, tensor.shape, strides, writeable=False)

    def _storage(self, storage: Storage) -> np.ndarray:
        if storage.key not in self._storages:
            content = self._read(storage.key)
            if storage.item_type == "bfloat16":  # the upper half of a float32
                items = (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                items = np.frombuffer(content, storage.item_type)
            self._storages[storage.key] = items
        items = self._storages[storage.key]
        if items.dtype != _dtype(storage.item_type):
            raise DamagedError("one storage with two types")
        if len(items) < storage.start + storage.size:
            raise DamagedError(f"a storage of {storage.size} items has only {len(items)}")
        return items


def _dtype(item_type: str) -> np.dtype:
    return np.dtype(np.float32 if item_type == "bfloat16" else item_type)
