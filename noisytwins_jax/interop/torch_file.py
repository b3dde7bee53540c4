"""Reads files of ``torch.save`` and ``torch.jit.save`` without PyTorch, and without running anything that is in them.

Three formats, as PyTorch's ``serialization.py`` and its exporter of TorchScript write them:

- the zip archive of PyTorch 1.6 and later (.pth, .pt, .bin): ``data.pkl`` and one file for each storage;
- the older one: pickles one after the other (a magic number, the protocol, the machine, the object, the storages' keys),
  then each storage as its length and its bytes;
- TorchScript: a zip archive whose ``data.pkl`` describes modules of ``__torch__.*``, whose tensors are the state dict.

A pickle is a program for a small machine with a stack. Python's own machine can call any function that the file names; the
one here (`_unpickle`) only knows the names that tensors need, and knows them as data or as a function of this file.
"""

import io
import math
import mmap
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from noisytwins_jax.errors import UserError, first_line

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_ITEM_TYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}

# What may be called for a name in a file: with the arguments that the file gives, in which a tensor is an opaque value.
Constructor = Callable[..., Any]


class _Name(NamedTuple):
    """A class or function that a pickle names: never looked up in Python."""

    text: str


class _Storage(NamedTuple):
    """Items in the file, of which tensors are views; `start` items into the storage of `key`."""

    item_type: str
    key: str
    size: int
    start: int


class _Tensor(NamedTuple):
    """A view that becomes an array when the storages are known."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Module:
    """A module of TorchScript: nothing but a name and attributes."""

    def __init__(self, name: str):
        self.name = name
        self.attributes: dict[str, Any] = {}


class _RefusedError(Exception):
    """The pickle asks for something by a name that is no part of tensors."""


class _DamagedError(Exception):
    """The file is not as PyTorch writes it."""


def _tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers):
        raise _DamagedError("a tensor without storage, shape or strides")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.size:
        raise _DamagedError("a tensor that is larger than its storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _set_items(made, [x for key, value in pairs for x in (key, value)])
    return made


def _first(value: Any, *_: Any) -> Any:
    """For wrappers: of parameters, and of lists whose type TorchScript records."""
    return value


_CONSTRUCTORS: dict[str, Constructor] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": tuple,
    "torch.nn.parameter.Parameter": _first,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
}
_TORCHSCRIPT_CONSTRUCTORS: dict[str, Constructor] = {
    f"torch.jit._pickle.{name}": _first
    for name in ("restore_type_tag", "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
}


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
    allowed = {**_CONSTRUCTORS, **(constructors or {})}
    with _open(path) as file:
        start = file.read(1024)
        file.seek(0)
        _check_kind(path, start)
        try:
            if start.startswith(b"PK\x03\x04"):
                return _read_zip(file, allowed)
            return _read_legacy(file, allowed)
        except UserError:
            raise
        except _RefusedError as error:
            raise UserError(
                f"{path} asks for {error}, which is no part of tensors, so it was not read and nothing of it was run; "
                "take the file from its publisher, or save the network's state_dict() alone."
            ) from None
        except MemoryError:
            raise UserError(
                f"{path} needs more memory than there is; check the file, or take a larger machine."
            ) from None
        except (_DamagedError, zipfile.BadZipFile, *_MALFORMED) as error:
            raise UserError(
                f"{path} is damaged or incomplete ({first_line(error)}); download or copy it again."
            ) from None


# What reading malformed bytes raises, here, in pickletools and in zipfile.
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


def _check_kind(path: Path, start: bytes) -> None:
    if not start:
        raise UserError(f"{path} is empty; download or copy it again.")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path} is a Git LFS pointer in place of the file; run `git lfs pull` there, or download the file."
        )
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page saved in place of the file; download the file itself.")
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        raise _not_torch(path)


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
                raise _DamagedError(f"{name} is compressed")
            return archive.read(info)

        if root + "byteorder" in names and content("byteorder") != b"little":
            raise _DamagedError("numbers in another byte order than little endian")
        torchscript = root + "constants.pkl" in names
        if torchscript:
            constructors = {**constructors, **_TORCHSCRIPT_CONSTRUCTORS}
        tree = _unpickle(io.BytesIO(content("data.pkl")), constructors, torchscript)
        if torchscript:
            tree = _module_tensors(tree)
        return _Arrays(lambda key: content(f"data/{key}")).resolve(tree)


def _read_legacy(file: BinaryIO, constructors: Mapping[str, Constructor]) -> Any:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        if _unpickle(stream, constructors) != _MAGIC_NUMBER:
            raise _not_torch(file.name)
        if _unpickle(stream, constructors) != _PROTOCOL:
            raise _DamagedError("an unknown version of the format")
        if _unpickle(stream, constructors).get("little_endian") is not True:
            raise _DamagedError("numbers in another byte order than little endian")
        sizes: dict[str, int] = {}  # bytes of each storage
        tree = _unpickle(stream, constructors, sizes=sizes)
        contents: dict[str, bytes] = {}
        for key in _unpickle(stream, constructors):
            items = int.from_bytes(stream.read(8), "little")
            contents[key] = stream.read(items * sizes[_expect(str, key)])
        return _Arrays(contents.__getitem__).resolve(tree)


def _module_tensors(tree: Any) -> dict[str, _Tensor]:
    """The tensors of a tree of modules, by the names that a state dict gives them."""
    if not isinstance(tree, _Module):
        raise _DamagedError("TorchScript without a module")
    found: dict[str, _Tensor] = {}
    pending, count = [("", tree)], 0
    while pending:
        prefix, module = pending.pop()
        count += 1
        if prefix.count(".") > 100 or count > 100_000:
            raise _DamagedError("modules within themselves")
        for name, value in module.attributes.items():
            if isinstance(value, _Tensor):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, _Module):
                pending.append((f"{prefix}{name}.", value))
    return found


class _Arrays:
    """Puts arrays in place of tensors; reads each storage once."""

    def __init__(self, read: Callable[[str], bytes]):
        self._read = read
        self._storages: dict[str, np.ndarray] = {}
        self._done: dict[int, Any] = {}  # by identity: what stands in many places is resolved once

    def resolve(self, value: Any) -> Any:
        if isinstance(value, str | bytes | int | float | None):
            return value
        if isinstance(value, _Tensor):
            return self._array(value)
        if isinstance(value, _Name | _Module):
            raise _RefusedError(value.text if isinstance(value, _Name) else value.name)
        if id(value) not in self._done:
            if isinstance(value, dict):
                self._done[id(value)] = {key: self.resolve(item) for key, item in value.items()}
            elif isinstance(value, list):
                self._done[id(value)] = [self.resolve(item) for item in value]
            elif type(value) is tuple:
                self._done[id(value)] = tuple(self.resolve(item) for item in value)
            else:
                raise _DamagedError(f"a {type(value).__name__.strip('_')} where tensors should be")
        return self._done[id(value)]

    def _array(self, tensor: _Tensor) -> np.ndarray:
        storage = self._storage(tensor.storage)
        if not math.prod(tensor.shape):
            return np.zeros(tensor.shape, storage.dtype)
        strides = [stride * storage.itemsize for stride in tensor.strides]
        items = storage[tensor.storage.start + tensor.offset :]
        return np.lib.stride_tricks.as_strided(items, tensor.shape, strides, writeable=False)

    def _storage(self, storage: _Storage) -> np.ndarray:
        if storage.key not in self._storages:
            content = self._read(storage.key)
            if storage.item_type == "bfloat16":  # the upper half of a float32
                items = (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                items = np.frombuffer(content, storage.item_type)
            self._storages[storage.key] = items
        items = self._storages[storage.key]
        if items.dtype != _dtype(storage.item_type):
            raise _DamagedError("one storage with two types")
        if len(items) < storage.start + storage.size:
            raise _DamagedError(f"a storage of {storage.size} items has only {len(items)}")
        return items


def _dtype(item_type: str) -> np.dtype:
    return np.dtype(np.float32 if item_type == "bfloat16" else item_type)


def _item_bytes(item_type: str) -> int:
    return 2 if item_type == "bfloat16" else np.dtype(item_type).itemsize


def _unpickle(
    stream: Any,
    constructors: Mapping[str, Constructor],
    torchscript: bool = False,
    sizes: dict[str, int] | None = None,
) -> Any:
    """Runs one pickle of a stream of bytes on a stack machine that calls nothing but `constructors`.

    Args:
      stream: with ``read`` and ``readline``; left behind the pickle.
      constructors: what may be called, by name; any other name is refused where it stands.
      torchscript: whether names of ``__torch__`` are modules.
      sizes: gets the bytes of an item of each storage, by the storage's key.

    Raises:
      _RefusedError: the pickle names something else.
      _DamagedError, or one of `_MALFORMED`: it is no pickle, or none as PyTorch writes them.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under the marks
    memo: dict[int, Any] = {}

    def marked() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return items

    def name(text: str) -> _Name:
        if text in constructors or _item_type(text) or (torchscript and text.startswith("__torch__.")):
            return _Name(text)
        raise _RefusedError(repr(text)[1:-1][:200])

    def call(function: Any, arguments: Any) -> Any:
        if isinstance(function, _Name) and function.text in constructors and isinstance(arguments, tuple):
            return constructors[function.text](*arguments)
        raise _RefusedError(f"a call of {getattr(function, 'text', 'a value')}")

    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case text if text in _LITERALS:
                stack.append(argument)
            case "MARK":
                below.append(stack)
                stack = []
            case "POP":
                stack.pop()
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                items = tuple(marked())
                stack.append(items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                items = tuple(stack[-count:])
                if len(items) < count:
                    raise _DamagedError("a tuple of missing values")
                stack[-count:] = [items]
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                item = stack.pop()
                _expect(list, stack[-1]).append(item)
            case "APPENDS":
                items = marked()
                _expect(list, stack[-1]).extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                item = stack.pop()
                _set_items(_expect(dict, stack[-2]), [stack.pop(), item])
            case "SETITEMS":
                items = marked()
                _set_items(_expect(dict, stack[-1]), items)
            case "GLOBAL":
                stack.append(name(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                last = _expect(str, stack.pop())
                stack.append(name(f"{_expect(str, stack.pop())}.{last}"))
            case "BINPERSID":
                stack.append(_storage_of(stack.pop(), sizes))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(call(stack.pop(), arguments))
            case "NEWOBJ":
                arguments = stack.pop()
                made = stack.pop()
                is_module = isinstance(made, _Name) and made.text.startswith("__torch__.") and arguments == ()
                stack.append(_Module(made.text) if is_module else call(made, arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], _Module):
                    _set_items(stack[-1].attributes, [x for item in _expect(dict, state).items() for x in item])
                else:  # attributes of an OrderedDict, such as the _metadata of a state dict, are not kept
                    _expect(dict, stack[-1])
            case other:
                raise _DamagedError(f"the pickle's instruction {other}, which torch.save does not write")
    return stack.pop()


_LITERALS = (
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)


def _expect(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise _DamagedError(f"a {type(value).__name__.strip('_')} in place of a {kind.__name__}")
    return value


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | bytes | int | float | None):
            raise _DamagedError(f"a {type(key).__name__.strip('_')} as a dict's key")
        target[key] = value


def _item_type(name: str) -> str | None:
    """Of the class of a storage, by its full name."""
    module, _, last = name.rpartition(".")
    return _ITEM_TYPES.get(last) if module == "torch" else None


def _storage_of(identifier: Any, sizes: dict[str, int] | None) -> _Storage:
    """A storage from its persistent identifier; ``sizes`` gets the bytes of its items.

    The identifier is (the word storage, class, key, device, number of items) and, in the older format, None or the stretch
    (key, start, number of items) of it that this storage is.
    """
    word, kind, key, _, size, *view = _expect(tuple, identifier)
    item_type = _item_type(kind.text) if isinstance(kind, _Name) else None
    if word != "storage" or item_type is None or not isinstance(key, str) or type(size) is not int:
        raise _DamagedError("something other than a storage")
    start = 0
    if view and view[0] is not None:
        _, start, size = view[0]
    if min(start, size) < 0:
        raise _DamagedError("a storage of negative size")
    if sizes is not None:
        sizes[key] = _item_bytes(item_type)
    return _Storage(item_type, key, size, start)
