import math
import pickle
import zipfile

import numpy as np
import pytest
import torch_files
from paths import GOLDEN
from torch_files import call, integer, integers, items, name, pickled, storage, tensor, text, write_archive

from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.torch_file import read_torch_file

FILES = GOLDEN / "torch_files"
SAVED = ("zip.pth", "legacy.pth")
SCRIPT = "script.pt"


def expected_tree():
    """Return the content of the golden torch.save files."""
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    state = {
        "weight": grid,
        "transposed": grid.T,
        "part": grid[1:, ::2],
        "parameter": np.array([0.5, -0.25], np.float32),
        "float64": np.array([[math.pi]]),
        "float16": np.array([1.5, -2.0], np.float16),
        "bfloat16": np.array([1.0, -3.140625, 2.0**-20], np.float32),
        "int64": np.array(-7),
        "int32": np.array([2**31 - 1], np.int32),
        "int16": np.array([-300], np.int16),
        "int8": np.array([-5], np.int8),
        "uint8": np.array([250], np.uint8),
        "bool": np.array([True, False]),
        "none": np.zeros((0, 3), np.float32),
        "repeated": np.full((2, 3), 4.0, np.float32),
    }
    more = {"steps": [1, 2.5, None], "name": "tiny", "size": (3, 4), "nested": {"same": grid, "best": True}}
    return {"state_dict": state, **more}


def expected_module():
    return {
        "scale": np.array([2.0, 3.0], np.float32),
        "steps": np.array(4),
        "linear.weight": np.eye(2, dtype=np.float16),
    }


def assert_same(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(expected, np.ndarray):
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        np.testing.assert_array_equal(actual, expected)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key, value in expected.items():
            assert_same(actual[key], value)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    else:
        assert actual == expected


@pytest.mark.parametrize("file", SAVED)
def test_reads_what_pytorch_saved(file):
    tree = read_torch_file(FILES / file)
    assert_same(tree, expected_tree())
    state = tree["state_dict"]
    assert np.shares_memory(state["weight"], state["transposed"]) and not state["weight"].flags.writeable


def test_reads_torchscript():
    state = read_torch_file(FILES / SCRIPT)
    assert state.keys() == expected_module().keys()
    assert_same({key: state[key] for key in expected_module()}, expected_module())


def make_fixtures(folder):
    """Write the files of tests/golden/torch_files, with PyTorch 2.13."""
    torch = pytest.importorskip("torch")

    def tensors(value):
        if isinstance(value, dict):
            return {key: tensors(item) for key, item in value.items()}
        return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value

    tree = tensors(expected_tree())
    state = tree["state_dict"]
    grid = tree["nested"]["same"] = state["weight"]
    state |= {"transposed": grid.t(), "part": grid[1:, ::2], "parameter": torch.nn.Parameter(state["parameter"])}
    state |= {"bfloat16": state["bfloat16"].bfloat16(), "repeated": torch.full((1, 1), 4.0).expand(2, 3)}
    linear = torch.nn.Linear(2, 2)
    linear.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    tree["state_dict"] = type(linear.state_dict())(state)  # an OrderedDict with _metadata, as networks give it
    tree["state_dict"]._metadata = linear.state_dict()._metadata
    tree["size"] = grid.shape
    torch.save(tree, folder / "zip.pth")
    torch.save(tree, folder / "legacy.pth", _use_new_zipfile_serialization=False)

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 2, bias=False).half()
            self.linear.weight.data = torch.eye(2).half()
            self.scale = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
            self.register_buffer("steps", torch.tensor(4))
            self.names = ["a", "b"]
            self.sizes = [1, 2]

        def forward(self, x):
            return self.linear(x) * self.scale * self.sizes[0]

    torch.jit.save(torch.jit.script(Scaled()), folder / SCRIPT)


@pytest.mark.slow
def test_fixtures_are_pytorchs(tmp_path):
    torch = pytest.importorskip("torch")
    make_fixtures(tmp_path)
    for file in SAVED:
        assert_same(read_torch_file(tmp_path / file), expected_tree())
        for path in (FILES / file, tmp_path / file):
            for key, value in torch.load(path)["state_dict"].items():
                np.testing.assert_array_equal(value.float().detach(), np.float32(expected_tree()["state_dict"][key]))
    assert_same(dict(sorted(read_torch_file(tmp_path / SCRIPT).items())), dict(sorted(expected_module().items())))
    assert read_torch_file(tmp_path / SCRIPT).keys() == torch.jit.load(FILES / SCRIPT).state_dict().keys()


STATE = {
    "visual.weight": np.arange(6, dtype=np.float16).reshape(2, 3),
    "steps": np.array(3),
    "b": np.ones(2, np.float32),
}


@pytest.mark.parametrize("write", [torch_files.write_zip, torch_files.write_legacy, torch_files.write_torchscript])
def test_the_tests_own_files(write, tmp_path):
    write(tmp_path / "file", STATE)
    state = read_torch_file(tmp_path / "file")
    assert_same(dict(sorted(state.items())), dict(sorted(STATE.items())))


def test_a_storage_within_another(tmp_path):
    """As PyTorch before 0.4 wrote views."""
    array = np.arange(6, dtype=np.float32)
    stretch = b"(" + text("part") + integer(2) + integer(3) + b"t"
    part = storage("FloatStorage", "0", 6, stretch)
    body = call("torch._utils", "_rebuild_tensor", part, integer(1), integers([2]), integers([1]))
    torch_files.write_legacy(tmp_path / "file", {"x": array}, body)
    np.testing.assert_array_equal(read_torch_file(tmp_path / "file"), [3, 4])


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        read_torch_file(path)
    message = str(caught.value)
    assert message.startswith((str(path), f"There is no {path}")) and "\n" not in message and message.endswith(".")
    for word in words:
        assert word in message, message


def as_zip(path, body):
    write_archive(path, body, {})


def as_legacy(path, body):
    torch_files.write_legacy(path, {}, body)


def as_torchscript(path, body):
    write_archive(path, body, {}, {"constants.pkl": pickled(b")")})


def as_pickle(path, body):
    path.write_bytes(pickled(body))


MARKER = "ran"  # a file that appears if something of a pickle ran
TOUCH = f"__import__('pathlib').Path({MARKER!r}).touch()"
DANGEROUS = {
    "posix.system": call("posix", "system", text(f"touch {MARKER}")),
    "os.system": items([("a", call("os", "system", text(f"touch {MARKER}")))]),
    "builtins.eval": call("builtins", "eval", text(TOUCH)),
    "__builtin__.exec": call("__builtin__", "exec", text(TOUCH)),
    "numpy.core.multiarray._reconstruct": call("numpy.core.multiarray", "_reconstruct"),
    "builtins.getattr": call("builtins", "getattr", text("a"), text("upper")),
    "torch._utils.os.system": call("torch._utils", "os.system", text(f"touch {MARKER}")),
    "torch.storage._load_from_bytes": call("torch.storage", "_load_from_bytes", text("a")),
    "torch.nn.modules.linear.Linear": name("torch.nn.modules.linear", "Linear") + b")\x81",
    "torch.FloatStorage": call("torch", "FloatStorage", integer(1)),
    "__torch__x.os.system": call("__torch__x.os", "system", text(f"touch {MARKER}")),
    "subprocess.run": text("subprocess") + text("run") + b"\x93" + text("touch") + b"\x85R",
}


@pytest.mark.parametrize("write", [as_zip, as_legacy, as_torchscript, as_pickle])
@pytest.mark.parametrize("what", DANGEROUS)
def test_nothing_of_a_file_is_run(what, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "file", DANGEROUS[what])
    refused(tmp_path / "file", what, "nothing of it was run")
    assert not (tmp_path / MARKER).exists()


def test_the_dangerous_pickles_are_dangerous(tmp_path, monkeypatch):
    """So that the test above can fail: Python's own unpickler runs them."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickled(DANGEROUS["builtins.eval"]))
    assert (tmp_path / MARKER).exists()


@pytest.mark.parametrize("write", [as_zip, as_legacy])
def test_torchscript_names_are_for_torchscript(write, tmp_path):
    write(tmp_path / "file", name("__torch__.os", "system") + b")\x81")
    refused(tmp_path / "file", "__torch__.os.system")


def test_torchscript_modules_are_not_called(tmp_path):
    as_torchscript(tmp_path / "file", call("__torch__.os", "system", text(f"touch {MARKER}")))
    refused(tmp_path / "file", "__torch__.os.system")


@pytest.mark.parametrize("more", [[], [("again", b"h\x00")]])
def test_a_module_within_itself(more, tmp_path):
    part = name("__torch__.a", "Part") + b")\x81q\x00" + items([("self", b"h\x00"), *more]) + b"b"
    as_torchscript(tmp_path / "file", part)
    refused(tmp_path / "file", "damaged or incomplete", "modules within themselves")


def test_unprintable_names_are_escaped(tmp_path):
    as_zip(tmp_path / "file", text("os\x1b[2J\n") + text("system") + b"\x93")
    refused(tmp_path / "file", "os\\x1b[2J\\n.system")


@pytest.mark.parametrize("body", [name("collections", "OrderedDict"), items([("a", name("torch", "FloatStorage"))])])
def test_a_class_is_no_value(body, tmp_path):
    as_zip(tmp_path / "file", body)
    refused(tmp_path / "file", body.split(b"c")[-1].split(b"\n")[1].decode())


def test_more_constructors(tmp_path):
    """As a checkpoint that holds objects of its own classes beside the tensors."""
    array = np.ones((2, 2), np.float32)
    body = call("dnnlib.util", "make", items([("state", tensor(array, "0"))]))
    write_archive(tmp_path / "file", body, {"0": array.tobytes()})
    refused(tmp_path / "file", "dnnlib.util.make")
    tree = read_torch_file(tmp_path / "file", {"dnnlib.util.make": lambda meta: meta["state"]})
    np.testing.assert_array_equal(tree, array)


@pytest.mark.parametrize("file", [*SAVED, SCRIPT])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_truncated(file, share, tmp_path):
    content = (FILES / file).read_bytes()
    (tmp_path / file).write_bytes(content[: int(len(content) * share)])
    refused(tmp_path / file, "damaged or incomplete")


def test_flipped_bytes_never_escape_as_other_errors(tmp_path):
    rng = np.random.default_rng(0)
    for file in (*SAVED, SCRIPT):
        content = np.frombuffer((FILES / file).read_bytes(), np.uint8)
        for _ in range(60):
            changed = content.copy()
            changed[rng.integers(0, len(content), 3)] = rng.integers(0, 256, 3)
            (tmp_path / file).write_bytes(changed.tobytes())
            try:
                read_torch_file(tmp_path / file)
            except UserError as error:
                assert "\n" not in str(error)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 95628359\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (LFS.encode(), "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"<HTML><head>", "web page"),
        (b"\x93NUMPY\x01\x00", "not a file of torch.save"),
        (b"cos\nsystem\n(S'true'\ntR.", "not a file of torch.save"),
        (pickle.dumps({"a": 1}), "not a file of torch.save"),
        (b"\x80\x02", "damaged or incomplete"),
    ],
)
def test_other_files(content, words, tmp_path):
    (tmp_path / "file.pth").write_bytes(content)
    refused(tmp_path / "file.pth", words)


def test_missing_and_unreadable(tmp_path):
    refused(tmp_path / "missing.pth")
    refused(tmp_path, "Is a directory")


def test_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "file.zip", "w") as archive:
        archive.writestr("inception.pth", b"x")
    refused(tmp_path / "file.zip", "not a file of torch.save")


def test_compressed_storages(tmp_path):
    with zipfile.ZipFile(tmp_path / "file", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled(tensor(np.zeros(4, np.float32), "0")))
        archive.writestr("archive/data/0", bytes(16))
    refused(tmp_path / "file", "compressed")


def view(offset=0, shape=(2,), strides=(1,), size=2, key="0"):
    part = storage("FloatStorage", key, size)
    return call("torch._utils", "_rebuild_tensor", part, integer(offset), integers(shape), integers(strides))


def nested(depth):
    return b"]" * depth + b"a" * (depth - 1)


@pytest.mark.parametrize(
    "body",
    [
        view(offset=1),
        view(offset=-1),
        view(shape=(3,)),
        view(strides=(2,)),
        view(strides=(-1,)),
        view(shape=(-2,)),
        view(shape=(2, 1)),
        view(size=3),
        view(key="../data.pkl"),
        view(shape=(2**40, 2**40), strides=(0, 0)),
        items([("a", view()), ("b", call("torch._utils", "_rebuild_tensor", storage("IntStorage", "0", 2)))]),
        call("collections", "OrderedDict", b"](" + nested(3000) + b"\x85" + b"N\x86e"),
        b"}" + nested(10) + b"N" + b"s",
        nested(5000),
        b"]q\x00h\x00a",  # a list within itself
        b"0",
        b"t",
        b"h\x07",
        b"}N\x86b",
        b"\x85",
        b"(" + text("module") + b"tQ",
    ],
)
@pytest.mark.parametrize("write", [as_zip, as_legacy])
def test_wrong_pickles(body, write, tmp_path):
    if write is as_zip:
        write_archive(tmp_path / "file", body, {"0": bytes(8)})
    else:
        torch_files.write_legacy(tmp_path / "file", {"x": np.zeros(2, np.float32)}, body)
    refused(tmp_path / "file", "damaged or incomplete")


def doubled(begin, again):
    """Return a pickle of 60 levels, each with the one below twice: 2⁶⁰ values if each reference were followed."""
    levels = (b"q" + bytes([i]) + b"0" + again.replace(b"?", b"h" + bytes([i])) for i in range(60))
    return begin + b"".join(levels)


LISTS, TUPLES = doubled(b"]", b"](??e"), doubled(b")", b"??\x86")


def test_lists_of_lists_of_lists(tmp_path):
    as_zip(tmp_path / "file", LISTS)
    tree = read_torch_file(tmp_path / "file")
    for _ in range(60):
        assert tree[0] is tree[1]
        tree = tree[0]
    assert tree == []


@pytest.mark.parametrize(
    "body",
    [
        text("os") + LISTS + b"\x93",
        LISTS + text("os") + b"\x93",
        b"}" + TUPLES + b"Ns",
        call("collections", "OrderedDict", b"]" + TUPLES + b"N\x86a"),
        name("torch", "Size") + TUPLES + b"R(tR",
        call("torch._utils", "_rebuild_tensor", TUPLES, TUPLES, TUPLES, TUPLES),
        TUPLES + b"Q",
    ],
)
def test_no_step_visits_all_of_it(body, tmp_path):
    as_zip(tmp_path / "file", body)
    refused(tmp_path / "file")


def test_keys_of_storages(tmp_path):
    torch_files.write_legacy(tmp_path / "file", {}, b"N")
    content = (tmp_path / "file").read_bytes()
    keys = pickled(b"](e")
    assert content.endswith(keys)
    (tmp_path / "file").write_bytes(content.removesuffix(keys) + pickled(b"]" + TUPLES + b"a") + bytes(8))
    refused(tmp_path / "file", "damaged or incomplete")
