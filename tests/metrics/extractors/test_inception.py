import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import Golden, assert_close, nhwc
from PIL import Image

from noisytwins_jax.generation.sample_programs import quantize
from noisytwins_jax.metrics.extractors import inception
from noisytwins_jax.metrics.extractors.inception import (
    PREPROCESSINGS,
    Inception,
    from_state_dict,
    inception_extractor,
    is_optional,
    preprocess,
    state_dict_shapes,
)
from noisytwins_jax.utils.errors import UserError


@pytest.fixture(scope="module")
def golden():
    return Golden("inception_fid")


@pytest.fixture(scope="module")
def state(golden):
    """Return the tensors of the golden numbers, under PyTorch's names."""
    return golden.weights("model")


@pytest.fixture(scope="module")
def variables(state):
    return jax.device_put(from_state_dict(state))


def test_every_tap_reproduces_the_reference(golden, variables):
    large = np.random.RandomState(golden.config["seed_299"]).randint(0, 256, (1, 3, 299, 299)).astype(np.uint8)
    small = preprocess(nhwc(golden["in/images_64x64"]), "tf1")
    images = jnp.concatenate([small, preprocess(nhwc(large), "tf1")])
    taps = jax.jit(Inception().apply)(variables, images)
    assert set(taps) == set(golden.config["features"])
    for name, values in taps.items():
        assert_close(values[:2], golden[f"out/small/{name}"], 1e-5)
        assert_close(values[2:], golden[f"out/299/{name}"], 1e-5)


def test_the_extractor_reproduces_the_reference_row_by_row(golden, variables):
    images = nhwc(golden["in/images_64x64"])
    extractor = inception_extractor(variables, "ab12cd34ef", preprocessing="noisytwins", origin="random")
    features, logits = extractor.apply(extractor.variables, images)
    assert features.dtype == logits.dtype == np.float32
    assert_close(features, golden["out/studiogan_legacy/2048"], 1e-5)
    assert_close(logits, golden["out/studiogan_legacy/logits"], 1e-5)
    other = np.random.default_rng(0).integers(0, 256, images[:1].shape, np.uint8)
    again, _ = extractor.apply(extractor.variables, np.concatenate([other, images[:1]]))
    assert_close(again[1], features[0], 1e-6)
    assert np.abs(again[0] - features[0]).max() > 1e-3

    assert extractor.name == "inception-noisytwins-ab12cd34" and extractor.feature_dim == features.shape[1] == 2048
    assert extractor.description["origin"] == "random"
    assert "half-pixel bilinear" in extractor.description["preprocessing_in_words"]


def test_logits_of_the_inception_score_have_no_bias(variables, monkeypatch):
    """The extractor returns the right outputs; their values are compared above."""
    taps = {"2048": jnp.ones((1, 2048)), "logits": jnp.ones((1, 1008)), "logits_unbiased": jnp.zeros((1, 1008))}
    monkeypatch.setattr(inception.Inception, "apply", lambda self, variables, x: taps)
    for unbiased in (False, True):
        extractor = inception_extractor(variables, "0" * 64, unbiased_logits=unbiased)
        _, logits = extractor.apply(variables, np.zeros((1, 8, 8, 3), np.uint8))
        assert (np.asarray(logits) == (0 if unbiased else 1)).all()
        assert extractor.description["logits"] == ("without bias" if unbiased else "with bias")


@pytest.mark.parametrize("name, filter", [("clean", "BICUBIC"), ("studiogan_clean", "BILINEAR")])
@pytest.mark.parametrize("size", [64, 400])
def test_clean_preprocessings_are_pillows_in_float(name, filter, size):
    image = np.random.default_rng(0).integers(-100, 356, (size, size, 3)).clip(0, 255).astype(np.uint8)
    channels = [Image.fromarray(channel) for channel in np.moveaxis(image.astype(np.float32), 2, 0)]
    resized = np.stack([channel.resize((299, 299), Image.Resampling[filter]) for channel in channels], axis=-1)
    if name == "clean":
        assert resized.min() < -1 and resized.max() > 256  # the clipping matters
        expected = (resized.clip(0, 255) - 128) / 128
    else:
        expected = resized / 127.5 - 1
    np.testing.assert_allclose(preprocess(image[None], name)[0], expected, rtol=0, atol=2e-6)


def test_preprocessings_scale_as_published(golden):
    """Resizing keeps a constant image constant, so only the scaling shows."""
    images = np.array([0, 128, 255], np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 1), np.uint8)
    for name, (low, middle, high) in {
        "noisytwins": (-1, 128 / 127.5 - 1, 1),
        "tf1": (-1, 0, 127 / 128),
        "clean": (-1, 0, 127 / 128),
        "studiogan_clean": (-1, 128 / 127.5 - 1, 1),
    }.items():
        output = np.asarray(preprocess(images, name))
        assert output.shape == (3, 299, 299, 3) and output.dtype == np.float32
        for image, value in zip(output, (low, middle, high), strict=True):
            np.testing.assert_allclose(image, value, rtol=0, atol=1e-6)


def test_grey_images_are_repeated():
    grey = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 1), np.uint8)
    for name in PREPROCESSINGS:
        np.testing.assert_array_equal(preprocess(grey, name), preprocess(np.repeat(grey, 3, axis=3), name))


def test_generated_images_are_quantised_as_published(golden):
    np.testing.assert_array_equal(quantize(nhwc(golden["in/gen_images"])), nhwc(golden["out/quantized"]))


@pytest.mark.parametrize("name", ["Conv2d_1a_3x3", "Mixed_6b.branch7x7_2", "Mixed_7c.branch_pool"])
def test_batch_normalisation_is_folded_in(name, state, variables):
    """On single patches, in float64: convolution and batch normalisation after it, as the file has them."""
    of = {key.removeprefix(f"{name}."): value.astype(np.float64) for key, value in state.items() if name in key}
    kernel = of["conv.weight"].transpose(2, 3, 1, 0)
    patches = np.random.default_rng(0).standard_normal((5, *kernel.shape[:3]))
    x = np.einsum("nhwi,hwio->no", patches, kernel)
    x = (x - of["bn.running_mean"]) / np.sqrt(of["bn.running_var"] + 1e-3) * of["bn.weight"] + of["bn.bias"]
    unit = variables["params"]
    for part in name.split("."):
        unit = unit[part]
    folded = np.einsum("nhwi,hwio->no", patches, np.asarray(unit["kernel"], np.float64)) + np.asarray(unit["bias"])
    assert_close(folded, x, 1e-6)


def test_names_and_shapes_are_the_files(state):
    shapes = state_dict_shapes()
    assert len(shapes) == 566 and {key: np.shape(value) for key, value in state.items()} == shapes
    assert sum(np.prod(shape, dtype=int) for key, shape in shapes.items() if "num_b" in key) == 94
    trained = [key for key in shapes if key.rsplit(".", 1)[1] in ("weight", "bias")]
    assert sum(np.prod(shapes[key], dtype=int) for key in trained) == 23_850_960


def test_files_without_the_counters_will_do(state, variables):
    bare = {key: value for key, value in state.items() if not is_optional(key)}
    assert len(bare) == 566 - 94
    jax.tree.map(np.testing.assert_array_equal, from_state_dict(bare), jax.device_get(variables))
    expected = jax.eval_shape(Inception().init, jax.random.key(0), jnp.zeros((1, 299, 299, 3)))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, expected)


def test_wrong_weights_are_one_sentence(state):
    def refused(changes: dict, match: str) -> None:
        wrong = {key: value for key, value in (state | changes).items() if value is not None}
        with pytest.raises(UserError, match=match) as error:
            from_state_dict(wrong)
        assert str(error.value).count("\n") == 0 and str(error.value).endswith("torchvision's are others).")

    refused({"Mixed_6a.branch3x3.conv.weight": None}, r"lack Mixed_6a\.branch3x3\.conv\.weight: convert")
    refused({"fc.weight": np.zeros((1000, 2048))}, r"fc\.weight is 1000x2048 and should be 1008x2048: convert")
    refused({"Conv2d_1a_3x3.bn.bias": np.zeros(())}, r"bn\.bias is a single number and should be 32: convert")
    refused({"AuxLogits.fc.weight": np.zeros((1000, 768))}, r"have AuxLogits\.fc\.weight, which this network has not")


def test_wrong_images_and_names_are_one_sentence(variables):
    with pytest.raises(UserError, match=r"no preprocessing 'tf'; did you mean 'tf1'\?"):
        inception_extractor(variables, "0" * 64, preprocessing="tf")
    extractor = inception_extractor(variables, "0" * 64)
    for images in (
        np.zeros((2, 3, 64, 64), np.uint8),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((2, 64, 64, 3), np.float32),
    ):
        with pytest.raises(UserError, match=r"takes uint8 images \[n, H, W, 1 or 3\], but got .*: give grey or RGB"):
            extractor.apply(variables, images)
