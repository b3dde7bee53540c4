"""Writes files that ``torch.load`` reads, ``weights_only=True`` too, without PyTorch: the zip archive of PyTorch 1.6 on.

The pickle in it is written instruction by instruction, as Python's pickler can name only what it can import.
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
_ALIGNMENT = 64  # bytes; lets readers map the file


def write_torch_file(path: str | Path, content: Any) -> None:
    """As ``torch.save(content, path)``.

    Args:
      path: of the file, which is replaced.
      content: of dicts, lists, tuples, str, int, float, bool, None, and numpy arrays, which become contiguous tensors.

    Raises:
      TypeError: anything else, or an array of a type that tensors here do not have.
    """
    pickler = Pickler()
    files = {"data.pkl": pickled(pickler.dump(content)), "byteorder": b"little"}
    files |= {f"data/{key}": storage for key, storage in enumerate(pickler.storages)} | {"version": b"3\n"}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for member, data in files.items():
            _add(archive, f"archive/{member}", data)


def _add(archive: zipfile.ZipFile, name: str, data: bytes | np.ndarray) -> None:
    entry = zipfile.ZipInfo(name)  # without the time: the same content is the same file
    header = archive.fp.tell() + 30 + len(name)
    padding = -(header + 4) % _ALIGNMENT
    entry.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(entry, data if isinstance(data, bytes) else data.tobytes())


class Pickler:
    """Pickles plain values, and tensors whose storages stand elsewhere, in the order of `storages`."""

    def __init__(self) -> None:
        self.storages: list[np.ndarray] = []

    def dump(self, x: Any) -> bytes:
        """The instructions that make a value, see `write_torch_file`."""
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
                return self._tensor(x)
        raise TypeError(f"{type(x).__name__} is not written into files of PyTorch")

    def _tensor(self, x: np.ndarray) -> bytes:
        kind = _STORAGES.get(x.dtype.name)
        if kind is None:
            raise TypeError(f"Tensors of {x.dtype.name} are not written into files of PyTorch")
        x = np.require(x, requirements="C")  # of no dimensions too, which ascontiguousarray would give one
        shape, strides = map(self.dump, (x.shape, tuple(stride // x.itemsize for stride in x.strides)))
        hooks = name("collections", "OrderedDict") + b")R"
        view = self.storage(x, kind), self.dump(0), shape, strides, self.dump(False), hooks
        return call("torch._utils", "_rebuild_tensor_v2", *view)

    def storage(self, x: np.ndarray, kind: str) -> bytes:
        """The instructions that make the storage of a contiguous array, of PyTorch's class `kind`."""
        self.storages.append(x)
        return self.named_storage(str(len(self.storages) - 1), kind, x.size)

    def named_storage(self, key: str, kind: str, size: int, *more: bytes) -> bytes:
        """A storage by its persistent identifier."""
        parts = (self.dump("storage"), name("torch", kind), *map(self.dump, (key, "cpu", size)), *more)
        return b"(" + b"".join(parts) + b"tQ"


def pickled(instructions: bytes) -> bytes:
    """A whole pickle of protocol 2."""
    return b"\x80\x02" + instructions + b"."


def name(module: str, attribute: str) -> bytes:
    """The instruction that names a class or function."""
    return f"c{module}\n{attribute}\n".encode()


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    """The instructions that call it, with arguments that are instructions themselves."""
    return name(module, attribute) + b"(" + b"".join(arguments) + b"tR"
