"""A distance of images that needs no weights: that of their pixels at several sizes."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_SMALLEST = 4  # pixels: side of the smallest images that are compared


def pixel_distance(a: Array, b: Array) -> Array:
    """Compute the mean square differences ``[n]`` of images ``[n, H, W, C]`` with values from 0 to 255, in units of half that.

    They are averaged over sizes: the original, and each halved by averaging 2×2 pixels, down to 4 pixels.
    """
    return jnp.square(pixel_pyramid(a - b)).sum(axis=1)


def pixel_pyramid(images: Array) -> Array:
    """Compute vectors ``[n, d]`` of images ``[n, H, W, C]`` whose squared Euclidean distance is `pixel_distance`."""
    x, sizes = images / 127.5, []
    while True:
        n, height, width, channels = x.shape
        sizes.append(x.reshape(n, -1) / np.sqrt(height * width * channels))
        if min(height, width) < 2 * _SMALLEST:
            return jnp.concatenate(sizes, axis=1) / np.sqrt(len(sizes))
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
