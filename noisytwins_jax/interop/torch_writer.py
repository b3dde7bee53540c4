"""A writer of files for ``torch.load`` (also with ``weights_only=True``) that needs no PyTorch.

The format is the zip archive of PyTorch 1.6 and later. Its pickle is written instruction by instruction, since Python's
pickler can only name what it can import.
"""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from noisytwins_jax.utils.files import replacing

_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
_ALIGNMENT = 64  # bytes, so that readers can memory-map the file


def write_torch_file(path: str | Path, content: Any) -> None:
    """Write a file as ``torch.save(content, path)`` does.

    Args:
      path: of the file, which is replaced.
      content: dicts, lists, tuples, str, int, float, bool, None, and NumPy arrays, which become contiguous tensors.

    Raises:
      TypeError: the content has anything else, or an array of an unsupported dtype.
    """
    pickler = Pickler()
    files = {"data.pkl": to_pickle(pickler.dump(content)), "byteorder": b"little"}
    files |= {f"data/{key}": storage for key, storage in enumerate(pickler.storages)} | {"version": b"3\n"}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for member, data in files.items():
            _add(archive, f"archive/{member}", data)


def _add(archive: zipfile.ZipFile, name: str, data: bytes | np.ndarray) -> None:
    entry = zipfile.ZipInfo(name)  # without a time, so that equal content gives equal files
    header = archive.fp.tell() + 30 + len(name)
    padding = -(header + 4) % _ALIGNMENT
    entry.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(entry, data if isinstance(data, bytes) else data.tobytes())


class Pickler:
    """A pickler of plain values and of tensors, whose storages are written elsewhere.

    Attributes:
      storages: of the tensors so far; a storage's index is its key.
    """

    def __init__(self) -> None:
        self.storages: list[np.ndarray] = []

    def dump(self, x: Any) -> bytes:
        """Return the instructions that build a value; see `write_torch_file`."""
        match x:
            case None:
                return b"N"
            case bool():
                return b"\x88" if x else b"\x89"
            case int():
                size = x.bit_length() // 8 + 1
                return b"\x8a" + bytes([size]) + x.to_bytes(size, "little", signed=True)
            case float():
                return b"G" + struct.pack(">d", x)
            case str():
                data = x.encode()
                return b"X" + struct.pack("<I", len(data)) + data
            case tuple():
                return b"(" + b"".join(map(self.dump, x)) + b"t"
            case list():
                return b"](" + b"".join(map(self.dump, x)) + b"e"
            case Mapping():
                return b"}(" + b"".join(self.dump(key) + self.dump(value) for key, value in x.items()) + b"u"
            case np.ndarray():
                return self._dump_tensor(x)
        raise TypeError(f"{type(x).__name__} is not written into files of PyTorch")

    def _dump_tensor(self, x: np.ndarray) -> bytes:
        storage_class = _STORAGES.get(x.dtype.name)
        if storage_class is None:
            raise TypeError(f"Tensors of {x.dtype.name} are not written into files of PyTorch")
        x = np.require(x, requirements="C")  # ascontiguousarray would give a scalar an axis
        shape, strides = map(self.dump, (x.shape, tuple(stride // x.itemsize for stride in x.strides)))
        hooks = dump_global("collections", "OrderedDict") + b")R"
        view = self.dump_storage(x, storage_class), self.dump(0), shape, strides, self.dump(False), hooks
        return dump_call("torch._utils", "_rebuild_tensor_v2", *view)

    def dump_storage(self, x: np.ndarray, storage_class: str) -> bytes:
        """Return the instructions that build the storage of a contiguous array."""
        self.storages.append(x)
        return self.dump_persistent_id(str(len(self.storages) - 1), storage_class, x.size)

    def dump_persistent_id(self, key: str, storage_class: str, size: int, *more: bytes) -> bytes:
        """Return the instructions that load a storage by its persistent identifier."""
        parts = (self.dump("storage"), dump_global("torch", storage_class), *map(self.dump, (key, "cpu", size)), *more)
        return b"(" + b"".join(parts) + b"tQ"


def to_pickle(instructions: bytes) -> bytes:
    """Return a complete pickle of protocol 2."""
    return b"\x80\x02" + instructions + b"."


def dump_global(module: str, attribute: str) -> bytes:
    """Return the instruction that names a class or function."""
    return f"c{module}\n{attribute}\n".encode()


def dump_call(module: str, attribute: str, *arguments: bytes) -> bytes:
    """Return the instructions that call a class or function, with arguments that are instructions themselves."""
    return dump_global(module, attribute) + b"(" + b"".join(arguments) + b"tR"
