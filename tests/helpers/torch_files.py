"""Writes files as PyTorch does, instruction by instruction, so that tests need no PyTorch and can write wrong ones."""

import struct
import zipfile

import numpy as np

STORAGES = {"float32": "Float", "float16": "Half", "int64": "Long"}
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value):
    return b"\x8a\x0a" + int(value).to_bytes(10, "little", signed=True)


def integers(values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def items(pairs):
    """A dict of what is pickled already."""
    return b"}(" + b"".join(text(key) + value for key, value in pairs) + b"u"


def call(module, attribute, *arguments):
    return name(module, attribute) + b"(" + b"".join(arguments) + b"tR"


def pickled(body):
    return b"\x80\x02" + body + b"."


def storage(kind, key, size, *more):
    return (
        b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + integer(size) + b"".join(more) + b"tQ"
    )


def tensor(array, key, *more):
    kind = f"{STORAGES[array.dtype.name]}Storage"
    strides = [stride // array.itemsize for stride in np.ascontiguousarray(array).strides]
    view = integer(0) + integers(array.shape) + integers(strides[: array.ndim])
    hooks = call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", storage(kind, key, array.size, *more), view, b"\x89", hooks)


def write_zip(path, state):
    """A state dict as torch.save writes it since PyTorch 1.6."""
    body = items((key, tensor(array, str(i))) for i, (key, array) in enumerate(state.items()))
    write_archive(path, body, {str(i): array.tobytes() for i, array in enumerate(state.values())})


def write_torchscript(path, state):
    """Modules whose state dict is `state`, as torch.jit.save writes them."""
    tree = {}
    for i, (key, array) in enumerate(state.items()):
        *modules, last = key.split(".")
        place = tree
        for module in modules:
            place = place.setdefault(module, {})
        place[last] = tensor(array, str(i))
    data = {str(i): array.tobytes() for i, array in enumerate(state.values())}
    write_archive(path, module_of(tree), data, {"constants.pkl": pickled(b")")})


def module_of(tree):
    attributes = [(key, value if isinstance(value, bytes) else module_of(value)) for key, value in tree.items()]
    return name("__torch__.clip.model", "Part") + b")\x81" + items([("training", b"\x89"), *attributes]) + b"b"


def write_archive(path, body, data, more=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(body))
        for key, content in (dict(more) | {f"data/{key}": content for key, content in data.items()}).items():
            archive.writestr(f"archive/{key}", content)


def write_legacy(path, state, body=None):
    """A state dict, or what `body` pickles, as torch.save wrote it before PyTorch 1.6."""
    if body is None:
        body = items((key, tensor(array, str(i), b"N")) for i, (key, array) in enumerate(state.items()))
    header = [integer(MAGIC_NUMBER), integer(1001)]
    header += [items([("little_endian", b"\x88")]), body]
    keys = b"](" + b"".join(text(str(i)) for i in range(len(state))) + b"e"
    with open(path, "wb") as file:
        for part in (*header, keys):
            file.write(pickled(part))
        for array in state.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())
