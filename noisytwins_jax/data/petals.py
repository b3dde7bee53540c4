"""Petals: rendered flowers in any number of classes, every image with its true factors of variation.

A class is a species: the number, shape and colours of the petals and of the centre. Within a class seven factors vary,
independently of each other and identically in every class, so that both the class consistency and the diversity of
generated images have a ground truth. An image is a pure function of (class, index, resolution, seed); no download.

Images are drawn in the plane [-1, 1] x [-1, 1], x to the right and y down, as layers from back to front: background,
stem, rings of petals, centre. The outline of a ring is the zero set of a function that is positive inside; the function
divided by the norm of its gradient is, to first order, the distance to the outline, and so gives the covered fraction of
a pixel (G. Taubin, "Distance approximations for rasterizing implicit curves", ACM Trans. on Graphics 13(1), 1994).
"""

import colorsys
import functools
import math
from typing import NamedTuple

import numpy as np

from noisytwins_jax.data.source import check_resolution
from noisytwins_jax.utils.errors import UserError

FACTORS: tuple[str, ...] = ("x", "y", "size", "turn", "tilt", "hue", "background")
PATTERNS: tuple[str, ...] = ("plain", "stripes", "ring", "spots", "edge", "throat")
TEXTURE_SHAPE = (6, 6)

_SPECIES, _IMAGE = 1, 2  # purposes of random streams
_SMALLEST_RENDERED = 64  # pixels; petals are too thin for coarser grids

# Ranges of the factors in the image.
_PLACE = (-0.22, 0.22)  # centre
_SIZE = (0.54, 0.92)  # length of the longest petal
_TURN = (-1.1, 1.1)  # radians from the longest petal to straight down
_ASPECT = (1.0, 0.5)  # height over width of the ring of petals
_HUE = (-0.04, 0.04)  # relative to the hue of the species
_GROUND = np.array([[0.15, 0.10, 0.07], [0.34, 0.44, 0.22], [0.75, 0.83, 0.90]])  # soil, leaves, sky
# Hues of petals at equal steps: from blue over violet, pink, red and orange to yellow. There is no green, the colour of
# leaves, and red to yellow have a larger range than in HSV.
_PETAL_HUES = (0.56, 0.68, 0.86, 0.98, 1.06, 1.17)
_STEM = (0.33, 0.50, 0.20)
_SHORTEST = 0.68  # length of the petals opposite the longest one over its length
_RING = 0.68  # length of a ring of petals over that of the ring below

# Step of each species parameter on the unit circle from one class to the next: the fractional parts of the golden ratio
# and of square roots of primes. Multiples of irrational numbers fill the unit interval evenly from the start (Kronecker
# sequence), so a few classes are far apart and no two of many coincide. A random search over the primes below 300 chose
# these: the nearest two of 1010 classes are far apart, and the parameters of the first twelve hardly correlated.
_PRIMES = (131, 137, 53, 107, 73, 151, 139, 163, 13, 283, 17, 241, 97)
_STEPS = np.sqrt([(3 + math.sqrt(5)) / 2, *_PRIMES]) % 1


class Species(NamedTuple):
    """The parameters shared by all flowers of a class. Lengths are relative to the longest petal, hues in [0, 1).

    Attributes:
      petals: petals per ring, 3 to 13.
      rings: rings of petals, each shorter than the one below and turned by half a petal; 1 to 3.
      width: largest half width of a petal over its length, about 0.08 to 0.5.
      widest: position of that width along the petal, 0.4 (ovals) to 0.75 (wedges), less for pointed petals.
      point: shape of the tip: 0.3 blunt, 0.5 round, 1 pointed.
      notch: depth of the notch in the tip, 0 to 0.3; half of the species have none.
      hue: hue of the petals at factor hue = 0.5, from blue over red to yellow.
      saturation: saturation of the petals, 0.4 to 0.95.
      value: brightness of the petals, 0.72 to 1.
      centre: radius of the centre, 0.12 to 0.34.
      centre_hue: hue of the centre, from red-brown to green.
      centre_value: brightness of the centre, 0.3 to 1.
      pattern: marking of the petals, one of `PATTERNS`.
      accent: hue of the marking, far from `hue`.
    """

    petals: int
    rings: int
    width: float
    widest: float
    point: float
    notch: float
    hue: float
    saturation: float
    value: float
    centre: float
    centre_hue: float
    centre_value: float
    pattern: str
    accent: float


@functools.lru_cache(maxsize=4096)
def species(label: int, seed: int = 0) -> Species:
    """Return the species of a class; it is independent of the number of classes.

    Args:
      label: class id, from 0.
      seed: seed of the data set.

    Raises:
      UserError: an argument is negative.
    """
    _check_not_negative(label=label, seed=seed)
    start = np.random.Generator(np.random.PCG64([_SPECIES, seed])).random(len(_STEPS))
    u = ((start + label * _STEPS) % 1).tolist()
    petals = 3 + int(11 * u[1])
    spacing = 0.62 * math.tan(math.pi / petals)  # half the distance of neighbouring petals at 0.62 of their length
    point = _mix(0.3, 1.0, u[5])
    return Species(
        petals=petals,
        rings=1 + int(3 * u[4]),
        width=_mix(min(0.24, 0.6 * spacing), min(0.5, 1.3 * spacing), u[2]),
        widest=min(_mix(0.4, 0.75, u[3]), 1.2 / (1.2 + point)),  # otherwise petals are too thin at their base
        point=point,
        notch=max(0.0, _mix(-0.3, 0.3, u[6])),
        hue=_petal_hue(u[0]),
        saturation=_mix(0.4, 0.95, u[7]),
        value=_mix(0.72, 1.0, u[8]),
        centre=_mix(0.12, 0.34, u[9]),
        centre_hue=_mix(0.03, 0.22, u[10]),
        centre_value=_mix(0.3, 1.0, u[11]),
        pattern=PATTERNS[int(len(PATTERNS) * u[12])],
        accent=_petal_hue((u[0] + _mix(0.3, 0.7, u[13])) % 1),
    )


def draw(label: int, index: int, resolution: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image of a class: the same arguments always give the same image and factors.

    Images of one class, index and seed at two resolutions show the same flower with the same factors. The factors are
    identical on all machines; pixels may differ by one grey level where processors round differently.

    Args:
      label: class id, from 0.
      index: index of the image in its class, from 0; images are independent of each other.
      resolution: pixels, a power of two of at least 8.
      seed: seed of the data set.

    Returns:
      The image, uint8 ``[resolution, resolution, 3]``, and its factors, float32 ``[7]`` in [0, 1), as in `FACTORS`.

    Raises:
      UserError: an argument is out of range.
    """
    _check_not_negative(label=label, index=index, seed=seed)
    rng = np.random.Generator(np.random.PCG64([_IMAGE, seed, label, index]))
    factors = rng.random(len(FACTORS), dtype=np.float32)
    return render(species(label, seed), factors, resolution, rng.standard_normal(TEXTURE_SHAPE)), factors


def render(flower: Species, factors: np.ndarray, resolution: int, texture: np.ndarray) -> np.ndarray:
    """Render a species with given factors.

    Mirroring an image left to right gives an image of the same species with the factors 1 - x and 1 - turn, so mirrored
    training images have the same distribution.

    Args:
      flower: the species.
      factors: ``[7]`` in [0, 1], in the order of `FACTORS`:

        * x, y: position of the centre, from left to right and from top to bottom;
        * size: length of the longest petal;
        * turn: direction of the longest petal, within 63 degrees of straight down; the petals become shorter towards
          the opposite side, so a rotation by one petal changes the image;
        * tilt: from a flower seen from above to one half as high as wide;
        * hue: hue of the petals, relative to that of the species;
        * background: from dark soil over leaves to light sky.

      resolution: pixels, a power of two of at least 8.
      texture: ``TEXTURE_SHAPE``, about standard normal: weights of waves over the height and the width of the
        background. A nuisance variable, not a factor; it does not change the background's mean colour.

    Returns:
      uint8 ``[resolution, resolution, 3]``.

    Raises:
      UserError: the resolution is not a power of two of at least 8.
    """
    check_resolution(resolution)
    rendered = max(resolution, _SMALLEST_RENDERED)
    image = _render(flower, [float(f) for f in factors], rendered, texture)
    if rendered != resolution:
        k = rendered // resolution
        image = image.reshape(3, resolution, k, resolution, k).mean((2, 4))
    image = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 2, 0))


def _render(flower: Species, factors: list[float], resolution: int, texture: np.ndarray) -> np.ndarray:
    """Render without rounding: float32 ``[3, resolution, resolution]``, nearly all in [0, 1]."""
    x, y, size, turn, tilt, hue, background = factors
    across, waves = _grid(resolution)
    x, y, size, aspect = _mix(*_PLACE, x), _mix(*_PLACE, y), _mix(*_SIZE, size), _mix(*_ASPECT, tilt)

    # The plane of the flower: the longest petal ends at radius 1 and angle 0.
    p = (across - x) / size
    q = (across[:, None] - y) / (size * aspect)
    radius = np.sqrt(p * p + q * q)
    up = -q / (radius + 0.1)  # cosine of the angle to the upward direction, smoothed at the centre
    angle = np.arctan2(p, q) - _mix(*_TURN, turn)
    near = 0.5 + 0.5 * np.cos(angle)  # 1 at the longest petal, 0 opposite
    radius /= _SHORTEST + (1 - _SHORTEST) * near
    angle *= np.float32(flower.petals / (2 * math.pi))  # in petals

    image = _ground(background, texture, waves)
    image *= 1 - 0.4 * np.exp(-2.2 * (p * p + (q - 0.12) ** 2))  # shadow of the flower
    _draw_stem(image, across, x, y)

    petal_colour = _rgb(flower.hue + _mix(*_HUE, hue), flower.saturation, flower.value)
    for ring in range(flower.rings):
        _draw_ring(image, flower, ring, radius, angle, up, petal_colour)
    _draw_centre(image, flower, p, (across[:, None] - y) / size, aspect, angle)
    return image


def _draw_ring(
    image: np.ndarray,
    flower: Species,
    ring: int,
    radius: np.ndarray,
    angle: np.ndarray,
    up: np.ndarray,
    petal_colour: np.ndarray,
) -> None:
    """Draw one ring of petals, 0 is the outer one; ``angle`` is in petals, ``up`` is 1 above and -1 below."""
    length = _RING**ring
    above = _RING * length if ring + 1 < flower.rings else flower.centre  # radius of the layer on top of this ring
    angle = angle + 0.5 * (ring % 2)
    bend = (angle - np.round(angle)) * np.float32(2 * math.pi / flower.petals)  # to the axis of the nearest petal
    side = radius * np.sin(bend) * np.float32(1 / (flower.width * length))  # 1 is the largest half width
    side2 = side * side
    t = radius * np.cos(bend) * np.float32(1 / length)  # 0 at the centre, 1 at the tip
    if flower.notch:
        t = t * (1 + flower.notch * np.exp(-6 * side2))

    # Squared half width at t: t**a * (1 - t)**b, 1 at the widest point, negative beyond the tip.
    b = 2 * flower.point
    a = b * flower.widest / (1 - flower.widest)
    scale = a * math.log(flower.widest) + b * math.log(1 - flower.widest)
    rest = 1 - t
    width2 = np.exp(a * np.log(np.maximum(t, 1e-6)) + b * np.log(np.maximum(np.abs(rest), 1e-6)) - scale)
    inside = np.copysign(width2, rest) - side2
    mask = _cover(inside)

    edge = np.minimum(side2 / (width2 + 1e-6), 1)  # 0 on the axis, 1 at the edge
    light = (1.08 - 0.30 * edge) * (0.72 + 0.34 * np.minimum(t, 1)) * (1 + 0.10 * up)
    light -= 0.10 * np.exp(-60 * side2)  # the middle vein
    light *= 1 - 0.35 * np.exp(-((np.maximum(radius - above, 0) / 0.11) ** 2))
    light *= mask
    image *= 1 - mask
    accent_colour = _rgb(flower.accent, 0.8, 0.62 if flower.value > 0.86 else 0.95)
    marking = _marking(flower.pattern, t, side, edge)
    if marking is None:
        image += petal_colour * light
    else:
        marked = marking * light
        image += petal_colour * (light - marked)
        image += accent_colour * marked


def _marking(pattern: str, t: np.ndarray, side: np.ndarray, edge: np.ndarray) -> np.ndarray | None:
    """Compute the share of the accent colour at each point of a petal, in [0, 1]; None for no marking."""
    if pattern == "stripes":
        return _smooth(0.2, 0.8, np.cos(side * np.float32(2.6 * math.pi))) * _smooth(0.95, 0.6, t)
    if pattern == "ring":
        return np.exp(-(((t - 0.58) * np.float32(1 / 0.11)) ** 4))
    if pattern == "spots":
        return _smooth(0.15, 0.5, np.sin(t * np.float32(7 * math.pi)) * np.cos(side * np.float32(2 * math.pi)))
    if pattern == "edge":
        return _smooth(0.35, 0.8, edge) * _smooth(0.3, 0.55, t)
    if pattern == "throat":
        return _smooth(0.62, 0.38, t)
    return None


def _draw_centre(
    image: np.ndarray, flower: Species, p: np.ndarray, q: np.ndarray, aspect: float, angle: np.ndarray
) -> None:
    """Draw the centre, a dome with florets: it is foreshortened less than the petals and rises above them."""
    q = (q + 0.4 * flower.centre * (1 - aspect)) / (0.5 + 0.5 * aspect)
    d2 = (p * p + q * q) * np.float32(1 / flower.centre**2)
    mask = _cover(1 - d2)
    d2 = np.minimum(d2, 1)
    florets = np.cos(np.sqrt(d2) * np.float32(6 * math.pi)) * np.cos(angle * np.float32(4 * math.pi)) * d2
    light = 1.1 - 0.5 * d2 - 0.35 * q * np.float32(1 / flower.centre) * mask + 0.16 * florets
    colour = _rgb(flower.centre_hue, 0.85, flower.centre_value)
    image *= 1 - mask
    image += colour * (light * mask)


def _draw_stem(image: np.ndarray, across: np.ndarray, x: float, y: float) -> None:
    """Draw the stem from the centre down to the lower edge, which it meets halfway to the middle."""
    down = np.maximum((across - y) / (1 - y), 0)[:, None]
    half = np.float32(0.035)
    distance = (across - x * (1 - 0.5 * down * down)) / half
    pixel = (across[1] - across[0]) / half
    mask = np.clip((1 - np.abs(distance)) / pixel + 0.5, 0, 1) * (across[:, None] > y)
    image *= 1 - mask
    image += np.float32(_STEM)[:, None, None] * (mask * (1 - 0.35 * np.minimum(distance * distance, 1)))


def _ground(background: float, texture: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """Compute the background, float32 ``[3, resolution, resolution]``."""
    position = background * (len(_GROUND) - 1)
    i = min(int(position), len(_GROUND) - 2)
    colour = _GROUND[i] + (_GROUND[i + 1] - _GROUND[i]) * (position - i)
    weights = np.asarray(texture, np.float32) * _texture_scale()
    return np.float32(colour)[:, None, None] * (1 + waves.T @ weights @ waves)


@functools.lru_cache(maxsize=8)
def _grid(resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute pixel centres along an axis, float32 ``[resolution]``, and waves there, ``[waves, resolution]``."""
    across = (2 * np.arange(resolution, dtype=np.float32) + 1) / resolution - 1
    waves = np.cos(np.pi / 2 * np.arange(TEXTURE_SHAPE[0], dtype=np.float32)[:, None] * (across + 1))
    for array in (across, waves):
        array.flags.writeable = False
    return across, waves


@functools.lru_cache(maxsize=1)
def _texture_scale() -> np.ndarray:
    """Compute the amplitudes of the waves: high frequencies are weaker, and the constant is left out."""
    height, width = np.indices(TEXTURE_SHAPE)
    scale = np.float32(0.10) / np.maximum(np.hypot(height, width), 1)
    scale[0, 0] = 0
    return scale.astype(np.float32)


def _cover(inside: np.ndarray) -> np.ndarray:
    """Compute the covered fraction of each pixel, in [0, 1], from a function that is positive inside the outline."""
    slope = np.empty_like(inside)
    # The difference of both neighbours is twice the slope per pixel; the border copies the next row or column.
    down, right = inside[2:, 1:-1] - inside[:-2, 1:-1], inside[1:-1, 2:] - inside[1:-1, :-2]
    slope[1:-1, 1:-1] = np.sqrt(down * down + right * right)
    slope[0], slope[-1] = slope[1], slope[-2]
    slope[:, 0], slope[:, -1] = slope[:, 1], slope[:, -2]
    return np.clip(2 * inside / (slope + 1e-6) + 0.5, 0, 1)


def _smooth(low: float, high: float, values: np.ndarray) -> np.ndarray:
    """Interpolate smoothly from 0 at ``low`` to 1 at ``high``, which may be below ``low``."""
    s = np.clip((values - low) * np.float32(1 / (high - low)), 0, 1)
    return s * s * (3 - 2 * s)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Convert a colour to RGB, float32 ``[3, 1, 1]``."""
    return np.float32(colorsys.hsv_to_rgb(hue % 1, saturation, value))[:, None, None]


def _mix(first: float, second: float, share: float) -> float:
    """Interpolate linearly from the first value to the second."""
    return first + (second - first) * share


def _petal_hue(share: float) -> float:
    """Return a hue of petals in [0, 1), from blue to yellow."""
    position = share * (len(_PETAL_HUES) - 1)
    i = min(int(position), len(_PETAL_HUES) - 2)
    return _mix(_PETAL_HUES[i], _PETAL_HUES[i + 1], position - i) % 1


def _check_not_negative(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 0:
            raise UserError(f"The {name} of a drawn flower must not be negative, but it is {number}.")
