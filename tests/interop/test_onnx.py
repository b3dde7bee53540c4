"""ONNX files draw JAX's images: every network, and each operation of the translation."""

import importlib.util
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_biggan
import tiny_run
from paths import ROOT
from PIL import Image

from noisytwins_jax.generation.trained_generator import TrainedGenerator
from noisytwins_jax.interop.onnx import export
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.utils.errors import UserError

onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("fast_compilation")
CLASSES = ("a", "b", "ç", "d")

_BIGGAN = {"network": "biggan", "evaluation.standing_passes": 4, "evaluation.standing_batch": 16}
_R3GAN = {
    "network": "r3gan",
    "loss": "relativistic",
    "fake_labels": "paired",
    "r3gan.width": 16,
    "r3gan.cardinality": 4,
}
_WITHOUT = {"noisytwins.weight": 0.0, "noisytwins.sigma": 0.0}
_OWN_TABLES = _WITHOUT | {"biggan.shared_embedding": False, "biggan.skip_z": False}
_DEEP = {"network": "biggan_deep", "data.resolution": 32, "biggan.generator_width": 8}
NETWORKS = {  # its fields, image channels, and options of the export
    "skip, grey": ({}, 1, {}),
    "skip, RGB": ({"data.resolution": 16}, 3, {}),
    "resnet": ({"generator.architecture": "resnet"}, 3, {}),
    "orig, clamped": ({"generator.architecture": "orig", "generator.conv_clamp": 1.0}, 3, {}),
    "no noise": ({}, 3, {"noise": "none"}),
    "bfloat16": ({"dtype": "bfloat16"}, 3, {}),
    "transitional": ({"transitional.weight": 1.0}, 3, {}),
    "content_style": (_WITHOUT | {"content_style.weight": 1.0}, 3, {}),
    "utlo": ({"utlo.weight": 1.0, "utlo.resolution": 4}, 3, {}),
    "biggan": (_BIGGAN, 1, {"truncation": "threshold:0.5"}),
    "biggan, own tables": (_BIGGAN | _OWN_TABLES, 3, {}),
    "biggan, attention": (
        _BIGGAN | {"data.resolution": 32, "generator.z_dim": 8, "biggan.attention": "16"},
        3,
        {"truncation": "std:0.5"},
    ),
    "biggan_deep": (_BIGGAN | _DEEP | {"biggan.wide_rgb": True}, 3, {}),
    "r3gan": (_R3GAN | _WITHOUT | {"path_length.weight": 0.0, "path_length.interval": 1}, 3, {}),
}


def drawn(changes, channels=3, classes=CLASSES):
    """A generator of which no weight is zero."""
    tiny = tiny_biggan if "biggan" in changes.get("network", "") else tiny_run
    config = tiny.tiny_config(**changes)
    variables = build_model(config, channels, len(classes)).init(jax.random.key(0))[0]
    rng = np.random.default_rng(0)

    def moved(path, x):
        x = np.asarray(x) + np.float32(0.1) * rng.standard_normal(x.shape).astype(np.float32)
        return np.abs(x) if "var" in jax.tree_util.keystr(path) else x

    return TrainedGenerator(config, jax.tree_util.tree_map_with_path(moved, variables), channels, classes, step=7)


def run_onnx(path, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def test_a_file_draws_the_images_of_sample(tmp_path, monkeypatch):
    trained, path = drawn({}), tmp_path / "folder" / "generator.onnx"
    assert export.save_onnx(trained, path) < 1e-5
    labels, indices = trained.labels_and_indices(None, 2)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(jax.random.key(5), i))[0])(indices)
    z = np.concatenate([np.asarray(trained.config.z.draw(key, 1)) for key in keys])
    images = run_onnx(path, z=z, classes=labels, psi=np.array(0.7, np.float32))
    assert images.dtype == np.float32 and images.shape == (8, 3, 8, 8) and np.abs(images).max() <= 1
    expected = trained.sample(per_class=2, psi=0.7, seed=5, noise_mode="const").transpose(0, 3, 1, 2)
    assert np.abs(np.floor(127.5 * images + 128).clip(0, 255) - expected).max() <= 1 and expected.std() > 5

    mean = run_onnx(path, z=z, classes=labels, psi=np.array(0.0, np.float32))
    assert np.ptp(mean, axis=0).max() < 1e-5 < np.ptp(images, axis=0).max()
    model = onnx.load(path)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts.pop("classes")) == list(CLASSES)
    assert facts.pop("noisytwins_jax") and facts == {
        "run": "tiny", "step": "7", "network": "stylegan2", "z": "normal", "noise": "const"
    }  # fmt: skip
    assert [entry.name for entry in model.graph.input] == ["z", "classes", "psi"]

    examples = re.findall(r"```python\n(.*?)```", (ROOT / "noisytwins_jax/interop/README.md").read_text(), re.S)
    (example,) = [text for text in examples if "onnxruntime" in text]
    path.rename(tmp_path / "digits.onnx")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    with Image.open("three.png") as picture:
        assert picture.size == (8, 8) and picture.mode == "RGB" and np.ptp(np.asarray(picture)) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name, tmp_path):
    changes, channels, options = NETWORKS[name]
    difference = export.save_onnx(drawn(changes, channels), tmp_path / "generator.onnx", **options)
    print(f"{name}: {difference:.1e}")
    assert difference < 1e-4


@pytest.mark.slow
def test_a_single_class(tmp_path):
    assert export.save_onnx(drawn({}, classes=("all",)), tmp_path / "generator.onnx") < 1e-5


OPERATIONS = {
    "padding between pixels": lambda x: jax.lax.pad(x, 0.5, [(0, 0, 0), (1, 0, 1), (-1, 2, 2), (0, 0, 0)]),
    "strided slices": lambda x: jax.lax.slice_in_dim(x, 1, 4, 2, axis=1)[:, 1, :3],
    "maxima": lambda x: -jax.nn.softmax(x, axis=1).max(axis=(2, 3)),
    "windows": lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "attention": lambda x: jnp.einsum("nqc,nkc->nqk", x[:, 0], x[:, 1] * 2),
    "products": lambda x: jnp.einsum("nhwc,cd->nhwd", x, jnp.arange(6.0).reshape(3, 2)),
    "constants for a batch": lambda x: jnp.concatenate([x[:, 0, 0], jnp.zeros((x.shape[0], 2)) + 3.0], axis=1),
    "repetition": lambda x: jnp.broadcast_to(x[:, :, None], (x.shape[0], 4, 2, 4, 3)).reshape(x.shape[0], 8, 4, 3),
    "groups": lambda x: jax.lax.conv_general_dilated(
        x, jnp.arange(54.0).reshape(3, 3, 1, 6), (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    ),
    "halves": lambda x: jnp.stack(jnp.split(x, 2, axis=1)[::-1], axis=1),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation(name):
    from noisytwins_jax.interop.onnx.graph import OPSET, to_graph

    (batch,) = jax.export.symbolic_shape("batch")
    argument = jax.ShapeDtypeStruct((batch, 4, 4, 3), jnp.float32)
    graph = to_graph(OPERATIONS[name], [argument], {"x": np.dtype(np.float32)}, "y", name)
    opset = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    x = np.random.default_rng(0).standard_normal((5, 4, 4, 3)).astype(np.float32)
    have, want = run_onnx(model.SerializeToString(), x=x), np.asarray(OPERATIONS[name](x))
    assert have.shape == want.shape
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


def test_what_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_largest_difference", lambda *_: float("nan"))
    path = tmp_path / "generator.onnx"
    with pytest.raises(UserError, match=r"differ by nan from JAX's, more than 0\.0001, so it is not written"):
        export.save_onnx(drawn({}), path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"truncation": "0.7"}, "ψ is an input"),
        ({}, {"noise": "random"}, "const or none"),
        (_BIGGAN, {"noise": "const"}, "no noise of its pixels"),
    ],
)
def test_options_of_another_network(changes, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export.save_onnx(drawn(changes), tmp_path / "generator.onnx", **options)


def test_an_operation_without_a_translation(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_draw", lambda _: lambda z, *_: jnp.sort(z))
    with pytest.raises(UserError, match=r"JAX's sort is not translated into ONNX\. Export it for JAX: convert to-jax"):
        export.save_onnx(drawn({}), tmp_path / "generator.onnx")


def test_a_missing_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="python -m pip install onnx onnxruntime"):
        export.check_installed()
