"""ADA's geometric operations: one affine map per image (appendix B of the paper), applied by `ada_sampling`."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from noisytwins_jax.training.augment.ada_sampling import Affine, Precision, WarpImpl, warp

Array = jax.Array

_NAMES = ("xflip", "rotate90", "xint", "scale", "prerotate", "aniso", "postrotate", "xfrac")


def transform(x: Array, params: Mapping[str, Array], impl: WarpImpl, precision: Precision) -> Array:
    """Apply the geometric operations that `params` has to images ``[N, H, W, C]``."""
    if not any(name in params for name in _NAMES):
        return x
    return warp(x, inverse_affine(params, x.shape), impl, precision)


def inverse_affine(params: Mapping[str, Array], shape: tuple[int, ...]) -> Affine:
    """Compute the map from output to input pixels of images of `shape` ``(N, H, W, C)``, about the image's centre.

    Returns:
      ``(a, b, c, d, e, f)``, each ``[N]``: ``x' = a x + b y + c``, ``y' = d x + e y + f``.
    """
    n, height, width, _ = shape
    dtype = next(iter(params.values())).dtype
    one, zero = jnp.ones(n, dtype), jnp.zeros(n, dtype)
    matrix = (one, zero, zero, zero, one, zero)
    # The first operation acts first on the image, so that its inverse acts last on positions: it stands on the left.
    if "xflip" in params:
        matrix = _scaled(matrix, 1.0 - 2.0 * params["xflip"], one)
    if "rotate90" in params:
        matrix = _rotated(matrix, 0.5 * math.pi * params["rotate90"])
    if "xint" in params:
        shift = jnp.round(params["xint"] * jnp.array([width, height], dtype))
        matrix = _shifted(matrix, -shift[:, 0], -shift[:, 1])
    if "scale" in params:
        matrix = _scaled(matrix, 1.0 / params["scale"], 1.0 / params["scale"])
    if "prerotate" in params:
        matrix = _rotated(matrix, params["prerotate"])
    if "aniso" in params:
        matrix = _scaled(matrix, 1.0 / params["aniso"], params["aniso"])
    if "postrotate" in params:
        matrix = _rotated(matrix, params["postrotate"])
    if "xfrac" in params:
        matrix = _shifted(matrix, -params["xfrac"][:, 0] * width, -params["xfrac"][:, 1] * height)
    return matrix


def _scaled(m: Affine, x: Array, y: Array) -> Affine:
    a, b, c, d, e, f = m
    return a * x, b * y, c, d * x, e * y, f


def _rotated(m: Affine, angle: Array) -> Affine:
    a, b, c, d, e, f = m
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return a * cosine + b * sine, b * cosine - a * sine, c, d * cosine + e * sine, e * cosine - d * sine, f


def _shifted(m: Affine, x: Array, y: Array) -> Affine:
    a, b, c, d, e, f = m
    return a, b, a * x + b * y + c, d, e, d * x + e * y + f
