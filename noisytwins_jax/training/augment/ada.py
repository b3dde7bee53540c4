"""Adaptive discriminator augmentation (Karras et al., "Training Generative Adversarial Networks with Limited Data",
NeurIPS 2020): the pipeline of its appendix B and the controller of section 3.1.

Three steps, each a pure function: `sample_inputs` (random numbers, independent of the strength p), `parameters` (what each
operation does to each image at strength p; the identity where it is not applied) and `transform`. `apply` is the last
two. Shapes are static, every augmented image depends on its own random inputs only, and `transform` may be differentiated
any number of times with respect to the images.
"""

import math

import jax
import jax.numpy as jnp

from noisytwins_jax.training.augment import ada_geometry, ada_pixels
from noisytwins_jax.training.augment.ada_sampling import Precision, WarpImpl
from noisytwins_jax.utils.errors import UserError, did_you_mean

Array = jax.Array
AdaInputs = dict[str, Array]
AdaParameters = dict[str, Array]

_BLIT = ("xflip", "rotate90", "xint")
_GEOMETRY = ("scale", "rotate", "aniso", "xfrac")
_COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")
OPERATIONS = (*_BLIT, *_GEOMETRY, *_COLOR, "imgfilter", "noise", "cutout")
GROUPS = {
    "blit": _BLIT,
    "geom": _GEOMETRY,
    "color": _COLOR,
    "filter": ("imgfilter",),
    "noise": ("noise",),
    "cutout": ("cutout",),
    "bg": OPERATIONS[:7],
    "bgc": OPERATIONS[:12],
    "bgcf": OPERATIONS[:13],
    "bgcfn": OPERATIONS[:14],
    "bgcfnc": OPERATIONS,
}

# Magnitudes of appendix B, the same in all published configurations. Shifts are fractions of the image's size.
_XINT_MAX, _XFRAC_STD = 0.125, 0.125
_SCALE_STD, _ANISO_STD = 0.2, 0.2  # of log2 of the factor
_BRIGHTNESS_STD, _CONTRAST_STD, _SATURATION_STD = 0.2, 0.5, 1.0  # the last two of log2 of the factor
_IMGFILTER_STD = 1.0  # of log2 of a band's gain
_IMGFILTER_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)  # expected power of a natural image's bands
_NOISE_STD = 0.1
_CUTOUT_SIZE = 0.5


def parse_operations(text: str) -> tuple[str, ...]:
    """Parse groups and operations, as ``"bgc"``, ``"blit,rotate"`` or ``"xflip,hue"``; ``""`` for none.

    Returns:
      The operations in the published order, each once.

    Raises:
      UserError: unknown name.
    """
    valid = GROUPS | {name: (name,) for name in OPERATIONS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in valid:
            raise UserError(
                f"ADA has no operation {name!r}; {did_you_mean(name, valid)} (Groups: {', '.join(GROUPS)}. "
                f"Operations: {', '.join(OPERATIONS)}.)"
            )
    chosen = {operation for name in names for operation in valid[name]}
    return tuple(operation for operation in OPERATIONS if operation in chosen)


def sample_inputs(key: Array, shape: tuple[int, int, int, int], operations: tuple[str, ...]) -> AdaInputs:
    """Sample random inputs for images of `shape` ``(N, H, W, C)``; those of an operation do not depend on the others.

    Returns:
      For every operation ``<name>_gate`` in U[0, 1) and ``<name>``, float32, all with leading axis N: uniform numbers
      in [0, 1) for xflip, rotate90, xint ``[N, 2]``, rotate, hue, lumaflip and the centre of cutout ``[N, 2]``; unit
      normals for scale, aniso, xfrac ``[N, 2]``, brightness, contrast, saturation, imgfilter ``[N, 4]`` (its gate too)
      and noise, with ``noise_field`` ``[N, H, W, C]``. ``rotate`` is two operations, ``prerotate`` and
      ``postrotate``. Axes of length 2 are (x, y).
    """
    n = shape[0]
    normal = {"scale", "aniso", "xfrac", "brightness", "contrast", "saturation", "imgfilter", "noise"}
    width = {"xint": (2,), "xfrac": (2,), "cutout": (2,), "imgfilter": (4,)}
    inputs = {}
    for index, operation in enumerate(OPERATIONS):
        if operation not in operations:
            continue
        names = ("prerotate", "postrotate") if operation == "rotate" else (operation,)
        keys = iter(jax.random.split(jax.random.fold_in(key, index), 4))
        for name in names:
            sample = jax.random.normal if operation in normal else jax.random.uniform
            inputs[name] = sample(next(keys), (n, *width.get(operation, ())))
            inputs[f"{name}_gate"] = jax.random.uniform(next(keys), (n, 4) if operation == "imgfilter" else (n,))
        if operation == "noise":
            inputs["noise_field"] = jax.random.normal(next(keys), shape)
    return inputs


def parameters(inputs: AdaInputs, operations: tuple[str, ...], p: Array, color_strength: float = 1.0) -> AdaParameters:
    """Compute what each operation does to each image, at strength p in [0, 1]; of colour operations times `color_strength`.

    Returns:
      ``[N]`` unless stated otherwise; the identity unless the gate is below the strength. xflip: 0 or 1. rotate90: 0 to 3 quarter
      turns. xint, xfrac ``[N, 2]``: shift as a fraction of width and height (xint is rounded to pixels when applied).
      scale, aniso, contrast, saturation: factors. prerotate, postrotate, hue: radians. brightness: an offset.
      lumaflip: 0 or 1. imgfilter ``[N, 4]``: gains of the bands. noise: the standard deviation, and the field.
      cutout: the side of the hole as a fraction of the image's, and its centre ``[N, 2]``.
    """
    p = jnp.asarray(p)
    # Two rotations share one strength: at least one of them is applied with probability p.
    strength = {name: 1.0 - jnp.sqrt(1.0 - jnp.clip(p, 0.0, 1.0)) for name in ("prerotate", "postrotate")}
    strength |= {name: color_strength * p for name in _COLOR if color_strength != 1.0}

    def gated(name: str, value: Array, identity: float) -> Array:
        gate = inputs[f"{name}_gate"] < strength.get(name, p)
        return jnp.where(gate.reshape(gate.shape + (1,) * (value.ndim - gate.ndim)), value, identity)

    def angle(u: Array) -> Array:
        return (2.0 * u - 1.0) * math.pi

    values = {
        "xflip": lambda u: (jnp.floor(2.0 * u), 0.0),
        "rotate90": lambda u: (jnp.floor(4.0 * u), 0.0),
        "xint": lambda u: ((2.0 * u - 1.0) * _XINT_MAX, 0.0),
        "scale": lambda n: (jnp.exp2(_SCALE_STD * n), 1.0),
        "prerotate": lambda u: (angle(u), 0.0),
        "aniso": lambda n: (jnp.exp2(_ANISO_STD * n), 1.0),
        "postrotate": lambda u: (angle(u), 0.0),
        "xfrac": lambda n: (_XFRAC_STD * n, 0.0),
        "brightness": lambda n: (_BRIGHTNESS_STD * n, 0.0),
        "contrast": lambda n: (jnp.exp2(_CONTRAST_STD * n), 1.0),
        "lumaflip": lambda u: (jnp.floor(2.0 * u), 0.0),
        "hue": lambda u: (angle(u), 0.0),
        "saturation": lambda n: (jnp.exp2(_SATURATION_STD * n), 1.0),
        "imgfilter": lambda n: (jnp.exp2(_IMGFILTER_STD * n), 1.0),
        "noise": lambda n: (jnp.abs(n) * _NOISE_STD, 0.0),
    }
    result = {}
    for operation in operations:
        for name in ("prerotate", "postrotate") if operation == "rotate" else (operation,):
            if name == "cutout":
                size = jnp.full_like(inputs["cutout_gate"], _CUTOUT_SIZE)
                result |= {"cutout": gated("cutout", size, 0.0), "cutout_centre": inputs["cutout"]}
                continue
            result[name] = gated(name, *values[name](inputs[name]))
            if name == "imgfilter":
                result[name] = band_gains(result[name])
            elif name == "noise":
                result["noise_field"] = inputs["noise_field"]
    return result


def band_gains(factors: Array) -> Array:
    """Compute gains of imgfilter's bands ``[N, 4]`` from a factor for each band ``[N, 4]``.

    The bands are amplified one after the other, each time preserving the expected total power.
    """
    gains = jnp.ones_like(factors)
    for band in range(4):
        others = sum(power for i, power in enumerate(_IMGFILTER_POWER) if i != band)
        factor = factors[:, band]
        norm = jax.lax.rsqrt(others + _IMGFILTER_POWER[band] * factor**2)
        gains = gains * norm[:, None]
        gains = gains.at[:, band].multiply(factor)
    return gains


def apply(
    images: Array,
    inputs: AdaInputs,
    operations: tuple[str, ...],
    p: Array,
    impl: WarpImpl = "matmul",
    precision: Precision = "float32",
    color_strength: float = 1.0,
) -> Array:
    """Augment images ``[N, H, W, C]`` (1 or 3 channels, nominally in [-1, 1], any float dtype).

    Args:
      inputs: random inputs of each image.
      operations: those to apply, with the probability of `p`.
      p: strength in [0, 1], a scalar.
      impl, precision: form of the geometric operations, see `ada_sampling`.
      color_strength: factor on p for the colour operations.

    Returns:
      Images of the same shape and dtype; not clipped.
    """
    return transform(images, parameters(inputs, operations, p, color_strength), impl, precision)


def transform(
    images: Array, params: AdaParameters, impl: WarpImpl = "matmul", precision: Precision = "float32"
) -> Array:
    """Apply the operations that `params` has, in the published order."""
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    params = {name: jnp.asarray(value).astype(dtype) for name, value in params.items()}
    x = ada_geometry.transform(images.astype(dtype), params, impl, precision)
    x = ada_pixels.transform(x, params)
    return x.astype(images.dtype)


def adapt(p: Array, sign_sum: Array, count: Array, target: float, kimg: float) -> Array:
    """Adjust p (the controller): move it by the fraction of `kimg` thousand images that passed, towards the target.

    Args:
      p: strength, a scalar in [0, 1].
      sign_sum: sum of ``sign(D(real))`` over the real images since the last call.
      count: number of these images; p stays the same if it is 0.
      target: of the mean sign, a measure of overfitting; 0.6 in the papers.
      kimg: thousands of images in which p can go from 0 to 1.

    Returns:
      The new p, clipped to [0, 1].
    """
    count = jnp.asarray(count, p.dtype)
    direction = jnp.sign(sign_sum / jnp.maximum(count, 1.0) - target)
    return jnp.where(count > 0, jnp.clip(p + direction * count / (kimg * 1000.0), 0.0, 1.0), p)
