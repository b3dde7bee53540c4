"""A reader for files of ``torch.save`` and ``torch.jit.save`` that needs no PyTorch and runs no code from a file.

Three formats, as PyTorch's ``serialization.py`` and TorchScript export write them:

- the zip archive of PyTorch 1.6 and later (.pth, .pt, .bin): ``data.pkl`` and one file per storage;
- the legacy format: consecutive pickles (magic number, protocol, system, object, storage keys), then the length and the
  bytes of each storage;
- TorchScript: a zip archive whose ``data.pkl`` describes modules of ``__torch__.*``, whose tensors are the state dict.

The pickles are interpreted by `torch_pickle`.
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
    ForbiddenNameError,
    Global,
    Module,
    Storage,
    Tensor,
    expect,
    unpickle,
)

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_ZIP = b"PK\x03\x04"


def read_torch_file(path: str | Path, constructors: Mapping[str, Constructor] | None = None) -> Any:
    """Load a file of ``torch.save`` or ``torch.jit.save``.

    Args:
      path: of the file.
      constructors: further names that the file may use, as ``{"module.name": function}``. The function is called in
        place of what the file names, with the file's arguments; it returns plain values, dicts, lists, tuples or its
        arguments. Tensors in its arguments are not arrays yet and must be passed on unchanged.

    Returns:
      The saved object, built of dicts (also for OrderedDict), lists, tuples (also for torch.Size), str, bytes, int,
      float, bool, None, and a NumPy array for each tensor: a state dict is ``{key: array}``. For TorchScript, the state
      dict ``{"module.name": array}``. Arrays have the file's dtype, except that bfloat16 becomes float32; they are
      read-only, and views of one storage share its memory.

    Raises:
      UserError: the file is missing, of another kind, damaged, or names anything that tensors do not need.
    """
    path = Path(path)
    constructors = constructors or {}
    with open_untrusted(path) as file:
        start = file.read(1024)
        file.seek(0)
        check_start(path, start)
        if not start.startswith((_ZIP, b"\x80")):
            raise _not_torch(path)
        return (_read_zip if start.startswith(_ZIP) else _read_legacy)(file, constructors)


@contextlib.contextmanager
def open_untrusted(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; within the context, every error that its content causes becomes a `UserError`."""
    with _open(path) as file:
        try:
            yield file
        except UserError:
            raise
        except ForbiddenNameError as error:
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


# Errors that malformed bytes cause here, in torch_pickle, in pickletools and in zipfile.
_MALFORMED = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    struct.error,
    OverflowError,
    RuntimeError,  # among them RecursionError, for deeply nested lists
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
    """Raise a `UserError` if a file begins like something else that failed downloads leave behind."""
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
            if info.compress_type != zipfile.ZIP_STORED:  # so that a small file cannot become a large array
                raise DamagedError(f"{name} is compressed")
            return archive.read(info)

        if root + "byteorder" in names and content("byteorder") != b"little":
            raise DamagedError("numbers in another byte order than little endian")
        torchscript = root + "constants.pkl" in names
        tree = unpickle(io.BytesIO(content("data.pkl")), constructors, torchscript)
        if torchscript:
            tree = _module_tensors(tree)
        return TensorLoader(lambda key: content(f"data/{key}")).load(tree)


def _read_legacy(file: BinaryIO, constructors: Mapping[str, Constructor]) -> Any:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        if unpickle(stream, constructors) != MAGIC_NUMBER:
            raise _not_torch(file.name)
        tree, contents = read_legacy_parts(stream, constructors)
        return TensorLoader(contents.__getitem__).load(tree)


def read_legacy_parts(stream: Any, constructors: Mapping[str, Constructor]) -> tuple[Any, dict[str, bytes]]:
    """Read the object and the storages, by key, of the legacy format, from a stream past its `MAGIC_NUMBER`."""
    if unpickle(stream, constructors) != PROTOCOL:
        raise DamagedError("an unknown version of the format")
    if unpickle(stream, constructors).get("little_endian") is not True:
        raise DamagedError("numbers in another byte order than little endian")
    sizes: dict[str, int] = {}  # bytes per item of each storage
    tree = unpickle(stream, constructors, sizes=sizes)
    contents: dict[str, bytes] = {}
    for key in unpickle(stream, constructors):
        items = int.from_bytes(stream.read(8), "little")
        contents[key] = stream.read(items * sizes[expect(str, key)])
    return tree, contents


def _module_tensors(tree: Any) -> dict[str, Tensor]:
    """Return the tensors of a tree of modules by their keys in its state dict."""
    if not isinstance(tree, Module):
        raise DamagedError("TorchScript without a module")
    tensors: dict[str, Tensor] = {}
    pending, count = [("", tree)], 0
    while pending:
        prefix, module = pending.pop()
        count += 1
        if prefix.count(".") > 100 or count > 100_000:
            raise DamagedError("modules within themselves")
        for name, value in module.attributes.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, Module):
                pending.append((f"{prefix}{name}.", value))
    return tensors


class TensorLoader:
    """A loader of the tensors in a tree, which reads each storage once.

    Args:
      read: returns the bytes of the storage with a key.
    """

    def __init__(self, read: Callable[[str], bytes]):
        self._read = read
        self._storages: dict[str, np.ndarray] = {}
        self._loaded: dict[int, Any] = {}  # by identity, so that a container with many references is loaded once

    def load(self, value: Any) -> Any:
        """Return the value with an array for each tensor in it.

        Raises:
          ForbiddenNameError: it contains a class or a module.
          DamagedError: a tensor does not fit its storage, or the value contains anything but plain values.
        """
        if isinstance(value, str | bytes | int | float | set | None):
            return value
        if isinstance(value, Tensor):
            return self._array(value)
        if isinstance(value, Global | Module):
            raise ForbiddenNameError(value.name)
        if id(value) not in self._loaded:
            if isinstance(value, dict):
                self._loaded[id(value)] = {key: self.load(item) for key, item in value.items()}
            elif isinstance(value, list):
                self._loaded[id(value)] = [self.load(item) for item in value]
            elif type(value) is tuple:
                self._loaded[id(value)] = tuple(self.load(item) for item in value)
            else:
                raise DamagedError(f"a {type(value).__name__} where tensors should be")
        return self._loaded[id(value)]

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
