"""Resampling and modulated convolutions: reference numbers, and the two formulations against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import Golden, assert_close, nhwc

from noisytwins_jax.models import fir
from noisytwins_jax.models.bilinear_conv import (
    conv1x1,
    conv3x3,
    conv3x3_to_few,
    pixelwise_product,
    strided_conv3x3,
    transposed_conv3x3,
)
from noisytwins_jax.models.layers import Conv2d, ModulatedConv, bias_activation, minibatch_stddev

pytestmark = pytest.mark.usefixtures("fast_compilation")

IMPLS = ["conv", "shift"]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("stylegan2_nvidia_ops")


def hwio(w: np.ndarray) -> np.ndarray:
    return w.transpose(2, 3, 1, 0)


def test_resampling(golden):
    x = jnp.asarray(nhwc(golden["in/x"]))
    assert_close(fir.upsample2d(x), nhwc(golden["out/upsample2d"]), 1e-6)
    for impl in IMPLS:
        assert_close(fir.downsample2d(x, impl), nhwc(golden["out/downsample2d"]), 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_resampling_convolutions(golden, impl):
    x, w = jnp.asarray(nhwc(golden["in/x"])), jnp.asarray(hwio(golden["in/w3"]))
    up = fir.upsampling_conv3x3(x, w, impl)
    assert_close(up, nhwc(golden["out/conv_3x3_up2_flipF"]), 1e-6)
    assert_close(fir.downsampling_conv3x3(x, w, impl), nhwc(golden["out/conv_3x3_down2"]), 1e-6)
    assert_close(conv3x3(x, w), nhwc(golden["out/conv_3x3"]), 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_1x1_convolutions(golden, resample, impl):
    x, w = nhwc(golden["in/x"]), hwio(golden["in/w1"])
    layer = Conv2d(5, 1, resample=resample, use_bias=False, up_impl=impl)
    variables = {"params": {"weight": w * np.sqrt(w.shape[2])}}  # undo the equalised learning rate
    name = {None: "conv_1x1", "up": "conv_1x1_up2", "down": "conv_1x1_down2"}[resample]
    assert_close(layer.apply(variables, x), nhwc(golden[f"out/{name}"]), 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("upsample", [False, True])
def test_modulated_convolution(golden, impl, upsample):
    x, w, style = nhwc(golden["in/x"]), hwio(golden["in/w3"]), golden["in/styles"]
    size = 16 if upsample else 8
    noise = golden["in/noise"][0].transpose(1, 2, 0) if upsample else np.zeros((8, 8, 1), np.float32)
    layer = ModulatedConv(5, size, upsample=upsample, up_impl=impl)
    # An identity map as affine layer: the latent is the style itself.
    params = {
        "weight": w,
        "bias": np.zeros(5, np.float32),
        "noise_strength": np.float32(1.0),
        "affine": {"weight": np.eye(6, dtype=np.float32) * np.sqrt(6), "bias": np.zeros(6, np.float32)},
    }
    y = layer.apply({"params": params, "buffers": {"noise_const": noise}}, x, style, "const")
    expected = nhwc(golden["out/modconv_up2_noise" if upsample else "out/modconv_fused"])
    if upsample:  # the reference adds each sample its own noise: compare the one whose noise was given
        y, expected = y[:1], expected[:1]
    assert_close(y, bias_activation(expected, None, "lrelu"), 1e-5)


def test_bias_activation(golden):
    x, bias = nhwc(golden["in/x"]), golden["in/bias"]
    assert_close(bias_activation(x, bias, "linear"), nhwc(golden["out/bias_act_linear"]), 1e-6)
    assert_close(bias_activation(x, bias, "lrelu"), nhwc(golden["out/bias_act_lrelu"]), 1e-6)


def test_minibatch_stddev_groups_are_contiguous(golden):
    x = nhwc(golden["in/mb_x"])
    # The reference has strided groups and two channels: each is the standard deviation of half the features.
    order = np.arange(6).reshape(3, 2).T.ravel()
    for channel in (0, 1):
        half = x[order][..., 2 * channel : 2 * channel + 2]
        appended = minibatch_stddev(jnp.asarray(half), 3)[np.argsort(order), 0, 0, -1]
        assert_close(appended, golden["out/mbstd_g3_f2"][:, channel], 1e-6)


@pytest.mark.parametrize("function", [fir.upsampling_conv3x3, fir.downsampling_conv3x3])
def test_both_formulations_are_equal_to_second_order(function):
    """Values, gradients, and gradients of a squared input gradient (what R1 and path length take), in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, w = jnp.asarray(rng.standard_normal((2, 8, 4, 3))), jnp.asarray(rng.standard_normal((3, 3, 3, 5)))

        def evaluate(impl):
            def value(x, w):
                return jnp.sin(function(x, w, impl)).sum()

            def penalty(x, w):
                return jnp.square(jax.grad(value)(x, w)).sum()

            return function(x, w, impl), jax.grad(value, (0, 1))(x, w), jax.grad(penalty, (0, 1))(x, w)

        for a, b in zip(*map(jax.tree.leaves, map(evaluate, IMPLS)), strict=True):
            assert_close(a, b, 1e-13)


@pytest.mark.parametrize(
    "function, padding, stride", [(conv3x3, "SAME", 1), (conv3x3_to_few, "SAME", 1), (strided_conv3x3, "VALID", 2)]
)
def test_custom_derivatives_are_those_of_a_plain_convolution(function, padding, stride):
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        x, w = jnp.asarray(rng.standard_normal((2, 9, 7, 3))), jnp.asarray(rng.standard_normal((3, 3, 3, 4)))

        def plain(x, w):
            numbers = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=numbers)

        def second_order(f):
            def penalty(x, w):
                return jnp.square(jax.grad(lambda x: jnp.tanh(f(x, w)).sum())(x)).sum()

            return f(x, w), jax.grad(lambda *a: jnp.tanh(f(*a)).sum(), (0, 1))(x, w), jax.grad(penalty, (0, 1))(x, w)

        for a, b in zip(*map(jax.tree.leaves, (second_order(function), second_order(plain))), strict=True):
            assert_close(a, b, 1e-13)


def test_transposed_convolution_is_the_adjoint():
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        w = jnp.asarray(rng.standard_normal((3, 3, 3, 4)))
        y, x = jnp.asarray(rng.standard_normal((2, 9, 7, 3))), jnp.asarray(rng.standard_normal((2, 4, 3, 4)))
        left = (strided_conv3x3(y, w) * x).sum()
        right = (y * transposed_conv3x3(x, w)).sum()
        assert_close(left, right, 1e-13)


def test_downsampling_is_equal_to_second_order():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(3).standard_normal((2, 8, 4, 3)))

        def second_order(impl):
            def gradient(x):
                return jax.grad(lambda x: jnp.sin(fir.downsample2d(x, impl)).sum())(x)

            return gradient(x), jax.grad(lambda x: jnp.square(gradient(x)).sum())(x)

        for a, b in zip(second_order("conv"), second_order("shift"), strict=True):
            assert_close(a, b, 1e-13)


@pytest.mark.parametrize("form", [conv1x1, pixelwise_product])
def test_derivatives_of_a_1x1_convolution_are_those_of_a_matrix_product(form):
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        x, w = jnp.asarray(rng.standard_normal((2, 4, 3, 3))), jnp.asarray(rng.standard_normal((3, 5)))

        def second_order(f):
            def penalty(x, w):
                return jnp.square(jax.grad(lambda x: jnp.tanh(f(x, w)).sum())(x)).sum()

            return f(x, w), jax.grad(lambda *a: jnp.tanh(f(*a)).sum(), (0, 1))(x, w), jax.grad(penalty, (0, 1))(x, w)

        for a, b in zip(*map(jax.tree.leaves, (second_order(form), second_order(jnp.matmul))), strict=True):
            assert_close(a, b, 1e-13)


def test_weight_gradients_leave_in_float32():
    """Activations in bfloat16 must not make the gradient all-reduce bfloat16."""
    x, w = jnp.ones((2, 9, 9, 3), jnp.bfloat16), jnp.ones((3, 3, 3, 4))
    text = jax.jit(jax.grad(lambda w: strided_conv3x3(x, w).astype(jnp.float32).sum())).lower(w).as_text()
    gradient = [line for line in text.splitlines() if "convolution" in line][-1]
    assert gradient.rstrip().endswith("xf32>") or "-> tensor<3x3x3x4xf32>" in gradient


@pytest.mark.parametrize("form", [conv1x1, pixelwise_product])
def test_gradients_of_1x1_weights_and_biases_are_summed_in_float32(form):
    """As above, for what is summed over pixels without a 3×3 convolution."""
    x = jnp.ones((2, 4, 4, 3), jnp.bfloat16)

    def total(params):
        y = bias_activation(form(x, params["weight"]), params["bias"], "linear")
        return jnp.square(y.astype(jnp.float32)).sum()

    text = jax.jit(jax.grad(total)).lower({"weight": jnp.ones((3, 4)), "bias": jnp.ones(4)}).as_text()
    summing = ("reduce(", "dot_general", "convolution")
    results = [line.split("->")[-1].strip() for line in text.splitlines() if any(name in line for name in summing)]
    weights = {f"tensor<{shape}xf32>" for shape in ("3x4", "4x3", "1x1x3x4")}
    assert weights & set(results), results
    assert "tensor<4xf32>" in results or "tensor<1x4xf32>" in results, results  # the bias's
