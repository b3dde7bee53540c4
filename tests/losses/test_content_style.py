"""Content–Style: the distance of twins' styles, and that it does not depend on the batch size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_contexts import generator_context, jit

from noisytwins_jax.losses.content_style import ContentStyle, style_distance

DISTANCE = jit(style_distance, static_argnums=1)


def fixture() -> np.ndarray:
    """Two matrices of the specification's numbers, as twins."""
    rng = np.random.default_rng(123)
    first = rng.standard_normal((4, 3))
    return np.concatenate([first, first + 0.1 * rng.standard_normal((4, 3))])


def test_against_reference_numbers():
    with jax.enable_x64(True):
        twins = jnp.asarray(fixture())
        assert float(DISTANCE(twins, 4)) == pytest.approx(0.3884511953664965, rel=1e-12)  # ‖S − S'‖_F of these 4 pairs
        assert float(DISTANCE(twins, 16)) == pytest.approx(0.776902390732993, rel=1e-12)


def test_a_larger_batch_of_the_same_pairs_changes_nothing():
    first, second = np.split(fixture().astype(np.float32), 2)
    larger = np.concatenate([first, first, second, second])
    assert float(DISTANCE(larger, 16)) == pytest.approx(0.7769024, rel=1e-6)


def test_equal_twins_have_no_distance_and_no_gradient():
    twins = np.ones((6, 5), np.float32)
    value, gradient = jit(jax.value_and_grad(lambda s: style_distance(s, 16)))(twins)
    assert value == 0 and not gradient.any()


def test_the_objective_gathers_styles_once():
    style, gathered = fixture().astype(np.float32), []

    def replicate(x):
        gathered.append(x.shape)
        return x * 2  # something that the loss would show if it came later

    value, state = ContentStyle(weight=0.1).generator(generator_context(style=style, replicate=replicate), ())
    assert gathered == [(8, 3)] and state == () and ContentStyle.twins
    assert float(value) == pytest.approx(2 * 0.7769024, rel=1e-6)


def test_a_generator_without_a_style():
    with pytest.raises(ValueError, match="needs a generator with a style"):
        ContentStyle(weight=0.1).generator(generator_context(w=np.ones((4, 3))), ())
