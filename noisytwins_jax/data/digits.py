"""The default data set: scikit-learn's hand-written digits with a long tail; no download."""

import numpy as np
from PIL import Image

from noisytwins_jax.data.long_tail import long_tail_counts
from noisytwins_jax.data.source import ArraySource, DataSplits, check_resolution, seeded_generator
from noisytwins_jax.utils.errors import UserError

_NATIVE_RESOLUTION = 8
_LARGEST_RESOLUTION = 64
_LARGEST_VALUE = 16  # pixels of load_digits are in 0..16


def digits_splits(
    resolution: int = 8, imbalance_factor: float = 0.05, largest: int = 174, seed: int = 0, num_classes: int = 10
) -> DataSplits:
    """Build long-tailed hand-written digits: class 0 ("0") is the most frequent, class 9 ("9") the rarest.

    The images are scikit-learn's ``load_digits``: 1797 grey images of 8x8 pixels, 174 to 183 per class. With the
    defaults the training set has 174 124 89 64 45 32 23 16 12 8 images per class. The reference and classifier sets are
    all 1797 images, so they contain the training images. A mirrored digit is not a digit: train with ``mirror=False``.

    Args:
      resolution: 8 (native), 16, 32 or 64 pixels; above 8, images are enlarged with Pillow's bicubic filter.
      imbalance_factor: rarest over most frequent class, in (0, 1]; see ``long_tail_counts``. At 0.01 the last
        classes have 4, 2 and 1 images, too few to learn any diversity from.
      largest: training images of class 0, at most 178.
      seed: seed of the choice of images. For one seed, the images of a smaller ``imbalance_factor`` or ``largest`` are
        among those of a larger one.
      num_classes: the first classes alone, with as many images as they have among all ten.

    Returns:
      The splits; images uint8 ``[N, resolution, resolution, 1]``, 0 is paper and 255 is ink.

    Raises:
      UserError: the resolution is not a power of two from 8 to 64, a class has too few images, the seed is negative, or
        there are not so many classes.
    """
    check_resolution(resolution, _LARGEST_RESOLUTION)
    if num_classes not in range(1, 11):
        raise UserError(f"There are 1 to 10 classes of digits, not num_classes={num_classes}.")
    counts = long_tail_counts(largest, 10, imbalance_factor)[:num_classes]
    images, labels = _load(resolution)
    images, labels = images[labels < num_classes], labels[labels < num_classes]
    class_names = tuple(str(c) for c in range(num_classes))

    rng = seeded_generator(seed)
    selected = []
    for c, count in enumerate(counts):
        available = np.flatnonzero(labels == c)
        if count > len(available):
            raise UserError(
                f'There are {len(available)} images of digit "{c}", but {count} are asked for; '
                f"lower largest (now {largest}) or imbalance_factor (now {imbalance_factor})."
            )
        selected.append(np.sort(rng.permutation(available)[:count]))
    selected = np.concatenate(selected)
    everything = ArraySource(images, labels, class_names, "digits")
    train = ArraySource(images[selected], labels[selected], class_names, "digits_lt")
    return DataSplits(train=train, reference=everything, classifier=everything)


def _load(resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Load all 1797 digits: uint8 ``[1797, resolution, resolution, 1]`` and int32 ``[1797]``."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    images = np.round(digits.images * (255 / _LARGEST_VALUE)).astype(np.uint8)
    if resolution != _NATIVE_RESOLUTION:
        size = (resolution, resolution)
        images = np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BICUBIC)) for i in images])
    return images[..., None], digits.target.astype(np.int32)
