"""Random smooth images with a pattern per class, for benchmarks and tests; no download."""

import numpy as np

from noisytwins_jax.data.long_tail import long_tail_counts
from noisytwins_jax.data.source import ArraySource, DataSplits, check_resolution, seeded_generator
from noisytwins_jax.utils.errors import UserError

_WAVES = 4  # cosines per axis; few of them make an image smooth
_CHUNK = 256  # images computed at a time, to bound the memory of the float images


def synthetic_splits(
    resolution: int = 32,
    num_classes: int = 10,
    num_images: int = 1024,
    channels: int = 3,
    seed: int = 0,
    imbalance_factor: float = 1.0,
) -> DataSplits:
    """Build random images: a random pattern per class plus a weaker one per image.

    A pattern is a sum of two-dimensional cosines of low frequency with normally distributed weights. Image ``i`` has
    class ``i % num_classes``.

    Args:
      resolution: pixels, a power of two of at least 8.
      num_classes: number of classes.
      num_images: number of images, at least ``num_classes``.
      channels: 1 or 3.
      seed: seed of all patterns.
      imbalance_factor: rarest over most frequent class of the training set, in (0, 1]; see ``long_tail_counts``.

    Returns:
      The splits; images uint8 ``[num_images, resolution, resolution, channels]``. The reference and classifier sets are
      balanced. The training set is the same set or, with an `imbalance_factor` below 1, the first images of each class:
      all of class 0 and fewer of each later class.

    Raises:
      UserError: an argument is out of range.
    """
    check_resolution(resolution)
    if channels not in (1, 3):
        raise UserError(f"channels must be 1 or 3, but it is {channels}.")
    if num_classes < 1 or num_images < num_classes:
        raise UserError(
            f"Synthetic data needs at least one class and one image per class, but num_classes is {num_classes} and "
            f"num_images is {num_images}; raise num_images or lower num_classes."
        )
    rng = seeded_generator(seed)
    labels = np.arange(num_images, dtype=np.int32) % num_classes
    shape = (_WAVES, _WAVES, channels)
    class_weights = rng.standard_normal((num_classes, *shape), dtype=np.float32)
    pixels = (np.arange(resolution, dtype=np.float32) + 0.5) / resolution
    waves = np.cos(np.pi * np.arange(_WAVES, dtype=np.float32)[:, None] * pixels)  # [waves, pixels]

    images = np.empty((num_images, resolution, resolution, channels), np.uint8)
    for start in range(0, num_images, _CHUNK):
        chunk = labels[start : start + _CHUNK]
        weights = class_weights[chunk] + 0.5 * rng.standard_normal((len(chunk), *shape), dtype=np.float32)
        values = np.einsum("nuvc,uh,vw->nhwc", weights, waves, waves, optimize=True)
        # Division brings most values into -1..1, tanh the rest.
        images[start : start + _CHUNK] = np.floor(np.clip(127.5 * np.tanh(values / _WAVES) + 128, 0, 255))
    class_names = tuple(f"class {c}" for c in range(num_classes))
    everything = ArraySource(images, labels, class_names, "synthetic")
    train = everything
    if imbalance_factor != 1:
        counts = long_tail_counts(num_images // num_classes, num_classes, imbalance_factor)
        # Image i is the (i // num_classes)-th of its class.
        selected = np.arange(num_images) // num_classes < counts[labels]
        train = ArraySource(images[selected], labels[selected], class_names, "synthetic_lt")
    return DataSplits(train=train, reference=everything, classifier=everything)
