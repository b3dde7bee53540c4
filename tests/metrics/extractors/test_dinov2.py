import dataclasses
import math

import jax
import numpy as np
import pytest
from golden_numbers import assert_close
from PIL import Image
from scipy.special import erf

from noisytwins_jax.metrics.extractors.dinov2 import (
    CONFIGS,
    LAYOUTS,
    dinov2_extractor,
    from_state_dict,
    state_dict_shapes,
)
from noisytwins_jax.metrics.extractors.public_networks import NETWORKS
from noisytwins_jax.metrics.extractors.resize import resize_matrix
from noisytwins_jax.metrics.extractors.vit import VisionTransformer
from noisytwins_jax.utils.errors import UserError

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SHA256 = "0123456789abcdef" * 4
HEADS, SIZE, GRID = 2, 28, 5  # two patches of 14 a side, where the file has positions for five
CONFIG = dataclasses.replace(CONFIGS["dinov2-vits14"], image_size=SIZE, width=24, layers=2, heads=HEADS, mlp_width=40)


@pytest.fixture(scope="module")
def state():
    """Return random tensors with Hugging Face's names."""
    random = np.random.default_rng(1)
    shapes = state_dict_shapes(CONFIG, "huggingface", GRID)
    return {key: (random.standard_normal(shape) * 0.2).astype(np.float32) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def network(state):
    return from_state_dict(state, HEADS, SIZE)


@pytest.fixture(scope="module")
def forward(network):
    return jax.jit(VisionTransformer(network[1]).apply)


def facebook_layout(state):
    """Rename Hugging Face's tensors to facebookresearch's names."""
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layer."))
    names = {"cls_token": state["embeddings.cls_token"], "pos_embed": state["embeddings.position_embeddings"]}
    for i in range(layers):
        old, new = f"encoder.layer.{i}", f"blocks.{i}"
        names[f"{new}.ls1.gamma"] = state[f"{old}.layer_scale1.lambda1"]
        names[f"{new}.ls2.gamma"] = state[f"{old}.layer_scale2.lambda1"]
        for kind in ("weight", "bias"):
            qkv = [state[f"{old}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            names[f"{new}.attn.qkv.{kind}"] = np.concatenate(qkv)
            names[f"{new}.attn.proj.{kind}"] = state[f"{old}.attention.output.dense.{kind}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                names[f"{new}.{part}.{kind}"] = state[f"{old}.{part}.{kind}"]
    for kind in ("weight", "bias"):
        names[f"norm.{kind}"] = state[f"layernorm.{kind}"]
        names[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embeddings.projection.{kind}"]
    return names


def expected_features(state, positions, images):
    """Compute the network as its authors describe it, in float64, for standardised images [n, H, W, 3]."""

    def linear(name, x):
        return x @ state[f"{name}.weight"].astype(np.float64).T + state[f"{name}.bias"]

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attention(name, x):
        query, key, value = (
            linear(f"{name}.attention.{part}", x).reshape(len(x), HEADS, -1) for part in ("query", "key", "value")
        )
        weights = np.exp(np.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[-1]))
        mixed = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), value)
        return linear(f"{name}.output.dense", mixed.reshape(len(x), -1))

    def one(image):
        kernel = state["embeddings.patch_embeddings.projection.weight"].astype(np.float64)
        patches = [
            np.einsum("hwc,ochw->o", image[i : i + 14, j : j + 14], kernel)
            for i in range(0, SIZE, 14)
            for j in range(0, SIZE, 14)
        ] + state["embeddings.patch_embeddings.projection.bias"]
        x = np.concatenate([state["embeddings.cls_token"][0], patches]) + positions
        for i in range(CONFIG.layers):
            block = f"encoder.layer.{i}"
            added = attention(f"{block}.attention", norm(f"{block}.norm1", x))
            x = x + added * state[f"{block}.layer_scale1.lambda1"]
            hidden = linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))
            hidden = hidden * (1 + erf(hidden / math.sqrt(2))) / 2
            x = x + linear(f"{block}.mlp.fc2", hidden) * state[f"{block}.layer_scale2.lambda1"]
        return norm("layernorm", x)[0]

    return np.stack([one(image) for image in images])


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def standardised(pixels):
    return ((np.asarray(pixels, np.float64) / 255 - MEAN) / DEVIATION).astype(np.float32)


def test_features_are_the_described_networks(state, network, forward):
    images = standardised(noise(2, SIZE, SIZE, 3))
    positions = np.asarray(network[0]["params"]["positions"], np.float64)
    assert_close(forward(network[0], images), expected_features(state, positions, images), 1e-5)


def test_huggingface_positions_are_interpolated_by_size(state, network):
    stored = state["embeddings.position_embeddings"][0].astype(np.float64)
    matrix = resize_matrix(GRID, SIZE // 14, "torch_bicubic")
    expected = np.einsum("oh,pw,hwd->opd", matrix, matrix, stored[1:].reshape(GRID, GRID, -1)).reshape(4, -1)
    assert_close(network[0]["params"]["positions"], np.concatenate([stored[:1], expected]), 1e-6)


def test_facebook_positions_are_interpolated_by_a_scale_a_tenth_off(state, network):
    """The bicubic filter reproduces a ramp away from the edges, which shows its sampling positions."""
    grid = 9
    ramp = np.zeros((1, 1 + grid**2, CONFIG.width), np.float32)
    ramp[0, 1:, 0] = np.repeat(np.arange(grid), grid)  # the row
    ramp[0, 1:, 1] = np.tile(np.arange(grid), grid)  # the column
    ramp[0, 0] = 7.0
    read = np.array([0.5, 1.5])
    for layout, scale in (("huggingface", grid / 2), ("facebookresearch", grid / 2.1)):
        file = dict(state) | {"embeddings.position_embeddings": ramp}
        file = facebook_layout(file) if layout == "facebookresearch" else file
        positions = from_state_dict(file, HEADS, SIZE)[0]["params"]["positions"]
        np.testing.assert_array_equal(positions[0], ramp[0, 0])
        place = positions[1:, :2].reshape(2, 2, 2)
        # a = -0.75 bends a ramp between pixels: exact where it meets a pixel or the middle between two
        near = 0.06
        np.testing.assert_allclose(place[:, 0, 0], read * scale - 0.5, atol=near)
        np.testing.assert_allclose(place[0, :, 1], read * scale - 0.5, atol=near)


def test_positions_stay_where_the_size_is_the_files(state):
    for file in (state, facebook_layout(state)):
        variables, config = from_state_dict(file, HEADS, 14 * GRID)
        assert config.image_size == 14 * GRID
        np.testing.assert_array_equal(variables["params"]["positions"], state["embeddings.position_embeddings"][0])


def test_both_layouts_give_the_same_network(state):
    for extra in ({}, {"mask_token": np.zeros((1, 24), np.float32)}):
        one, config = from_state_dict(facebook_layout(state) | extra, HEADS, 14 * GRID)
        other, other_config = from_state_dict(
            state | {f"embeddings.{key}": value for key, value in extra.items()}, HEADS, 14 * GRID
        )
        assert config == other_config
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_every_network_is_offered():
    assert list(CONFIGS) == [name for name in NETWORKS if name.startswith("dinov2")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_dict_shapes_are_those_of_the_files(state, layout):
    file = state if layout == "huggingface" else facebook_layout(state)
    assert state_dict_shapes(CONFIG, layout, GRID) == {key: value.shape for key, value in file.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("dinov2-vits14", 22_056_576), ("dinov2-vitb14", 86_580_480), ("dinov2-vitl14", 304_368_640)],
)
def test_public_networks_have_the_published_numbers_of_parameters(name, parameters, layout):
    shapes = state_dict_shapes(CONFIGS[name], layout)
    mask_token = CONFIGS[name].width  # which the published numbers count
    assert sum(np.prod(shape) for shape in shapes.values()) + mask_token == parameters


@pytest.mark.parametrize("layout", LAYOUTS)
def test_public_networks_are_told_by_their_shapes(layout):
    config = dataclasses.replace(CONFIGS["dinov2-vits14"], layers=2)
    shapes = state_dict_shapes(config, layout)
    variables, found = from_state_dict({key: np.zeros(shape, np.float16) for key, shape in shapes.items()})
    assert found == config
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    expected = jax.eval_shape(
        VisionTransformer(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    )
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, expected)


def test_dgm_eval_preprocessing_is_pillows_on_8_bits(network, forward):
    images = noise(2, 19, 40, 3)
    pixels = [Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for image in images]
    extractor = dinov2_extractor(*network, SHA256)
    assert "Pillow" in extractor.description["preprocessing"] and "28x28" in extractor.description["preprocessing"]
    features, logits = extractor.apply(extractor.variables, images)
    assert features.shape == (2, extractor.feature_dim) == (2, 24) and logits.shape == (2, 0)
    assert_close(features, forward(network[0], standardised(np.stack(pixels))), 1e-5)


def test_edm2_preprocessing_is_the_same_filter_without_rounding(network, forward):
    images = noise(2, 19, 40, 3)
    planes = [Image.fromarray(np.float32(image[..., c])) for image in images for c in range(3)]
    pixels = [np.asarray(plane.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for plane in planes]
    pixels = np.stack(pixels).reshape(2, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
    assert pixels.min() < 0 and pixels.max() > 255  # it is not clipped either
    extractor = dinov2_extractor(*network, SHA256, "edm2", origin="a file")
    assert extractor.name == "dinov2-vit-24x2-p14-28px-edm2-01234567"
    assert extractor.description["origin"] == "a file"
    features, _ = extractor.apply(extractor.variables, images)
    assert_close(features, forward(network[0], standardised(pixels)), 1e-5)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"pos_embed": None}, (HEADS, SIZE), "hold no DINOv2 network"),
        ({"blocks.1.ls2.gamma": None}, (HEADS, SIZE), r"'blocks\.1\.ls2\.gamma' is missing"),
        ({"blocks.0.mlp.fc1.weight": None}, (HEADS, SIZE), r"'blocks\.0\.mlp\.fc1\.weight' is missing"),
        ({"norm.bias": np.zeros(23)}, (HEADS, SIZE), r"'norm\.bias' has shape \[23\], not \[24\]"),
        (
            {"pos_embed": np.zeros((1, 25, 24))},
            (HEADS, SIZE),
            r"'pos_embed' has shape \[1, 25, 24\], not \[1, 26, 24\]",
        ),
        ({"register_tokens": np.zeros((1, 4, 24))}, (HEADS, SIZE), "'register_tokens' is unknown"),
        ({}, (HEADS, 30), "cannot see images of 30 pixels: choose a multiple of its patches of 14"),
        ({}, (HEADS, 0), "cannot see images of 0 pixels"),
        ({}, (None, SIZE), "width 24 has no heads of 64"),
    ],
)
def test_files_that_do_not_fit_are_refused(state, change, arguments, message):
    changed = {key: value for key, value in (facebook_layout(state) | change).items() if value is not None}
    with pytest.raises(UserError, match=message) as error:
        from_state_dict(changed, *arguments)
    assert "\n" not in str(error.value)


SMALL = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}


@pytest.mark.slow
@pytest.mark.parametrize(("options", "stored"), [(SMALL, 98), (BASE, 518)])
def test_agrees_with_transformers(options, stored, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    numpy_files = pytest.importorskip("safetensors.numpy")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(**options, image_size=stored, patch_size=14, layerscale_value=0.3)
    model = transformers.Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # normalisations are initialised to nothing, and would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path)  # the public files' names are not those of the module
    state = numpy_files.load_file(tmp_path / "model.safetensors")
    for size in {224, stored} if options is BASE else {28, 98, 126}:
        images = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
        with torch.no_grad():
            expected = model(pixel_values=torch.tensor(images.transpose(0, 3, 1, 2))).pooler_output.numpy()
        variables, found = from_state_dict(state, image_size=size)
        assert_close(jax.jit(VisionTransformer(found).apply)(variables, images), expected, 3e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [28, 70, 140, 224, 266, 448, 518, 560])
def test_facebook_positions_agree_with_pytorch(size):
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(CONFIG, layers=1)
    random = np.random.default_rng(2)
    shapes = state_dict_shapes(config, "facebookresearch")
    file = {key: random.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    stored = torch.tensor(file["pos_embed"])[0, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2).double()
    scale = (size // 14 + 0.1) / 37
    expected = torch.nn.functional.interpolate(stored, scale_factor=(scale, scale), mode="bicubic")
    expected = stored if size == 518 else expected
    assert expected.shape[-2:] == (size // 14, size // 14)
    positions = from_state_dict(file, HEADS, size)[0]["params"]["positions"]
    assert_close(positions[1:], expected[0].permute(1, 2, 0).reshape(-1, config.width).numpy(), 1e-6)
