import dataclasses

import jax
import numpy as np
import pytest
from golden_numbers import Golden, assert_close

from noisytwins_jax.metrics.extractors.clip import CONFIGS, LAYOUTS, clip_extractor, from_state_dict, state_dict_shapes
from noisytwins_jax.metrics.extractors.public_networks import NETWORKS
from noisytwins_jax.metrics.extractors.vit import VisionTransformer
from noisytwins_jax.utils.errors import UserError

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SHA256 = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def golden():
    return Golden("clip_vit_tiny")


@pytest.fixture(scope="module")
def state(golden):
    return golden.weights("model")


@pytest.fixture(scope="module")
def tower(state):
    return from_state_dict(state, heads=4)


def openai_layout(state):
    """Rename Hugging Face's tensors to OpenAI's names, in half precision where `state` is."""
    names, layers = {}, 1 + max(int(key.split(".")[3]) for key in state if ".layers." in key)
    names["visual.class_embedding"] = state["vision_model.embeddings.class_embedding"]
    names["visual.positional_embedding"] = state["vision_model.embeddings.position_embedding.weight"]
    names["visual.conv1.weight"] = state["vision_model.embeddings.patch_embedding.weight"]
    names["visual.proj"] = state["visual_projection.weight"].T
    for kind in ("weight", "bias"):
        names[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        names[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
        for i in range(layers):
            old, new = f"vision_model.encoder.layers.{i}", f"visual.transformer.resblocks.{i}"
            packed = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            names[f"{new}.attn.in_proj_{kind}"] = np.concatenate(packed)
            names[f"{new}.attn.out_proj.{kind}"] = state[f"{old}.self_attn.out_proj.{kind}"]
            names[f"{new}.ln_1.{kind}"] = state[f"{old}.layer_norm1.{kind}"]
            names[f"{new}.ln_2.{kind}"] = state[f"{old}.layer_norm2.{kind}"]
            names[f"{new}.mlp.c_fc.{kind}"] = state[f"{old}.mlp.fc1.{kind}"]
            names[f"{new}.mlp.c_proj.{kind}"] = state[f"{old}.mlp.fc2.{kind}"]
    return names


def features(tower, images, preprocessing="noisytwins"):
    extractor = clip_extractor(*tower, SHA256, preprocessing)
    result, logits = extractor.apply(extractor.variables, images)
    assert result.shape == (len(images), extractor.feature_dim) and result.dtype == np.float32
    assert logits.shape == (len(images), 0) and logits.dtype == np.float32
    return np.asarray(result)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("image", ["sq", "rect"])
@pytest.mark.parametrize(("preprocessing", "filter"), [("noisytwins", "torch"), ("openai", "pil")])
def test_features_are_the_published_networks(golden, tower, image, preprocessing, filter):
    actual = features(tower, golden[f"in/image_{image}"][None], preprocessing)
    assert_close(actual[0], golden[f"out/embeds_{filter}_{image}"], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("image", ["sq", "rect"])
def test_features_are_the_published_networks_at_full_size(image):
    golden = Golden("clip_vit_b32")
    tower = from_state_dict(golden.weights("model"))
    assert tower[1] == CONFIGS["clip-vit-b32"]
    for preprocessing, filter in [("noisytwins", "torch"), ("openai", "pil")]:
        actual = features(tower, golden[f"in/image_{image}"][None], preprocessing)
        assert_close(actual[0], golden[f"out/embeds_{filter}_{image}"], 1e-4)


def test_fidelity_preprocessing_is_tensorflows_bilinear_filter(tower):
    images = noise(2, 16, 16, 3)
    doubled = images.astype(np.float64)
    for axis in (1, 2):  # every second pixel is an old one, those between are means; the last is repeated
        following = np.concatenate([np.delete(doubled, 0, axis), np.take(doubled, [-1], axis)], axis)
        pairs = np.stack([doubled, (doubled + following) / 2], axis + 1)
        doubled = pairs.reshape(*doubled.shape[:axis], 32, *doubled.shape[axis + 1 :])
    standardised = ((doubled / 255 - MEAN) / DEVIATION).astype(np.float32)
    expected = jax.jit(VisionTransformer(tower[1]).apply)(tower[0], standardised)
    assert_close(features(tower, images, "fidelity"), expected, 1e-5)


def test_both_layouts_give_the_same_network(state, tower):
    variables, config = from_state_dict(openai_layout(state), heads=4)
    assert config == tower[1]
    jax.tree.map(np.testing.assert_array_equal, variables, tower[0])


def test_the_text_tower_is_ignored(state, tower):
    text = ["text_model.embeddings.token_embedding.weight", "text_projection.weight", "logit_scale"]
    other = ["vision_model.embeddings.position_ids"]
    variables, _ = from_state_dict(state | {key: np.ones(3, np.float32) for key in text + other}, heads=4)
    jax.tree.map(np.testing.assert_array_equal, variables, tower[0])
    text = ["transformer.resblocks.0.ln_1.weight", "token_embedding.weight", "positional_embedding", "logit_scale"]
    other = ["ln_final.bias", "text_projection", "input_resolution", "context_length", "vocab_size"]
    packed = openai_layout(state) | {key: np.ones(3, np.float32) for key in text + other}
    jax.tree.map(np.testing.assert_array_equal, from_state_dict(packed, heads=4)[0], tower[0])


def test_half_precision_becomes_float32(state):
    halves = {key: value.astype(np.float16) for key, value in state.items()}
    variables, _ = from_state_dict(halves, heads=4)
    widened, _ = from_state_dict({key: value.astype(np.float32) for key, value in halves.items()}, heads=4)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    jax.tree.map(np.testing.assert_array_equal, variables, widened)


def test_every_network_is_offered():
    assert list(CONFIGS) == [name for name in NETWORKS if name.startswith("clip")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_dict_shapes_are_those_of_the_files(state, tower, layout):
    file = state if layout == "huggingface" else openai_layout(state)
    assert state_dict_shapes(tower[1], layout) == {key: value.shape for key, value in file.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "parameters"), [("clip-vit-b32", 87_849_216), ("clip-vit-l14", 303_966_208)])
def test_public_networks_have_the_published_numbers_of_parameters(name, parameters, layout):
    assert sum(np.prod(shape) for shape in state_dict_shapes(CONFIGS[name], layout).values()) == parameters


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_public_networks_are_told_by_their_shapes(name, layout):
    shapes = state_dict_shapes(CONFIGS[name], layout)
    nothing = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    small = dataclasses.replace(CONFIGS[name], layers=2)  # reading does not depend on how many there are
    nothing = {key: nothing[key] for key in state_dict_shapes(small, layout)}
    variables, config = from_state_dict(nothing)
    assert config == small
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), np.float32)
    expected = jax.eval_shape(VisionTransformer(config).init, jax.random.key(0), images)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, expected)


def test_grey_images_are_grey_colours(tower):
    grey = noise(2, 16, 16, 1)
    expected = features(tower, grey.repeat(3, axis=-1), "fidelity")
    assert_close(features(tower, grey, "fidelity"), expected, 1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 0.1


def test_what_is_said_of_it(tower):
    extractor = clip_extractor(*tower, SHA256, "openai", origin="a file")
    assert extractor.name == "clip-vit-32x2-p8-openai-01234567"
    assert extractor.sha256 == SHA256 and extractor.feature_dim == 16
    assert extractor.description["origin"] == "a file"
    assert "shorter side to 32" in extractor.description["preprocessing"]
    assert clip_extractor({}, CONFIGS["clip-vit-l14-336"], SHA256).name == "clip-vit-l14-336-noisytwins-01234567"


def test_wrong_images_are_refused(tower):
    for images in (noise(1, 8, 8, 4), noise(8, 8, 3), noise(1, 8, 8, 3).astype(np.float32)):
        with pytest.raises(UserError, match="takes uint8 images of shape"):
            features(tower, images)


def test_unknown_preprocessing_is_refused(tower):
    with pytest.raises(UserError, match="no preprocessing 'opnai'; did you mean 'openai'"):
        clip_extractor(*tower, SHA256, "opnai")


def without(key):
    return lambda state: state.pop(key)


def replaced(key, *shape):
    return lambda state: state.update({key: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "heads", "message"),
    [
        (without("vision_model.encoder.layers.1.mlp.fc2.bias"), 4, r"layers\.1\.mlp\.fc2\.bias' is missing"),
        (without("visual_projection.weight"), 4, r"'visual_projection\.weight' is missing"),
        (without("vision_model.encoder.layers.0.mlp.fc1.weight"), 4, r"layers\.0\.mlp\.fc1\.weight' is missing"),
        (without("vision_model.embeddings.position_embedding.weight"), 4, "hold no CLIP image tower"),
        (replaced("vision_model.post_layernorm.bias", 31), 4, r"post_layernorm\.bias' has shape \[31\], not \[32\]"),
        (replaced("vision_model.embeddings.position_embedding.weight", 18, 32), 4, r"has shape \[18, 32\], not \[17"),
        (replaced("vision_model.embeddings.patch_embedding.weight", 32, 8), 4, r"has shape \[32, 8\]"),
        (replaced("vision_model.embeddings.registers", 4, 32), 4, r"'vision_model\.embeddings\.registers' is unknown"),
        (lambda state: None, None, "width 32 has no heads of 64"),
        (lambda state: None, 5, "cannot have 5 heads"),
        (lambda state: None, 0, "cannot have 0 heads"),
    ],
)
def test_files_that_do_not_fit_are_refused(state, change, heads, message):
    changed = dict(state)
    change(changed)
    with pytest.raises(UserError, match=message) as error:
        from_state_dict(changed, heads)
    assert "\n" not in str(error.value)


SMALL = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 2}
SMALL |= {"patch_size": 16, "projection_dim": 48}
B32 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
B32 |= {"patch_size": 32, "projection_dim": 512}


@pytest.mark.slow
@pytest.mark.parametrize(("options", "size"), [(SMALL, 64), (SMALL, 224), (SMALL, 336), (B32, 224), (B32, 288)])
def test_agrees_with_transformers(options, size):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**options, image_size=size)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # normalisations are initialised to nothing, and would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.02)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    images = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(pixel_values=torch.tensor(images.transpose(0, 3, 1, 2))).image_embeds.numpy()
    for file in (state, openai_layout(state)):
        variables, config = from_state_dict(file)
        assert config.image_size == size
        assert_close(jax.jit(VisionTransformer(config).apply)(variables, images), expected, 1e-5)
