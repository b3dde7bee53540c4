"""Reads the .pkl files of StyleGAN2-ADA for PyTorch, without PyTorch and without running anything that is in them.

Such a file is a pickle of ``{"G", "D", "G_ema", "augment_pipe", "training_set_kwargs"}``. A network in it is a call of
``torch_utils.persistence._reconstruct_persistent_obj`` with its class's name, its attributes and its source code, which
that function would execute; here it is never looked at. Each tensor's storage is a whole little file of ``torch.save``.
What a pickle may name, and how it is run, is in `torch_pickle`.
"""

import io
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from noisytwins_jax.interop.stylegan2.nvidia_options import config_fields
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.torch_file import MAGIC_NUMBER, Arrays, check_start, legacy_parts, opened
from noisytwins_jax.utils.torch_pickle import (
    Built,
    Constructor,
    DamagedError,
    RefusedError,
    Storage,
    Tensor,
    expect,
    unpickle,
    words,
)


@dataclass(frozen=True)
class NvidiaModule:
    """A module of a snapshot.

    Attributes:
      class_name: as the file says, such as ``Generator``; empty for a plain ``torch.nn.Module``.
      tensors: its state dict, arrays by key, in PyTorch's layout and order; read-only.
      init_kwargs: what it was made with, such as ``{"c_dim": 10, "synthesis_kwargs": {"conv_clamp": 256}}``.
    """

    class_name: str
    tensors: dict[str, np.ndarray]
    init_kwargs: dict[str, Any]

    def fields(self) -> dict[str, Any]:
        """The configuration's fields that `init_kwargs` tell, by dotted name; see `nvidia_options.config_fields`."""
        return config_fields(self.class_name, self.init_kwargs)


@dataclass(frozen=True)
class NvidiaSnapshot:
    """What a file holds.

    Attributes:
      modules: ``G``, ``D``, ``G_ema`` and, of a run with ADA, ``augment_pipe``; those of them that are there.
      training_set: arguments of the data set's class, such as ``{"use_labels": True}``; may be empty.
    """

    modules: dict[str, NvidiaModule]
    training_set: dict[str, Any]


def read_nvidia_pickle(path: str | Path) -> NvidiaSnapshot:
    """The networks of a snapshot (``network-snapshot-*.pkl``) or of a published file of StyleGAN2-ADA for PyTorch.

    Raises:
      UserError: the file is missing, of another kind, damaged, or names anything that is no part of such networks.
    """
    path = Path(path)
    with opened(path) as file:
        start = file.read(1024)
        file.seek(0)
        check_start(path, start)
        if not start.startswith(b"\x80"):
            raise _other(path)
        storages = _Storages()
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
                content = unpickle(stream, {**_CONSTRUCTORS, "torch.storage._load_from_bytes": storages.load})
        except RefusedError as error:
            if str(error).startswith("dnnlib.tflib."):
                raise UserError(
                    f"{path} is of StyleGAN2 for TensorFlow; turn it into one for PyTorch with legacy.py of "
                    "stylegan2-ada-pytorch first."
                ) from None
            raise
        if not isinstance(content, dict) or not any(isinstance(value, _Module) for value in content.values()):
            raise _other(path)
        arrays = Arrays(storages.contents.__getitem__)
        modules = {name: value.module(arrays) for name, value in content.items() if isinstance(value, _Module)}
        return NvidiaSnapshot(modules, arrays.resolve(content.get("training_set_kwargs") or {}))


def _other(path: Path) -> UserError:
    return UserError(
        f"{path} is no snapshot of StyleGAN2-ADA for PyTorch; give a .pkl file that has the networks G, D and G_ema."
    )


class _Module(Built):
    """A ``torch.nn.Module`` of no class of its own, as `nvidia_writer` writes them."""

    def __init__(self) -> None:
        self.class_name, self.attributes = "", {}

    def build(self, state: Any) -> None:
        """Takes the attributes."""
        self.attributes = expect(dict, state)

    def module(self, arrays: Arrays) -> NvidiaModule:
        """With an array for each tensor."""
        tensors = {key: arrays.resolve(tensor) for key, tensor in self._tensors()}
        return NvidiaModule(
            self.class_name, tensors, arrays.resolve(expect(dict, self.attributes.get("_init_kwargs", {})))
        )

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """As ``state_dict`` goes: a module's parameters and buffers, then the modules in it."""
        pending, count = [("", self)], 0
        while pending:
            prefix, module = pending.pop()
            count += 1
            if prefix.count(".") > 100 or count > 100_000:
                raise DamagedError("modules within themselves")
            unsaved = module.attributes.get("_non_persistent_buffers_set", set())
            for kind in ("_parameters", "_buffers"):
                for name, value in module._members(kind, Tensor):
                    if kind == "_parameters" or name not in unsaved:
                        yield prefix + name, value
            pending += [(f"{prefix}{name}.", part) for name, part in module._members("_modules", _Module)][::-1]

    def _members(self, attribute: str, kind: type) -> list[tuple[str, Any]]:
        members = expect(dict, self.attributes.get(attribute, {}))
        return [(expect(str, name), expect(kind, value)) for name, value in members.items() if value is not None]


class _Persistent(_Module):
    """An object of a class whose source code the file brings along: its attributes alone."""

    def __init__(self, meta: Any):
        self.class_name = expect(str, expect(dict, meta)["class_name"])
        self.attributes = expect(dict, meta["state"])

    def build(self, state: Any) -> None:
        """Refuses another state: it is in ``meta``."""
        raise DamagedError("an object with two states")


class _Storages:
    """Storages that are little files of ``torch.save`` in the pickle itself."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self._read: dict[int, tuple[bytes, Storage]] = {}  # by identity: the same bytes are read once

    def load(self, data: Any) -> Storage:
        if id(data) not in self._read:
            stream = io.BytesIO(expect(bytes, data))
            if unpickle(stream, {}) != MAGIC_NUMBER:
                raise DamagedError("a storage without PyTorch's magic number")
            storage, contents = legacy_parts(stream, {})
            key = str(len(self.contents))
            self.contents[key] = contents[expect(Storage, storage).key]
            self._read[id(data)] = data, storage._replace(key=key)
        return self._read[id(data)][1]


class _Skipped(Built):
    """A value that no network needs."""

    def __init__(self, *_: Any):
        pass

    def build(self, state: Any) -> None:
        """Takes any state, and leaves it."""


class _NumberType(Built):
    """NumPy's type of a number."""

    def __init__(self, text: Any, *_: Any):
        if not re.fullmatch("[biuf][1248]", expect(str, text)):
            raise DamagedError(f"the number type {text[:20]!r}")
        self.dtype = np.dtype(text)

    def build(self, state: Any) -> None:
        """Takes the byte order."""
        self.dtype = self.dtype.newbyteorder(expect(str, expect(tuple, state)[1]))


def _number(kind: Any, data: Any) -> bool | int | float:
    return np.frombuffer(expect(bytes, data), expect(_NumberType, kind).dtype)[0].item()


_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since NumPy 2
NUMBERS: dict[str, Constructor] = {  # NumPy's, which other checkpoints have too
    "numpy.dtype": _NumberType,
    **{f"{core}.scalar": _number for core in _CORES},
}
_CONSTRUCTORS: dict[str, Constructor] = {
    **NUMBERS,
    "torch_utils.persistence._reconstruct_persistent_obj": _Persistent,
    "torch.nn.modules.module.Module": _Module,
    "dnnlib.util.EasyDict": dict,
    "builtins.set": words,  # as older pickles write sets
    "numpy.ndarray": _Skipped,
    **{f"{core}._reconstruct": _Skipped for core in _CORES},
}
