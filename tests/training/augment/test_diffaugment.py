"""DiffAugment against the official implementation with stored random inputs, and the distribution of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import Golden, assert_close, nhwc

from noisytwins_jax.training.augment import diffaugment
from noisytwins_jax.training.augment.diffaugment import POLICIES, DiffAugmentInputs, apply, parse_policy, sample_inputs
from noisytwins_jax.utils.errors import UserError

SHAPES = ["32x32", "16x24"]
OUTPUTS = {"full": POLICIES, "color": ("color",), "translation": ("translation",), "cutout": ("cutout",)}


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("diffaug")


def images_and_inputs(golden: Golden, shape: str) -> tuple[np.ndarray, DiffAugmentInputs]:
    names = ["u_brightness", "u_saturation", "u_contrast", "translation_x", "translation_y"]
    names += ["cutout_offset_x", "cutout_offset_y"]
    inputs = [golden[f"in/{shape}/{name}"].reshape(-1) for name in names]
    return nhwc(golden[f"in/{shape}/x"]), DiffAugmentInputs(*inputs)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_output(golden, shape, output):
    images, inputs = images_and_inputs(golden, shape)
    expected = nhwc(golden[f"out/{shape}/{output}"])
    assert_close(apply(images, inputs, OUTPUTS[output]), expected, 2e-6 if "color" in OUTPUTS[output] else 0.0)


def test_random_inputs_fill_their_ranges():
    inputs = sample_inputs(jax.random.key(0), (4096, 32, 9, 3))  # 9 px: an odd hole of ⌊4.5 + ½⌋ = 5
    for u in (inputs.brightness, inputs.saturation, inputs.contrast):
        assert 0.0 <= u.min() < 0.01 and 0.99 < u.max() < 1.0
        assert abs(u.mean() - 0.5) < 0.03
    ranges = {
        "translation_rows": range(-4, 5),
        "translation_columns": range(-1, 2),
        "cutout_row": range(0, 33),  # an even hole may be centred one past the border
        "cutout_column": range(0, 9),
    }
    for name, values in ranges.items():
        unique, counts = np.unique(getattr(inputs, name), return_counts=True)
        assert unique.tolist() == list(values), name
        expected = 4096 / len(values)
        assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all(), name


def test_random_inputs_are_independent():
    inputs = sample_inputs(jax.random.key(1), (4096, 32, 32, 3))
    correlations = np.corrcoef(np.stack([np.asarray(d, np.float64) for d in inputs]))
    assert np.abs(correlations - np.eye(len(inputs))).max() < 0.08


def test_images_are_augmented_each_by_its_own_inputs(golden):
    images, inputs = images_and_inputs(golden, "16x24")
    one = apply(images[1:2], DiffAugmentInputs(*(d[1:2] for d in inputs)))
    assert_close(one[0], apply(images, inputs)[1], 1e-6)


def test_empty_policy_is_the_identity(golden):
    images, inputs = images_and_inputs(golden, "16x24")
    assert parse_policy("") == ()
    np.testing.assert_array_equal(apply(images, inputs, ()), images)


def test_policies_keep_the_published_order():
    assert parse_policy("cutout,color,translation") == POLICIES == diffaugment.POLICIES
    assert parse_policy("translation") == ("translation",)


def test_unknown_operation():
    with pytest.raises(UserError, match="no operation 'colour'; did you mean 'color'"):
        parse_policy("colour,cutout")


def test_gradients_reach_every_visible_pixel(golden):
    images, inputs = images_and_inputs(golden, "32x32")
    gradient = jax.grad(lambda x: jnp.square(apply(x, inputs, ("translation", "cutout"))).sum())(images)
    # Without colour a pixel either is moved or disappears: the gradient is twice the pixel or nothing.
    visible = np.asarray(gradient) != 0
    np.testing.assert_allclose(gradient[visible], 2 * images[visible], rtol=1e-6)
    assert visible.mean(axis=(1, 2, 3)).min() > 0.3
    gradient = jax.grad(lambda x: jnp.square(apply(x, inputs)).sum())(images)
    assert np.isfinite(gradient).all() and np.abs(gradient).max(axis=(1, 2, 3)).min() > 0
