"""The pickles in PyTorch's files, read without running anything that is in them.

A pickle is a program for a small machine with a stack. Python's own machine can call any function that the file names;
the one here (`unpickle`) only knows the names that tensors need, and knows them as data or as a function of this file.
A tensor of a pickle is a view (`Tensor`) of a storage, whose items stand elsewhere in the file.
"""

import math
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

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
# What it returns gets the state that the file may give it if it is `Built`.
Constructor = Callable[..., Any]


class Name(NamedTuple):
    """A class or function that a pickle names: never looked up in Python."""

    text: str


class Storage(NamedTuple):
    """`size` items in the file, of which tensors are views; they begin `start` items into the storage of `key`.

    `item_type` is NumPy's name of a type in little endian, or ``bfloat16``.
    """

    item_type: str
    key: str
    size: int
    start: int


class Tensor(NamedTuple):
    """A view that becomes an array when the storages are known."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Built:
    """A value that the pickle gives a state after it is made."""

    def build(self, state: Any) -> None:
        """Takes the state."""
        raise NotImplementedError


class Module(Built):
    """A module of TorchScript: nothing but a name and attributes."""

    def __init__(self, name: str):
        self.name = name
        self.attributes: dict[str, Any] = {}

    def build(self, state: Any) -> None:
        """Takes the attributes."""
        _set_items(self.attributes, [x for item in expect(dict, state).items() for x in item])


class RefusedError(Exception):
    """The pickle asks for something by a name that is no part of tensors."""


class DamagedError(Exception):
    """The file is not as PyTorch writes it."""


def _tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or any(type(n) is not int or n < 0 for n in numbers):
        raise DamagedError("a tensor without storage, shape or strides")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.size:
        raise DamagedError("a tensor that is larger than its storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


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


def unpickle(
    stream: Any,
    constructors: Mapping[str, Constructor],
    torchscript: bool = False,
    sizes: dict[str, int] | None = None,
) -> Any:
    """Runs one pickle of a stream of bytes on a stack machine that calls only what makes tensors, and `constructors`.

    Args:
      stream: with ``read`` and ``readline``; left behind the pickle.
      constructors: what else may be called, by name; any other name is refused where it stands.
      torchscript: whether names of ``__torch__`` are modules.
      sizes: gets the bytes of an item of each storage, by the storage's key.

    Returns:
      Plain values, dicts, lists, tuples and sets of strings, in which a `Tensor` stands for each tensor, a `Module` for
      each module of TorchScript, and a `Name` where the pickle has a class itself for a value.

    Raises:
      RefusedError: the pickle names something else.
      DamagedError, or an error of Python's that malformed bytes cause: it is no pickle, or none as PyTorch writes them.
    """
    known = {**_CONSTRUCTORS, **constructors, **(_TORCHSCRIPT_CONSTRUCTORS if torchscript else {})}
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under the marks
    memo: dict[int, Any] = {}

    def marked() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return items

    def name(text: str) -> Name:
        if text in known or _item_type(text) or (torchscript and text.startswith("__torch__.")):
            return Name(text)
        raise RefusedError(repr(text)[1:-1][:200])

    def call(function: Any, arguments: Any) -> Any:
        if isinstance(function, Name) and function.text in known and isinstance(arguments, tuple):
            return known[function.text](*arguments)
        raise RefusedError(f"a call of {getattr(function, 'text', 'a value')}")

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
                    raise DamagedError("a tuple of missing values")
                stack[-count:] = [items]
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                item = stack.pop()
                expect(list, stack[-1]).append(item)
            case "APPENDS":
                items = marked()
                expect(list, stack[-1]).extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                item = stack.pop()
                _set_items(expect(dict, stack[-2]), [stack.pop(), item])
            case "SETITEMS":
                items = marked()
                _set_items(expect(dict, stack[-1]), items)
            case "EMPTY_SET":
                stack.append(set())
            case "ADDITEMS":
                items = marked()
                expect(set, stack[-1]).update(words(items))
            case "GLOBAL":
                stack.append(name(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                last = expect(str, stack.pop())
                stack.append(name(f"{expect(str, stack.pop())}.{last}"))
            case "BINPERSID":
                stack.append(_storage_of(stack.pop(), sizes))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(call(stack.pop(), arguments))
            case "NEWOBJ":
                arguments = stack.pop()
                made = stack.pop()
                is_module = isinstance(made, Name) and made.text.startswith("__torch__.") and arguments == ()
                stack.append(Module(made.text) if is_module else call(made, arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Built):
                    stack[-1].build(state)
                else:  # attributes of an OrderedDict, such as the _metadata of a state dict, are not kept
                    expect(dict, stack[-1])
            case other:
                raise DamagedError(f"the pickle's instruction {other}, which torch.save does not write")
    return stack.pop()


_LITERALS = (
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)


def expect(kind: type, value: Any) -> Any:
    """The value.

    Raises:
      DamagedError: it is of another type.
    """
    if not isinstance(value, kind):
        raise DamagedError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value


def words(items: Any) -> set[str]:
    """A set, of strings alone.

    Raises:
      DamagedError: there is something else in it.
    """
    return {expect(str, item) for item in items}


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | bytes | int | float | None):
            raise DamagedError(f"a {type(key).__name__} as a dict's key")
        target[key] = value


def _item_type(name: str) -> str | None:
    """Of the class of a storage, by its full name."""
    module, _, last = name.rpartition(".")
    return _ITEM_TYPES.get(last) if module == "torch" else None


def _item_bytes(item_type: str) -> int:
    return 2 if item_type == "bfloat16" else np.dtype(item_type).itemsize


def _storage_of(identifier: Any, sizes: dict[str, int] | None) -> Storage:
    """A storage from its persistent identifier; ``sizes`` gets the bytes of its items.

    The identifier is (the word storage, class, key, device, number of items) and, in the older format, None or the stretch
    (key, start, number of items) of it that this storage is.
    """
    word, kind, key, _, size, *view = expect(tuple, identifier)
    item_type = _item_type(kind.text) if isinstance(kind, Name) else None
    if word != "storage" or item_type is None or not isinstance(key, str) or type(size) is not int:
        raise DamagedError("something other than a storage")
    start = 0
    if view and view[0] is not None:
        _, start, size = view[0]
    if min(start, size) < 0:
        raise DamagedError("a storage of negative size")
    if sizes is not None:
        sizes[key] = _item_bytes(item_type)
    return Storage(item_type, key, size, start)
