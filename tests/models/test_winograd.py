"""Convolutions by minimal filtering are the convolutions they replace, on CPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import assert_close

from noisytwins_jax.models import winograd
from noisytwins_jax.models.bilinear_conv import (
    conv3x3,
    fast_conv3x3,
    fast_strided_conv3x3,
    fast_transposed_conv3x3,
    strided_conv3x3,
    transposed_conv3x3,
)

pytestmark = pytest.mark.usefixtures("fast_compilation")

CHANNELS = 64  # from which on filtering is chosen
FORMS = [
    (fast_conv3x3, conv3x3, (32, 8, 8)),
    (fast_strided_conv3x3, strided_conv3x3, (32, 17, 17)),
    (fast_transposed_conv3x3, transposed_conv3x3, (32, 8, 8)),
]


def arrays(*shapes, dtype):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def direct(y, w, stride):
    return jax.lax.conv_general_dilated(y, w, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("strip_bytes", [1, 1e4, 1e9])
@pytest.mark.parametrize("filtering", [winograd.STRIDE_1, winograd.STRIDE_2])
def test_convolution_and_its_transposes(monkeypatch, filtering, strip_bytes):
    """Whatever the height of the strips, for sizes that have several or one."""
    monkeypatch.setattr(winograd, "_STRIP_BYTES", strip_bytes)
    s = filtering.stride
    with jax.enable_x64(True):
        y, x, w = arrays((2, s * 11 + 3, s * 3 + 3, 3), (2, 12, 4, 5), (3, 3, 3, 5), dtype=jnp.float64)
        expected, transpose = jax.vjp(lambda y, w: direct(y, w, s), y, w)
        assert_close(winograd.convolve(filtering, y, w), expected, 1e-14)
        assert_close(winograd.weight_gradient(filtering, y, x), transpose(x)[1], 1e-14)
        if s == 1:  # the input's gradient is a convolution of the padded gradient
            padded = jnp.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)])
            assert_close(winograd.convolve_transposed(filtering, padded, w), transpose(x)[0], 1e-14)


@pytest.mark.parametrize(
    "dtype, tolerance", [(jnp.float64, 1e-13), pytest.param(jnp.float32, 1e-5, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("fast, plain, size", FORMS)
def test_equal_to_second_order(fast, plain, size, dtype, tolerance):
    """Values, gradients, and gradients of a squared input gradient, as of R1 and path length."""
    with jax.enable_x64(dtype == jnp.float64):
        y, w = arrays((*size, CHANNELS), (3, 3, CHANNELS, CHANNELS + 2), dtype=dtype)
        if plain is transposed_conv3x3:
            w = w[..., :CHANNELS]

        def second_order(f):
            def value(y, w):
                return jnp.tanh(f(y, w) / 24).sum()

            def penalty(y, w):
                return jnp.square(jax.grad(value)(y, w)).sum()

            return f(y, w), jax.grad(value, (0, 1))(y, w), jax.grad(penalty, (0, 1))(y, w)

        for a, b in zip(*map(jax.tree.leaves, (second_order(fast), second_order(plain))), strict=True):
            assert a.dtype == b.dtype
            assert_close(a, b, tolerance)


def convolutions(function, *shapes, dtype=jnp.float32):
    """How many there are in the program of a function."""
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return jax.jit(function).lower(*arguments).as_text().count("stablehlo.convolution")


def test_chosen_where_it_is_faster():
    def gradients(y, w):
        return jax.grad(lambda y, w: jnp.square(fast_conv3x3(y, w)).astype(jnp.float32).sum(), (0, 1))(y, w)

    w = (3, 3, CHANNELS, CHANNELS)
    assert convolutions(gradients, (32, 8, 8, CHANNELS), w) == 0
    assert convolutions(gradients, (32, 8, 8, CHANNELS - 1), (3, 3, CHANNELS - 1, CHANNELS)) == 3  # few channels
    assert convolutions(gradients, (31, 8, 8, CHANNELS), w) == 3  # few pixels
    assert convolutions(gradients, (64, 7, 7, CHANNELS), w) == 3  # no tiles of 2×2
    assert convolutions(gradients, (32, 8, 8, CHANNELS), w, dtype=jnp.bfloat16) == 3  # sums of inputs would be rounded


def test_vmap_is_a_larger_batch():
    """Samplers map over images: kernels are transformed once for all of them."""
    y, w = arrays((2, 1, 32, 32, CHANNELS), (3, 3, CHANNELS, CHANNELS), dtype=jnp.float32)
    mapped = jax.vmap(fast_conv3x3, (0, None))
    assert convolutions(mapped, y.shape, w.shape) == 0
    np.testing.assert_array_equal(jax.jit(mapped)(y, w)[:, 0], jax.jit(fast_conv3x3)(y[:, 0], w))
    own = jnp.stack([w, 2 * w])
    assert_close(jax.vmap(fast_conv3x3)(y, own), mapped(y, w) * jnp.arange(1, 3)[:, None, None, None, None], 1e-5)
