"""ADA against the official implementation, and the laws of its draws, gradients and controller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import Golden, assert_close, nhwc
from scipy.special import erfinv

from noisytwins_jax.augment import ada
from noisytwins_jax.errors import UserError


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


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("output", "text", "size", "q"), outputs())
def test_percentile(golden, output, text, size, q, impl):
    images = nhwc(golden[f"in/x{size}"])
    params = percentile_parameters(ada.parse_operations(text), q, len(images))
    assert_close(ada.transform(images, params, impl), nhwc(golden[f"out/{output}/p{q}"]), 1e-5)
