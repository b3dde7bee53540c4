"""An interpreter for the pickles in PyTorch's files that runs nothing a file names.

`pickle.Unpickler` cannot be used: it hashes every dict key, and hashing tuples nested 60 deep can take 2⁶⁰ steps.

`unpickle` knows only the names that tensors need, each as data or as a function of this file. A tensor in a pickle is a
view (`Tensor`) of a storage, whose items are elsewhere in the file.
"""

import math
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import override

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

# Called in place of a function that a file names, with the file's arguments, in which a tensor is an opaque value. If
# the result is `Stateful`, it gets the state that the file may give it.
Constructor = Callable[..., Any]


class Global(NamedTuple):
    """A class or function named by a pickle, never looked up in Python."""

    name: str


class Storage(NamedTuple):
    """`size` items in the file, of which tensors are views, from item `start` of the storage with this key on.

    `item_type` is NumPy's name of a little-endian type, or ``bfloat16``.
    """

    item_type: str
    key: str
    size: int
    start: int


class Tensor(NamedTuple):
    """A view of a storage, which becomes an array once the storage is read."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Stateful:
    """A value whose state a pickle sets after its construction."""

    def set_state(self, state: Any) -> None:
        """Set the state, as ``__setstate__`` does."""
        raise NotImplementedError


class Module(Stateful):
    """A TorchScript module: only a name and attributes."""

    def __init__(self, name: str):
        self.name = name
        self.attributes: dict[str, Any] = {}

    @override
    def set_state(self, state: Any) -> None:
        _set_items(self.attributes, [x for item in expect(dict, state).items() for x in item])


class ForbiddenNameError(Exception):
    """A pickle names a class or function that tensors do not need."""


class DamagedError(Exception):
    """The file is not as PyTorch writes it."""


def _build_tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or any(type(n) is not int or n < 0 for n in numbers):
        raise DamagedError("a tensor without storage, shape or strides")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.size:
        raise DamagedError("a tensor that is larger than its storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _build_dict(pairs: Any = ()) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    _set_items(result, [x for key, value in pairs for x in (key, value)])
    return result


def _first_argument(value: Any, *_: Any) -> Any:
    """Unwrap a parameter, or a list whose type TorchScript records."""
    return value


_CONSTRUCTORS: dict[str, Constructor] = {
    "collections.OrderedDict": _build_dict,
    "torch.Size": tuple,
    "torch.nn.parameter.Parameter": _first_argument,
    "torch._utils._rebuild_parameter": _first_argument,
    "torch._utils._rebuild_tensor": _build_tensor,
    "torch._utils._rebuild_tensor_v2": _build_tensor,
}
_TORCHSCRIPT_CONSTRUCTORS: dict[str, Constructor] = {
    f"torch.jit._pickle.{name}": _first_argument
    for name in ("restore_type_tag", "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
}


def unpickle(
    stream: Any,
    constructors: Mapping[str, Constructor],
    torchscript: bool = False,
    sizes: dict[str, int] | None = None,
) -> Any:
    """Load one pickle from a stream, calling only the constructors of tensors and `constructors`.

    Args:
      stream: binary, with ``read`` and ``readline``; left at the end of the pickle.
      constructors: what else may be called, by name; any other name is refused where it occurs.
      torchscript: whether names in ``__torch__`` are modules.
      sizes: filled with the bytes per item of each storage, by the storage's key.

    Returns:
      Plain values, dicts, lists, tuples and sets of strings, with a `Tensor` for each tensor, a `Module` for each
      TorchScript module, and a `Global` where a class itself is a value.

    Raises:
      ForbiddenNameError: the pickle names something else.
      DamagedError, or a Python error caused by malformed bytes: it is not a pickle as PyTorch writes it.
    """
    known = {**_CONSTRUCTORS, **constructors, **(_TORCHSCRIPT_CONSTRUCTORS if torchscript else {})}
    stack: list[Any] = []
    metastack: list[list[Any]] = []  # the stacks below the marks
    memo: dict[int, Any] = {}

    def pop_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, metastack.pop()
        return items

    def find_global(name: str) -> Global:
        if name in known or _item_type(name) or (torchscript and name.startswith("__torch__.")):
            return Global(name)
        raise ForbiddenNameError(repr(name)[1:-1][:200])

    def call(function: Any, arguments: Any) -> Any:
        if isinstance(function, Global) and function.name in known and isinstance(arguments, tuple):
            return known[function.name](*arguments)
        raise ForbiddenNameError(f"a call of {getattr(function, 'name', 'a value')}")

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
            case literal if literal in _LITERALS:
                stack.append(argument)
            case "MARK":
                metastack.append(stack)
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
                items = tuple(pop_mark())
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
                items = pop_mark()
                expect(list, stack[-1]).extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                item = stack.pop()
                _set_items(expect(dict, stack[-2]), [stack.pop(), item])
            case "SETITEMS":
                items = pop_mark()
                _set_items(expect(dict, stack[-1]), items)
            case "EMPTY_SET":
                stack.append(set())
            case "ADDITEMS":
                items = pop_mark()
                expect(set, stack[-1]).update(string_set(items))
            case "GLOBAL":
                stack.append(find_global(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                attribute = expect(str, stack.pop())
                stack.append(find_global(f"{expect(str, stack.pop())}.{attribute}"))
            case "BINPERSID":
                stack.append(_find_storage(stack.pop(), sizes))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(call(stack.pop(), arguments))
            case "NEWOBJ":
                arguments = stack.pop()
                cls = stack.pop()
                is_module = isinstance(cls, Global) and cls.name.startswith("__torch__.") and arguments == ()
                stack.append(Module(cls.name) if is_module else call(cls, arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Stateful):
                    stack[-1].set_state(state)
                else:  # attributes of an OrderedDict, such as the _metadata of a state dict, are dropped
                    expect(dict, stack[-1])
            case unknown:
                raise DamagedError(f"the pickle's instruction {unknown}, which torch.save does not write")
    return stack.pop()


_LITERALS = (
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)


def expect(kind: type, value: Any) -> Any:
    """Return the value, if it has this type.

    Raises:
      DamagedError: it has another type.
    """
    if not isinstance(value, kind):
        raise DamagedError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value


def string_set(items: Any) -> set[str]:
    """Build a set of strings.

    Raises:
      DamagedError: an item is not a string.
    """
    return {expect(str, item) for item in items}


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | bytes | int | float | None):
            raise DamagedError(f"a {type(key).__name__} as a dict's key")
        target[key] = value


def _item_type(name: str) -> str | None:
    """Return the item type of a storage class, given its full name."""
    module, _, cls = name.rpartition(".")
    return _ITEM_TYPES.get(cls) if module == "torch" else None


def _item_bytes(item_type: str) -> int:
    return 2 if item_type == "bfloat16" else np.dtype(item_type).itemsize


def _find_storage(identifier: Any, sizes: dict[str, int] | None) -> Storage:
    """Return the storage with a persistent identifier, and add the bytes per item to `sizes`.

    The identifier is (``"storage"``, class, key, device, number of items) and, in the legacy format, None or the slice
    (key, start, number of items) of it that this storage is.
    """
    tag, cls, key, _, size, *view = expect(tuple, identifier)
    item_type = _item_type(cls.name) if isinstance(cls, Global) else None
    if tag != "storage" or item_type is None or not isinstance(key, str) or type(size) is not int:
        raise DamagedError("something other than a storage")
    start = 0
    if view and view[0] is not None:
        _, start, size = view[0]
    if min(start, size) < 0:
        raise DamagedError("a storage of negative size")
    if sizes is not None:
        sizes[key] = _item_bytes(item_type)
    return Storage(item_type, key, size, start)
