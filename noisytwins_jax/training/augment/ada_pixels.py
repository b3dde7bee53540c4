"""ADA's operations on pixel values: colour, band filter, noise and cutout (appendix B of the paper)."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# Low-pass filter of the wavelet "sym2" (Daubechies, Ten Lectures on Wavelets, 1992).
_SYM2 = np.array([1 - math.sqrt(3), 3 - math.sqrt(3), 3 + math.sqrt(3), 1 + math.sqrt(3)]) / (4 * math.sqrt(2))
_COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")


def transform(x: Array, params: Mapping[str, Array]) -> Array:
    """Apply the operations on pixel values that `params` has to images ``[N, H, W, C]``."""
    if any(name in params for name in _COLOR):
        x = apply_color(x, color_matrix(params, x.shape[0], x.dtype))
    if "imgfilter" in params:
        x = _filter_bands(x, params["imgfilter"])
    if "noise" in params:
        x = x + params["noise"][:, None, None, None] * params["noise_field"]
    if "cutout" in params:
        x = _cut_out(x, params["cutout"], params["cutout_centre"])
    return x


def color_matrix(params: Mapping[str, Array], n: int, dtype: jnp.dtype) -> Array:
    """Compute the product of the colour operations, ``[N, 3, 4]``: new colour = matrix · (r, g, b, 1).

    Lightness is the component along the grey axis (1, 1, 1)/√3; lumaflip mirrors it, hue rotates around that axis and
    saturation scales the components perpendicular to it.
    """
    c = jnp.broadcast_to(jnp.eye(3, 4, dtype=dtype), (n, 3, 4))

    def get(name: str) -> Array:
        return params[name][:, None, None]

    def grey(c: Array) -> Array:
        return c.mean(axis=1, keepdims=True)

    if "brightness" in params:
        c = c.at[:, :, 3].add(params["brightness"][:, None])
    if "contrast" in params:
        c = c * get("contrast")
    if "lumaflip" in params:
        c = c - 2.0 * get("lumaflip") * grey(c)
    if "hue" in params:
        cosine, sine = jnp.cos(get("hue")), jnp.sin(get("hue"))
        across = (jnp.roll(c, 1, axis=1) - jnp.roll(c, -1, axis=1)) / math.sqrt(3.0)  # grey axis × c
        c = grey(c) + cosine * (c - grey(c)) + sine * across  # Rodrigues
    if "saturation" in params:
        c = grey(c) + get("saturation") * (c - grey(c))
    return c


def apply_color(x: Array, matrix: Array) -> Array:
    """Apply ``[N, 3, 4]`` to images ``[N, H, W, 3]``, or its action on greys to images ``[N, H, W, 1]``."""
    if x.shape[3] == 1:
        matrix = matrix.mean(axis=1, keepdims=True)
        matrix = jnp.stack([matrix[..., :3].sum(axis=2), matrix[..., 3]], axis=2)
    # Few and small products: as elementwise operations they have full precision on every device.
    rows = matrix[:, None, None]
    return (rows[..., :-1] * x[..., None, :]).sum(axis=-1) + rows[..., -1]


def _filter_bank() -> np.ndarray:
    """Return symmetric band-pass filters ``[4, 43]`` that add up to the identity, lowest octave first."""

    def zero_stuffed(taps: np.ndarray) -> np.ndarray:
        result = np.zeros(2 * len(taps) - 1)
        result[::2] = taps
        return result

    high = _SYM2 * (-1.0) ** np.arange(len(_SYM2))
    low2 = np.convolve(_SYM2, _SYM2[::-1]) / 2
    high2 = np.convolve(high, high[::-1]) / 2
    bank = [np.ones(1)]
    for _ in range(3):
        # Every band moves down an octave, and a new highest band is added.
        bank = [np.convolve(zero_stuffed(band), low2) for band in bank]
        missing = (len(bank[0]) - len(high2)) // 2
        bank.append(np.pad(high2, missing))
    return np.stack(bank)


def _filter_bands(x: Array, gains: Array) -> Array:
    """Amplify four frequency bands by `gains` ``[N, 4]``, along both axes; borders are mirrored."""
    taps = jnp.asarray(_filter_bank(), x.dtype)
    taps = (gains[:, :, None] * taps).sum(axis=1)
    for axis, equation in ((1, "noh,nhwc->nowc"), (2, "now,nhwc->nhoc")):
        x = jnp.einsum(equation, _reflecting_toeplitz(taps, x.shape[axis]), x, precision="highest")
    return x


def _reflecting_toeplitz(taps: Array, size: int) -> Array:
    """Return the filtering of a mirrored signal as matrices: ``[N, K] → [N, size, size]``."""
    length = taps.shape[1]
    position = np.arange(size)[:, None] + np.arange(length) - length // 2
    # Mirrored without repeating the border pixel, as often as needed.
    period = max(2 * (size - 1), 1)
    position = size - 1 - np.abs(position % period - (size - 1)) if size > 1 else 0 * position
    selection = (position[:, :, None] == np.arange(size)).astype(taps.dtype)
    return jnp.einsum("nk,okh->noh", taps, selection, precision="highest")


def _cut_out(x: Array, size: Array, centre: Array) -> Array:
    """Set to zero a square of relative side `size` ``[N]`` at `centre` ``[N, 2]`` (x, y)."""

    def outside(pixels: int, centre: Array) -> Array:
        position = (jnp.arange(pixels, dtype=x.dtype) + 0.5) / pixels
        return jnp.abs(position - centre[:, None]) >= size[:, None] / 2

    rows, columns = outside(x.shape[1], centre[:, 1]), outside(x.shape[2], centre[:, 0])
    return jnp.where((rows[:, :, None] | columns[:, None, :])[..., None], x, 0.0)
