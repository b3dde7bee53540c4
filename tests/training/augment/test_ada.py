"""ADA against the official implementation: its random inputs, parameters, gradients and controller."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import Golden, assert_close, nhwc
from paths import ROOT
from scipy.special import erfinv
from waiting import TIMEOUT

from noisytwins_jax.training.augment import ada, ada_geometry, ada_sampling
from noisytwins_jax.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("fast_compilation")

IMPLS = ("matmul", "gather")


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("ada_bgc")


def percentile_parameters(operations: tuple[str, ...], q: float, n: int) -> ada.AdaParameters:
    """The reference's debugging mode: every parameter at its q-th percentile (its own idea of a normal's)."""
    normal, uniform = erfinv(2 * q - 1), 2 * q - 1
    values = {
        "xflip": np.floor(2 * q),
        "rotate90": np.floor(4 * q),
        "xint": [0.125 * uniform] * 2,
        "scale": 2 ** (0.2 * normal),
        "rotate": np.pi * uniform,  # before aniso; none after it
        "aniso": 2 ** (0.2 * normal),
        "xfrac": [0.125 * normal] * 2,
        "brightness": 0.2 * normal,
        "contrast": 2 ** (0.5 * normal),
        "lumaflip": np.floor(2 * q),
        "hue": np.pi * uniform,
        "saturation": 2**normal,
        "imgfilter": [2**normal] * 4,
        "cutout": 0.5,
    }
    params = {
        {"rotate": "prerotate"}.get(name, name): jnp.broadcast_to(
            jnp.asarray(values[name], jnp.float32), (n, *np.shape(values[name]))
        )
        for name in operations
    }
    if "imgfilter" in params:
        params["imgfilter"] = ada.band_gains(params["imgfilter"])
    if "cutout" in params:
        params["cutout_centre"] = jnp.full((n, 2), q)
    return params


def outputs() -> list[tuple[str, str, int, float]]:
    cases = [(f"op_{name}_32", name, 32, q) for name in ada.GROUPS["bgc"] for q in (0.2, 0.5, 0.8)]
    cases += [(f"op_{name}_64", name, 64, 0.8) for name in ("rotate", "scale", "aniso", "xfrac")]
    cases += [(f"full_{size}", "bgc", size, q) for size in (32, 64) for q in (0.2, 0.5, 0.8)]
    cases += [(f"group_{name}_32", name, 32, 0.8) for name in ("blit", "geom", "color")]
    return cases + [(f"op_{name}_32", name, 32, 0.8) for name in ("imgfilter", "cutout")]


transform = jax.jit(ada.transform, static_argnums=2)
apply = jax.jit(ada.apply, static_argnums=(2, 4))


@pytest.mark.parametrize(("output", "text", "size", "q"), outputs())
def test_percentile(golden, output, text, size, q):
    images = nhwc(golden[f"in/x{size}"])
    params = percentile_parameters(ada.parse_operations(text), q, len(images))
    for impl in IMPLS if text == "bgc" else ("gather",):
        assert_close(transform(images, params, impl), nhwc(golden[f"out/{output}/p{q}"]), 1e-5)


def stored_inputs(golden: Golden) -> ada.AdaInputs:
    names = {"rotate90": "i", "xflip": "i", "lumaflip": "i", "xint": "t", "hue": "theta"}
    inputs = {}
    for name in [*ada.GROUPS["bgc"], "prerotate", "postrotate"]:
        if name == "rotate":
            continue
        stored = name.replace("rotate", "rot") if name in ("prerotate", "postrotate") else name
        kind = "theta" if "rotate" in name and name != "rotate90" else names.get(name, "n")
        value = golden[f"in/draws/{stored}_{kind}"]
        inputs[name] = value if name in ("xint", "xfrac") else value.reshape(-1)
        inputs[f"{name}_gate"] = golden[f"in/draws/{stored}_gate"].reshape(-1)
    return inputs


@pytest.mark.parametrize("impl", IMPLS)
def test_stored_inputs_and_their_gradient(golden, impl):
    inputs = stored_inputs(golden)
    images, p = nhwc(golden["in/x_random"]), jnp.float32(golden.config["random_p"])
    output, transpose = jax.vjp(lambda x: apply(x, inputs, ada.GROUPS["bgc"], p, impl), images)
    assert_close(output, nhwc(golden["out/random_draws"]), 1e-5)
    (gradient,) = transpose(jnp.asarray(nhwc(golden["in/grad_seed"])))
    assert_close(gradient, nhwc(golden["out/random_draws_vjp"]), 1e-5)


def some_images(n: int = 3, size: int = 8, channels: int = 3, dtype=np.float32) -> np.ndarray:
    return np.random.RandomState(0).standard_normal((n, size, size, channels)).astype(dtype)


@pytest.mark.parametrize("shape", [(3, 8, 8, 3), (2, 16, 12, 1), (2, 5, 9, 3)])
def test_forms_agree_also_far_beyond_the_mirrored_border(shape):
    """In float64, where only a different formula would show; at a fifth of the size most samples are beyond it."""
    with jax.enable_x64(True):
        images = np.random.RandomState(0).standard_normal(shape)
        params = ada.parameters(ada.sample_inputs(jax.random.key(1), shape, ada.GROUPS["bg"]), ada.GROUPS["bg"], 1.0)
        for zoom in (1.0, 0.2, 5.0):
            one, other = (transform(images, params | {"scale": params["scale"] * zoom}, impl) for impl in IMPLS)
            assert one.dtype == np.float64
            assert_close(one, other, 1e-12)


@pytest.mark.parametrize(("zoom", "fit"), [pytest.param(1.0, True, marks=pytest.mark.slow), (0.25, False)])
def test_windows_of_large_images(zoom, fit):
    """Images of 96 px and more are sampled square by square; zoomed out too far, as a whole. In float64, as above."""
    with jax.enable_x64(True):
        images, operations = np.random.RandomState(0).standard_normal((1, 96, 104, 1)), ada.GROUPS["bg"]
        params = ada.parameters(ada.sample_inputs(jax.random.key(1), images.shape, operations), operations, 1.0)
        params["scale"] = params["scale"] * zoom
        affine = ada_geometry.inverse_affine({k: jnp.asarray(v, float) for k, v in params.items()}, images.shape)
        assert bool(ada_sampling._Windows(affine, *images.shape[1:3]).fit) == fit
        cotangent = np.random.RandomState(1).standard_normal(images.shape)

        def both(impl):
            def run(x):
                output, transpose = jax.vjp(lambda x: ada.transform(x, params, impl), x)
                return output, *transpose(cotangent)

            return jax.jit(run)(images)

        for one, other in zip(both("matmul"), both("gather"), strict=True):
            assert_close(one, other, 1e-12)


def test_one_pass_of_bfloat16_is_as_good_as_bfloat16():
    """What activations in bfloat16 cost the images anyway."""
    images = some_images(2, 16)
    inputs = ada.sample_inputs(jax.random.key(1), images.shape, ada.GROUPS["bg"])
    exact, rounded = (
        jax.jit(functools.partial(ada.apply, operations=ada.GROUPS["bg"], p=1.0, precision=precision))(images, inputs)
        for precision in ("float32", "bfloat16")
    )
    assert rounded.dtype == np.float32
    error = np.sqrt(np.square(rounded - exact).mean() / np.square(exact).mean())
    assert error < 2**-8


@pytest.mark.parametrize("impl", IMPLS)
def test_r1_through_the_augmentation(impl):
    """Reverse over reverse and forward over reverse against finite differences."""
    with jax.enable_x64(True):
        images, operations = some_images(1, 6, dtype=np.float64), ("rotate", "xfrac", "contrast", "hue")
        inputs = ada.sample_inputs(jax.random.key(1), images.shape, operations)

        def logits(x):
            return jnp.tanh(apply(x, inputs, operations, 0.8, impl)).sum()

        def penalty_of(x):
            return jnp.square(jax.grad(logits)(x)).sum()

        direction = np.random.RandomState(1).standard_normal(images.shape)
        slope = (jax.jit(jax.grad(penalty_of))(images) * direction).sum()
        forward = jax.jit(lambda x: jax.jvp(penalty_of, (x,), (direction,))[1])(images)
        penalty = jax.jit(penalty_of)
        difference = (penalty(images + 1e-5 * direction) - penalty(images - 1e-5 * direction)) / 2e-5
        assert abs(slope - forward) < 1e-10 * abs(slope)
        assert abs(slope - difference) < 1e-6 * abs(slope)


@pytest.mark.parametrize("impl", IMPLS)
def test_images_are_augmented_each_by_its_own_inputs(impl):
    images = some_images(4)
    inputs = ada.sample_inputs(jax.random.key(2), images.shape, ada.OPERATIONS)
    one = apply(images[2:3], {k: v[2:3] for k, v in inputs.items()}, ada.OPERATIONS, 0.7, impl)
    assert_close(one[0], apply(images, inputs, ada.OPERATIONS, 0.7, impl)[2], 1e-5)


def test_grey_images_are_the_grey_of_colour_images():
    """What every operation but noise does to one channel is what it does to three equal ones, averaged."""
    images, operations = some_images(channels=1), ada.GROUPS["bgcf"]
    inputs = ada.sample_inputs(jax.random.key(3), images.shape, operations)
    three = apply(np.repeat(images, 3, axis=3), inputs, operations, 1.0)
    assert_close(apply(images, inputs, operations, 1.0)[..., 0], three.mean(axis=3), 1e-5)


def test_strength_zero_changes_nothing_but_by_resampling():
    images = some_images()
    inputs = ada.sample_inputs(jax.random.key(4), images.shape, ada.OPERATIONS)
    rest = tuple(name for name in ada.OPERATIONS if name not in ada.GROUPS["bg"])
    assert_close(apply(images, inputs, rest, 0.0), images, 1e-6)
    # The filter of the resampling is orthonormal; bilinear sampling on its grid is exact where nothing moves.
    assert_close(apply(images, inputs, ada.GROUPS["bg"], 0.0), images, 1e-5)
    np.testing.assert_array_equal(apply(images, inputs, (), 1.0), images)


def test_strength_is_the_share_of_images_that_an_operation_changes():
    n, p = 8192, 0.3
    operations = ada.OPERATIONS
    inputs = ada.sample_inputs(jax.random.key(5), (n, 2, 2, 1), operations)
    params = ada.parameters(inputs, operations, jnp.float32(p))
    changed = {
        name: np.asarray(params[name]) != 0 for name in ("xint", "xfrac", "brightness", "hue", "noise", "cutout")
    }
    changed |= {name: np.asarray(params[name]) != 1 for name in ("scale", "aniso", "contrast", "saturation")}
    changed = {name: share.reshape(n, -1).any(axis=1).mean() for name, share in changed.items()}
    changed |= {name: 2 * np.mean(np.asarray(params[name]) != 0) for name in ("xflip", "lumaflip")}
    changed["rotate90"] = 4 / 3 * np.mean(np.asarray(params["rotate90"]) != 0)
    turned = np.stack([np.asarray(params[name]) != 0 for name in ("prerotate", "postrotate")])
    changed["rotate"] = turned.any(axis=0).mean()  # either of two, which share a strength
    for name, share in changed.items():
        assert abs(share - p) < 5 * np.sqrt(2 * p * (1 - p) / n), name
    np.testing.assert_allclose(turned.mean(axis=1), 1 - np.sqrt(1 - p), atol=0.02)


def test_magnitudes():
    inputs = ada.sample_inputs(jax.random.key(6), (8192, 2, 2, 1), ada.OPERATIONS)
    params = ada.parameters(inputs, ada.OPERATIONS, 1.0)
    deviations = {"scale": 0.2, "aniso": 0.2, "contrast": 0.5, "saturation": 1.0}
    for name, deviation in deviations.items():
        assert abs(np.log2(params[name]).std() / deviation - 1) < 0.04, name
    for name, deviation in {"xfrac": 0.125, "brightness": 0.2}.items():
        assert abs(np.std(params[name]) / deviation - 1) < 0.04, name
    for name, limit in {"prerotate": np.pi, "postrotate": np.pi, "hue": np.pi, "xint": 0.125}.items():
        assert 0.99 * limit < np.max(np.abs(params[name])) <= limit, name
    assert np.unique(params["rotate90"]).tolist() == [0, 1, 2, 3]
    assert params["xint"].shape == params["xfrac"].shape == (8192, 2)


def test_strength_of_the_colour_operations():
    """Half as many images get them; the others stay as they were."""
    inputs = ada.sample_inputs(jax.random.key(8), (4096, 2, 2, 3), ada.GROUPS["bgc"])
    full, half = (ada.parameters(inputs, ada.GROUPS["bgc"], jnp.float32(0.8), x) for x in (1.0, 0.5))
    for name in full:
        if name in ada.GROUPS["color"]:
            identity = 1.0 if name in ("contrast", "saturation") else 0.0
            share = float((half[name] != identity).mean()) / float((full[name] != identity).mean())
            assert 0.4 < share < 0.6, name
        else:
            np.testing.assert_array_equal(full[name], half[name])


def test_random_inputs_depend_neither_on_other_operations_nor_on_each_other():
    shape = (4096, 2, 2, 1)
    everything = ada.sample_inputs(jax.random.key(7), shape, ada.OPERATIONS)
    for name, value in ada.sample_inputs(jax.random.key(7), shape, ("hue", "cutout")).items():
        np.testing.assert_array_equal(value, everything[name])
    columns = np.concatenate([np.asarray(v, np.float64).reshape(4096, -1) for v in everything.values()], axis=1)
    assert np.abs(np.corrcoef(columns.T) - np.eye(columns.shape[1])).max() < 0.09


def test_band_filters_add_up_to_the_identity():
    images = some_images(size=24)
    gains = np.ones((3, 4), np.float32)
    assert_close(transform(images, {"imgfilter": gains}), images, 1e-6)
    constant = np.ones_like(images)
    gains = np.float32([[2, 1, 1, 1], [1, 2, 2, 2], [3, 3, 3, 3]])
    expected = np.float32([4, 1, 9])[:, None, None, None] * constant  # along both axes
    assert_close(transform(constant, {"imgfilter": gains}), expected, 1e-6)


def test_parse_operations():
    assert ada.parse_operations("") == ()
    assert ada.parse_operations("bgc") == ada.OPERATIONS[:12]
    assert ada.parse_operations("bgcfnc") == ada.OPERATIONS
    assert ada.parse_operations("hue, blit,xflip") == ("xflip", "rotate90", "xint", "hue")
    with pytest.raises(UserError, match="no operation 'colour'; did you mean 'color'"):
        ada.parse_operations("bg,colour")


@pytest.mark.parametrize("run", ["a", "b", "c"])
def test_controller(run):
    golden = Golden("tables")
    config = golden.config[f"ada_{run}"]
    p = jnp.float32(config["p0"])
    trajectory = []
    for sign_sum, count in golden[f"in/ada/{run}/signs"]:
        p = ada.adapt(p, sign_sum, count, config["target"], config["ada_kimg"])
        trajectory.append(p)
    np.testing.assert_allclose(trajectory, golden[f"out/ada/{run}/p"], atol=1e-7, rtol=0)


def test_controller_without_images_or_at_its_target():
    p = jnp.float32(0.25)
    assert ada.adapt(p, jnp.float32(0), jnp.float32(0), 0.6, 500) == p
    assert ada.adapt(p, jnp.float32(32), jnp.float32(64), 0.5, 500) == p


_FOUR_DEVICES = """
import re, jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from noisytwins_jax.training.augment import ada
mesh = Mesh(np.array(jax.devices()), ("data",))
split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
x = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
inputs = ada.sample_inputs(jax.random.key(1), x.shape, ada.OPERATIONS)
for impl in ("matmul", "gather"):
    def both(x, inputs, p):
        y, transpose = jax.vjp(lambda x: ada.apply(x, inputs, ada.OPERATIONS, p, impl), x)
        return y, transpose(y)[0]
    compiled = jax.jit(both, in_shardings=(split, split, everywhere), out_shardings=split).lower(x, inputs, 0.7).compile()
    print(len(re.findall(r"(all-|collective-|reduce-scatter)[a-z-]*\\(", compiled.as_text())))
    split_inputs = jax.device_put(inputs, split)
    result = compiled(jax.device_put(x, split), split_inputs, jax.device_put(0.7, everywhere))
    print(max(float(jnp.abs(a - b).max()) for a, b in zip(result, jax.jit(both)(x, inputs, 0.7))) < 1e-4)
"""


def test_devices_do_not_communicate():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", _FOUR_DEVICES],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.stdout.split() == ["0", "True"] * 2, done.stderr
