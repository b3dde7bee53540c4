"""A reader for the .pkl files of StyleGAN2-ADA for PyTorch that needs no PyTorch and runs no code from a file.

Such a file is a pickle of ``{"G", "D", "G_ema", "augment_pipe", "training_set_kwargs"}``. A network in it is a call of
``torch_utils.persistence._reconstruct_persistent_obj`` with its class name, its attributes and its source code, which
that function would execute; here the source code is ignored. Each tensor's storage is a small ``torch.save`` file of its
own. The pickle is interpreted by `torch_pickle`.
"""

import io
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.torch_file import MAGIC_NUMBER, TensorLoader, check_start, open_untrusted, read_legacy_parts
from noisytwins_jax.utils.torch_pickle import (
    Constructor,
    DamagedError,
    ForbiddenNameError,
    Stateful,
    Storage,
    Tensor,
    expect,
    string_set,
    unpickle,
)


@dataclass(frozen=True)
class NvidiaModule:
    """A module of a snapshot.

    Attributes:
      tensors: its state dict, read-only arrays by key, in PyTorch's layout and order.
      init_kwargs: its constructor's arguments, such as ``{"c_dim": 10, "synthesis_kwargs": {"conv_clamp": 256}}``; may be
        empty.
    """

    tensors: dict[str, np.ndarray]
    init_kwargs: dict[str, Any]


@dataclass(frozen=True)
class NvidiaSnapshot:
    """The content of a snapshot file.

    Attributes:
      modules: ``G``, ``D``, ``G_ema`` and, with ADA, ``augment_pipe``, as far as the file has them.
      training_set: arguments of the data set's class, such as ``{"use_labels": True}``; may be empty.
    """

    modules: dict[str, NvidiaModule]
    training_set: dict[str, Any]


def read_nvidia_pickle(path: str | Path) -> NvidiaSnapshot:
    """Load the networks of a snapshot (``network-snapshot-*.pkl``) or of a published StyleGAN2-ADA file for PyTorch.

    Raises:
      UserError: the file is missing, of another kind, damaged, or names anything that such networks do not need.
    """
    path = Path(path)
    with open_untrusted(path) as file:
        start = file.read(1024)
        file.seek(0)
        check_start(path, start)
        if not start.startswith(b"\x80"):
            raise _not_a_snapshot(path)
        storages = _Storages()
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
                content = unpickle(stream, {**_CONSTRUCTORS, "torch.storage._load_from_bytes": storages.load})
        except ForbiddenNameError as error:
            if str(error).startswith("dnnlib.tflib."):
                raise UserError(
                    f"{path} is of StyleGAN2 for TensorFlow; turn it into one for PyTorch with legacy.py of "
                    "stylegan2-ada-pytorch first."
                ) from None
            raise
        if not isinstance(content, dict) or not any(isinstance(value, _Module) for value in content.values()):
            raise _not_a_snapshot(path)
        loader = TensorLoader(storages.contents.__getitem__)
        modules = {name: value.load(loader) for name, value in content.items() if isinstance(value, _Module)}
        return NvidiaSnapshot(modules, loader.load(content.get("training_set_kwargs") or {}))


def _not_a_snapshot(path: Path) -> UserError:
    return UserError(
        f"{path} is no snapshot of StyleGAN2-ADA for PyTorch; give a .pkl file that has the networks G, D and G_ema."
    )


class _Module(Stateful):
    """A plain ``torch.nn.Module``, as `nvidia_writer` writes them."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    @override
    def set_state(self, state: Any) -> None:
        self.attributes = expect(dict, state)

    def load(self, loader: TensorLoader) -> NvidiaModule:
        """Load the tensors."""
        tensors = {key: loader.load(tensor) for key, tensor in self._tensors()}
        init_kwargs = self.attributes.get("_init_kwargs", self.attributes.get("init_kwargs", {}))
        return NvidiaModule(tensors, loader.load(expect(dict, init_kwargs)))

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors in the order of ``state_dict``: a module's parameters and buffers, then its submodules."""
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
            pending += [(f"{prefix}{name}.", child) for name, child in module._members("_modules", _Module)][::-1]

    def _members(self, attribute: str, kind: type) -> list[tuple[str, Any]]:
        members = expect(dict, self.attributes.get(attribute, {}))
        return [(expect(str, name), expect(kind, value)) for name, value in members.items() if value is not None]


class _Persistent(_Module):
    """An object of a class whose source code is in the file: only its attributes are read."""

    def __init__(self, meta: Any):
        self.attributes = expect(dict, expect(dict, meta)["state"])

    @override
    def set_state(self, state: Any) -> None:
        raise DamagedError("an object with two states")


class _Storages:
    """Storages that are ``torch.save`` files of their own within the pickle."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self._read: dict[int, tuple[bytes, Storage]] = {}  # by identity: the same bytes are read once

    def load(self, data: Any) -> Storage:
        """Read the storage from the bytes of its file."""
        if id(data) not in self._read:
            stream = io.BytesIO(expect(bytes, data))
            if unpickle(stream, {}) != MAGIC_NUMBER:
                raise DamagedError("a storage without PyTorch's magic number")
            storage, contents = read_legacy_parts(stream, {})
            key = str(len(self.contents))
            self.contents[key] = contents[expect(Storage, storage).key]
            self._read[id(data)] = data, storage._replace(key=key)
        return self._read[id(data)][1]


class _Ignored(Stateful):
    """A value that no network needs."""

    def __init__(self, *_: Any):
        pass

    @override
    def set_state(self, state: Any) -> None:
        pass


class _NumberType(Stateful):
    """A NumPy dtype of numbers."""

    def __init__(self, text: Any, *_: Any):
        if not re.fullmatch("[biuf][1248]", expect(str, text)):
            raise DamagedError(f"the number type {text[:20]!r}")
        self.dtype = np.dtype(text)

    @override
    def set_state(self, state: Any) -> None:  # the byte order is in it
        self.dtype = self.dtype.newbyteorder(expect(str, expect(tuple, state)[1]))


def _build_number(number_type: Any, data: Any) -> bool | int | float:
    return np.frombuffer(expect(bytes, data), expect(_NumberType, number_type).dtype)[0].item()


_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since NumPy 2
NUMPY_SCALARS: dict[str, Constructor] = {  # other checkpoints have them too
    "numpy.dtype": _NumberType,
    **{f"{core}.scalar": _build_number for core in _CORES},
}
_CONSTRUCTORS: dict[str, Constructor] = {
    **NUMPY_SCALARS,
    "torch_utils.persistence._reconstruct_persistent_obj": _Persistent,
    "torch.nn.modules.module.Module": _Module,
    "dnnlib.util.EasyDict": dict,
    "builtins.set": string_set,  # as older pickles write sets
    "numpy.ndarray": _Ignored,
    **{f"{core}._reconstruct": _Ignored for core in _CORES},
}
