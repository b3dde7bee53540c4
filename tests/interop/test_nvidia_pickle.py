"""Snapshots of StyleGAN2-ADA for PyTorch; `make_fixture` writes the one in the repository."""

import gzip
import pickle
import struct

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden_numbers import weight
from nvidia_files import SOURCE, EasyDict, module_of, write_snapshot
from paths import GOLDEN
from torch_files import call, items, name, pickled, text

from noisytwins_jax.interop.importing import build_config, import_run
from noisytwins_jax.interop.public_checkpoint import read_public_checkpoint
from noisytwins_jax.interop.stylegan2.architecture import Architecture
from noisytwins_jax.interop.stylegan2.nvidia_options import config_fields
from noisytwins_jax.interop.stylegan2.nvidia_pickle import read_nvidia_pickle
from noisytwins_jax.interop.stylegan2.nvidia_writer import SnapshotPickler
from noisytwins_jax.interop.stylegan2.state_dict import read_stylegan2, write_stylegan2
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.sharding import Layout

FILE = GOLDEN / "torch_files" / "stylegan2ada.pkl"

SIZES = {"resolution": 8, "channels": 1, "num_classes": 3, "channel_base": 32, "channel_max": 4}
ARCHITECTURES = {
    "G_ema": Architecture("generator", **SIZES, blocks="skip", mapping_layers=2, z_dim=3, w_dim=4),
    "D": Architecture("discriminator", **SIZES, blocks="resnet", mapping_layers=8),
}
COMMON = {"c_dim": 3, "img_resolution": 8, "img_channels": 1}
SYNTHESIS = {"channel_base": 32, "channel_max": 4, "num_fp16_res": 4, "conv_clamp": 256}
INIT_KWARGS = {
    "G_ema": COMMON | {"z_dim": 3, "w_dim": 4, "mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": SYNTHESIS},
    "D": COMMON | SYNTHESIS | {"block_kwargs": {}, "mapping_kwargs": {}, "epilogue_kwargs": {"mbstd_group_size": 2}},
}
TRAINING_SET = {
    "class_name": "training.dataset.ImageFolderDataset",
    "use_labels": True,
    "xflip": False,
    "resolution": 8,
}
CLASSES = {"G_ema": "Generator", "D": "Discriminator"}


def tensors(module):
    def value(key, shape):
        return weight(key, shape, "fir" if key.endswith("resample_filter") else "normal", 1, 0, f"{module}:")

    return {key: value(key, shape) for key, shape in ARCHITECTURES[module].shapes("nvidia").items()}


def make_fixture(path, protocol=4):
    """Write a snapshot of tiny networks, with PyTorch."""
    modules = {
        module: module_of(CLASSES[module], tensors(module), easy(INIT_KWARGS[module])) for module in ("D", "G_ema")
    }
    pipe = module_of("AugmentPipe", {"p": np.float32(0.25)}, {"xflip": np.float64(1)})
    content = {"G": modules["G_ema"], **modules, "augment_pipe": pipe, "training_set_kwargs": EasyDict(TRAINING_SET)}
    write_snapshot(path, content, protocol)


def easy(value):
    return EasyDict({key: easy(item) for key, item in value.items()}) if isinstance(value, dict) else value


def check(path):
    snapshot = read_nvidia_pickle(path)
    assert list(snapshot.modules) == ["G", "D", "G_ema", "augment_pipe"]
    assert snapshot.training_set == TRAINING_SET
    for module in CLASSES:
        found, expected = snapshot.modules[module], tensors(module)
        assert found.init_kwargs == INIT_KWARGS[module]
        assert found.tensors.keys() == expected.keys()
        for key, value in expected.items():
            assert found.tensors[key].dtype == np.float32 and found.tensors[key].shape == value.shape
            np.testing.assert_array_equal(found.tensors[key], value)
        network = read_stylegan2(found.tensors)
        assert list(write_stylegan2(network, "nvidia")) == list(expected)
        role = ARCHITECTURES[module].role
        own = {"discriminator.mbstd_group_size": 2} if module == "D" else {"generator.w_avg_decay": 0.995}
        assert config_fields(role, found.init_kwargs) == {f"{role}.conv_clamp": 256.0} | own
    assert snapshot.modules["G"].tensors.keys() == snapshot.modules["G_ema"].tensors.keys()
    pipe = snapshot.modules["augment_pipe"]
    assert (pipe.tensors, pipe.init_kwargs) == ({"p": np.float32(0.25)}, {"xflip": 1.0})
    return snapshot


def test_reads_a_snapshot():
    assert FILE.stat().st_size < 100_000
    assert SOURCE.encode() in FILE.read_bytes()
    check(FILE)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_fixture_is_pytorchs(protocol, tmp_path):
    pytest.importorskip("torch")
    make_fixture(tmp_path / "file.pkl", protocol)
    check(tmp_path / "file.pkl")
    with pytest.raises((AssertionError, ModuleNotFoundError)):  # so that the source code in it would be run
        pickle.loads((tmp_path / "file.pkl").read_bytes())


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        read_nvidia_pickle(path)
    message = str(caught.value)
    assert message.startswith((str(path), f"There is no {path}")) and "\n" not in message and message.endswith(".")
    for word in words:
        assert word in message, message


def persistent(state, source="", more=()):
    """Return the instructions that call their function; `state` is instructions already."""
    meta = [("type", text("class")), ("version", b"K\x06"), ("module_src", text(source))]
    meta += [("class_name", text("Generator")), ("state", state), *more]
    return call("torch_utils.persistence", "_reconstruct_persistent_obj", items(meta))


def data(content):
    return b"B" + struct.pack("<I", len(content)) + content


def write(path, body):
    path.write_bytes(pickled(items([("G_ema", body)])))


MARKER = "ran"  # a file that appears if something of a pickle ran
TOUCH = f"__import__('pathlib').Path({MARKER!r}).touch()"
DANGEROUS = {
    "posix.system": call("posix", "system", text(f"touch {MARKER}")),
    "os.system": call("os", "system", text(f"touch {MARKER}")),
    "builtins.eval": call("builtins", "eval", text(TOUCH)),
    "builtins.exec": call("builtins", "exec", text(TOUCH)),
    "builtins.getattr": call("builtins", "getattr", name("torch_utils", "persistence"), text("x")),
    "torch_utils.persistence.exec": call("torch_utils", "persistence.exec", text(TOUCH)),
    "torch_utils.persistence._src_to_module": call("torch_utils.persistence", "_src_to_module", text(TOUCH)),
    "dnnlib.util.construct_class_by_name": call("dnnlib.util", "construct_class_by_name", text("os.system")),
    "numpy.load": call("numpy", "load", text("x")),
    "subprocess.run": text("subprocess") + text("run") + b"\x93" + text("touch") + b"\x85R",
}
PLACES = {
    "top": lambda body: body,
    "attribute": lambda body: persistent(items([("act_gain", body)])),
    "class name": lambda body: persistent(b"}", more=[("class_name", body)]),
    "storage": lambda body: call("torch.storage", "_load_from_bytes", data(pickled(body))),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", DANGEROUS)
def test_nothing_of_a_file_is_run(what, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "file.pkl", PLACES[place](DANGEROUS[what]))
    refused(tmp_path / "file.pkl", what, "nothing of it was run")
    assert not (tmp_path / MARKER).exists()


def test_the_dangerous_pickles_are_dangerous(tmp_path, monkeypatch):
    """So that the test above can fail: Python's own unpickler runs them."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "file.pkl", DANGEROUS["builtins.eval"])
    pickle.loads((tmp_path / "file.pkl").read_bytes())
    assert (tmp_path / MARKER).exists()


def test_source_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "file.pkl", persistent(b"}", source=TOUCH))
    assert read_nvidia_pickle(tmp_path / "file.pkl").modules["G_ema"].tensors == {}
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numbers_of_numpy(core, tmp_path):
    kind = (
        call("numpy", "dtype", text("f8"), b"\x89\x88")
        + b"(K\x03"
        + text("<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    number = call(f"numpy.{core}.multiarray", "scalar", kind, data(struct.pack("<d", 0.75)))
    shape, of = b"K\x00\x85", data(b"b")
    array = call(f"numpy.{core}.multiarray", "_reconstruct", name("numpy", "ndarray"), shape, of)
    array += b"(K\x01K\x02\x85" + kind + b"\x89" + data(bytes(16)) + b"tb"
    write(tmp_path / "file.pkl", persistent(items([("table", array), ("_init_kwargs", items([("p", number)]))])))
    assert read_nvidia_pickle(tmp_path / "file.pkl").modules["G_ema"].init_kwargs == {"p": 0.75}


def test_sets_of_older_pickles(tmp_path):
    unsaved = call("builtins", "set", b"](" + text("b") + b"e")
    state = items([("_non_persistent_buffers_set", unsaved), ("_buffers", items([("b", b"N")]))])
    write(tmp_path / "file.pkl", persistent(state))
    assert read_nvidia_pickle(tmp_path / "file.pkl").modules["G_ema"].tensors == {}


@pytest.mark.parametrize(
    "body",
    [
        persistent(items([("_modules", items([("a", b"K\x01")]))])),
        persistent(items([("_parameters", items([("a", b"}")]))])),
        persistent(items([("_parameters", b"]")])),
        persistent(items([("_init_kwargs", items([("a", persistent(b"}"))]))])),
        persistent(b"}") + b"}b",
        persistent(b"N"),
        call("torch_utils.persistence", "_reconstruct_persistent_obj", b"N"),
        call("torch.storage", "_load_from_bytes", data(pickled(b"K\x01"))),
        call("torch.storage", "_load_from_bytes", text("a")),
        call("numpy", "dtype", text("O8")),
        call("builtins", "set", b"](K\x01e"),
    ],
)
def test_wrong_pickles(body, tmp_path):
    write(tmp_path / "file.pkl", body)
    refused(tmp_path / "file.pkl", "damaged or incomplete")


def test_a_module_within_itself(tmp_path):
    modules = b"}q\x00(" + text("a") + persistent(items([("_modules", b"h\x00")])) + b"u"
    write(tmp_path / "file.pkl", persistent(items([("_modules", modules)])))
    refused(tmp_path / "file.pkl", "modules within themselves")


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
def test_truncated(share, tmp_path):
    content = FILE.read_bytes()
    (tmp_path / "file.pkl").write_bytes(content[: int(len(content) * share)])
    refused(tmp_path / "file.pkl", "damaged or incomplete")


def test_flipped_bytes_never_escape_as_other_errors(tmp_path):
    rng, content = np.random.default_rng(0), np.frombuffer(FILE.read_bytes(), np.uint8)
    for _ in range(40):
        changed = content.copy()
        changed[rng.integers(0, len(content), 3)] = rng.integers(0, 256, 3)
        (tmp_path / "file.pkl").write_bytes(changed.tobytes())
        try:
            read_nvidia_pickle(tmp_path / "file.pkl")
        except UserError as error:
            assert "\n" not in str(error)


TENSORFLOW = b"](" + name("dnnlib.tflib.network", "Network") + b")\x81e"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "web page"),
        (gzip.compress(b"x", mtime=0), "no snapshot"),
        (pickle.dumps({"a": 1}), "no snapshot"),
        (pickle.dumps([1, 2]), "no snapshot"),
        (pickled(TENSORFLOW), "for TensorFlow"),
        ((FILE.parent / "zip.pth").read_bytes(), "no snapshot"),
        ((FILE.parent / "legacy.pth").read_bytes(), "no snapshot"),
    ],
)
def test_other_files(content, words, tmp_path):
    (tmp_path / "file.pkl").write_bytes(content)
    refused(tmp_path / "file.pkl", words)


def test_missing(tmp_path):
    refused(tmp_path / "missing.pkl")


@pytest.mark.parametrize(
    ("role", "init_kwargs", "option"),
    [
        ("generator", {"synthesis_kwargs": {"use_noise": False}}, "use_noise=False"),
        ("generator", {"mapping_kwargs": {"activation": "relu"}}, "activation='relu'"),
        ("discriminator", {"epilogue_kwargs": {"mbstd_group_size": None}}, "mbstd_group_size=None"),
    ],
)
def test_unsupported_options(role, init_kwargs, option):
    with pytest.raises(UserError, match=option):
        config_fields(role, init_kwargs)


def test_defaults_of_options():
    assert config_fields("discriminator", {"epilogue_kwargs": {"resample_filter": (1, 3, 3, 1)}}) == {
        "discriminator.conv_clamp": None,
        "discriminator.mbstd_group_size": 4,
    }
    assert config_fields("generator", {"mapping_kwargs": {"w_avg_beta": 0.9}})["generator.w_avg_decay"] == 0.9
    assert config_fields("generator", {"synthesis_kwargs": {}})["generator.w_avg_decay"] == 0.995  # StyleGAN2-ADA
    assert config_fields("generator", {"channel_base": 32})["generator.w_avg_decay"] == 0.998  # StyleGAN3's repository


# What each row changes in networks of 16 px: options of the generator's synthesis and of the discriminator, and of both.
WIDTHS = {
    "small": ({"channel_base": 64, "channel_max": 8}, {}),
    "unequal": ({"channel_base": 16384, "channel_max": 6}, {"channel_base": 128, "channel_max": 512}),
    "default base": ({"channel_base": 32768, "channel_max": 4}, {"channel_base": 16384, "channel_max": 4}),
    "latents": ({"channel_base": 64, "channel_max": 8, "z_dim": 5, "w_dim": 3}, {}),
    "unconditional": ({"channel_base": 64, "channel_max": 8, "num_classes": 0}, {}),
}


def abstract_state(config, channels, num_classes):
    return TrainingStep(config, build_model(config, channels, num_classes)).abstract_state(Layout().state_shardings)


def shapes_of(variables):
    return {key: x.shape for key, x in flatten_dict(variables, sep="/").items()}


@pytest.mark.parametrize("grouped", [True, False], ids=["StyleGAN2-ADA", "StyleGAN3's repository"])
@pytest.mark.parametrize("row", WIDTHS)
def test_snapshots_of_both_repositories_become_configurations(row, grouped, tmp_path):
    """Every width is read from the tensors; clamps and w_avg's decay from the constructors' arguments."""
    generator, discriminator = WIDTHS[row]
    common = {"resolution": 16, "channels": 3, "num_classes": 3} | generator
    latents = {"z_dim": common.pop("z_dim", 4), "w_dim": common.pop("w_dim", 4)}
    made = {
        "G": Architecture("generator", **common, blocks="skip", mapping_layers=2, **latents),
        "D": Architecture(
            "discriminator", **(common | discriminator), blocks="resnet", mapping_layers=8 * (common["num_classes"] > 0)
        ),
    }
    modules = []
    for part, architecture in (*made.items(), ("G_ema", made["G"])):
        shapes = architecture.shapes("nvidia")
        state = {
            key: weight(key, shape, "fir" if key.endswith("resample_filter") else "normal", 1, 0, part)
            for key, shape in shapes.items()
        }
        blocks = {"channel_base": architecture.channel_base, "channel_max": architecture.channel_max}
        blocks |= {"num_fp16_res": 2, "conv_clamp": 256}
        given = {"c_dim": architecture.num_classes, "img_resolution": 16, "img_channels": 3, "mapping_kwargs": {}}
        given |= blocks if part == "D" or not grouped else {"synthesis_kwargs": blocks}
        modules.append((part, SnapshotPickler().dump_module(state, attributes={"_init_kwargs": given})))
    (tmp_path / "network-snapshot-000100.pkl").write_bytes(pickled(items(modules)))
    public = read_public_checkpoint([tmp_path])
    config = build_config(public)
    for architecture in made.values():
        own = getattr(config, architecture.role)
        assert [min(own.channel_base // r, own.channel_max) for r in (4, 8, 16)] == [
            *map(architecture.features, (4, 8, 16))
        ]
        assert own.conv_clamp == 256
    assert (config.generator.z_dim, config.generator.w_dim) == (latents["z_dim"], latents["w_dim"])
    assert config.generator.w_avg_decay == (0.995 if grouped else 0.998)
    state = abstract_state(config, 3, common["num_classes"])
    assert shapes_of(state.ema) == shapes_of(public.networks["ema"].variables)
    assert shapes_of(state.discriminator.variables) == shapes_of(public.networks["discriminator"].variables)
    if row == "latents" and not grouped:
        import_run(public, tmp_path / "run")
