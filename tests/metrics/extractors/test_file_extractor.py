"""Extractors from files: exported functions of JAX and ONNX files, and files that are none."""

import hashlib
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from noisytwins_jax.metrics import real_features
from noisytwins_jax.metrics.extractors.file_extractor import load_file_extractor
from noisytwins_jax.metrics.features import Embedder
from noisytwins_jax.utils.errors import UserError

MATRIX = np.random.default_rng(0).standard_normal((8 * 6 * 3, 5)).astype(np.float32)
IMAGES = np.random.default_rng(1).integers(0, 256, (7, 8, 6, 3)).astype(np.uint8)
BATCH, HEIGHT, WIDTH = jax.export.symbolic_shape("batch, height, width")


def project(images):
    return images.reshape(images.shape[0], -1).astype(jnp.float32) @ MATRIX


def means(images):
    return images.astype(jnp.float32).mean(axis=(1, 2))


def write_exported(path, function=project, shape=(BATCH, 8, 6, 3), dtype=jnp.uint8, platforms=("cpu", "cuda", "tpu")):
    exported = jax.export.export(jax.jit(function), platforms=platforms)(jax.ShapeDtypeStruct(shape, dtype))
    path.write_bytes(exported.serialize())
    return path


def write_onnx(path, dtype="UINT8", shape=("batch", 8, 6, 3)):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=types.FLOAT),
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "projection",
        [helper.make_tensor_value_info("images", getattr(types, dtype), shape)],
        [helper.make_tensor_value_info("features", types.FLOAT, [shape[0], 5])],
        [onnx.numpy_helper.from_array(MATRIX, "matrix")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def features(path, images):
    extractor = load_file_extractor(str(path))
    result = Embedder({"file": extractor}, per_device_batch=4).embed_images(images)["file"]
    assert result.logits.shape == (len(images), 0) and result.features.shape[1] == extractor.feature_dim
    return result.features


@pytest.mark.parametrize(("write", "name"), [(write_exported, "retina.jax"), (write_onnx, "retina.onnx")])
def test_features_of_a_file(write, name, tmp_path):
    path = write(tmp_path / name)
    extractor = load_file_extractor(str(path))
    assert extractor.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert extractor.name == f"retina-{extractor.sha256[:8]}" and extractor.description["file"] == name
    np.testing.assert_allclose(features(path, IMAGES), project(IMAGES), rtol=1e-5, atol=1e-2)


def test_the_example_of_the_documentation(tmp_path, monkeypatch):
    class Network:
        def apply(self, variables, x):
            return variables * x.mean(axis=(1, 2))

    document = (ROOT / "noisytwins_jax/evaluation/README.md").read_text()
    (example,) = [text for text in re.findall(r"```python\n(.*?)```", document, re.S) if "retina.jax" in text]
    monkeypatch.chdir(tmp_path)
    exec(example, {"network": Network(), "variables": 2.0})
    images = np.full((3, 16, 16, 1), 255, np.uint8)
    np.testing.assert_allclose(features("retina.jax", images), np.full((3, 3), 2.0), rtol=1e-6)


def test_other_sizes_are_resized_as_by_pillow_and_grey_is_repeated(tmp_path):
    path = write_exported(tmp_path / "fixed.jax")
    large = np.random.default_rng(2).integers(0, 256, (3, 16, 16)).astype(np.uint8)
    resized = np.stack([np.asarray(Image.fromarray(x).resize((6, 8), Image.Resampling.BICUBIC)) for x in large])
    expected = project(np.repeat(resized[..., None], 3, axis=3))
    np.testing.assert_allclose(features(path, large[..., None]), expected, rtol=1e-5, atol=1e-2)
    free = write_exported(tmp_path / "free.jax", means, (BATCH, HEIGHT, WIDTH, 3))
    np.testing.assert_allclose(features(free, IMAGES), means(IMAGES), rtol=1e-6)


def test_cached_features_belong_to_the_content_of_the_file(tmp_path):
    class Source:
        fingerprint = "images"

    one, other = (
        load_file_extractor(str(write_exported(tmp_path / folder / "own.jax", function, (BATCH, HEIGHT, WIDTH, 3))))
        for folder, function in (("a", means), ("b", lambda x: 2 * means(x)))
        if not (tmp_path / folder).mkdir()
    )
    names = [real_features._name(Source, extractor, 4, False) for extractor in (one, other)]
    assert names[0] != names[1] and one.description == other.description


@pytest.mark.parametrize(
    ("options", "takes"),
    [
        ({"shape": (4, 8, 6, 3)}, r"takes uint8 \[4, 8, 6, 3\]"),
        ({"dtype": jnp.float32}, r"takes float32 \[batch, 8, 6, 3\]"),
        ({"shape": (BATCH, 3, 8, 6)}, r"takes uint8 \[batch, 3, 8, 6\]"),
        ({"function": lambda x: x.astype(jnp.float32).mean()}, r"returns float32 \[\]; an extractor has one input, images uint8"),
        ({"function": lambda x: (project(x), project(x))}, r"returns float32 \[batch, 5\] and float32 \[batch, 5\]"),
        ({"function": lambda x: x.reshape(x.shape[0], -1)}, r"returns uint8 \[batch, 144\]"),
        ({"platforms": ("tpu",)}, "exported for tpu, and this is cpu"),
    ],
)  # fmt: skip
def test_functions_of_another_form(options, takes, tmp_path):
    with pytest.raises(UserError, match=takes):
        load_file_extractor(str(write_exported(tmp_path / "own.jax", **options)))


def test_an_onnx_file_of_another_form(tmp_path):
    with pytest.raises(UserError, match=r"takes float32 \[\?, 3, 8, 6\] and returns float32 \[\?, 5\]"):
        load_file_extractor(str(write_onnx(tmp_path / "own.onnx", "FLOAT", (None, 3, 8, 6))))


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        load_file_extractor(str(tmp_path / "missing.jax"))
    (tmp_path / "text.jax").write_text("not a function")
    with pytest.raises(UserError, match=r"no function written by jax\.export"):
        load_file_extractor(str(tmp_path / "text.jax"))
    (tmp_path / "empty.jax").touch()
    with pytest.raises(UserError, match=r"no function written by jax\.export"):
        load_file_extractor(str(tmp_path / "empty.jax"))


def test_an_onnx_file_that_is_none(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(UserError, match="no ONNX file that onnxruntime can run"):
        load_file_extractor(str(tmp_path / "text.onnx"))


def test_images_of_other_channels(tmp_path):
    path = write_exported(tmp_path / "grey.jax", means, (BATCH, HEIGHT, WIDTH, 1))
    with pytest.raises(UserError, match="takes images of 1 channels, and these have 3"):
        features(path, IMAGES)
