"""The aspect ratio of pictures that were made square for the networks, and images shown in it again."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

PAD, STRETCH = "pad", "stretch"
_TOLERANCE = 0.02  # of the ratio: about a pixel at 64 px
_NEARLY_ALL = 0.95  # of the pictures


class Aspect(NamedTuple):
    """The aspect ratio that pictures had before they were made square.

    Attributes:
      fit: how they were made square, `PAD` or `STRETCH`.
      ratio: width over height.
    """

    fit: str
    ratio: float


def shared_aspect(sizes: Sequence[Sequence[int]], fit: str) -> Aspect | None:
    """Return the aspect ratio of nearly all pictures; None if they have several, or if `fit` crops them to squares.

    Args:
      sizes: width and height of each picture in pixels.
      fit: how they are made square, see `data.preprocessing`.
    """
    if fit not in (PAD, STRETCH) or not len(sizes):
        return None
    width, height = np.asarray(sizes, float).T
    ratio = np.quantile(width / height, 0.5, method="nearest")
    close = np.abs(np.log(width / height / ratio)) <= np.log1p(_TOLERANCE)
    return Aspect(fit, round(float(ratio), 4)) if close.mean() >= _NEARLY_ALL else None


def padded_size(resolution: int, ratio: float) -> tuple[int, int]:
    """Return width and height in pixels of the largest picture of this aspect ratio in a square."""
    return max(1, round(resolution * min(1, ratio))), max(1, round(resolution * min(1, 1 / ratio)))


def restore_aspect(images: np.ndarray, aspect: Aspect | None) -> np.ndarray:
    """Return square images in the pictures' aspect ratio: for people, not for networks and metrics.

    Padding is cropped. Stretched images get their longer side by Lanczos' filter and keep the other one, so that
    nothing in them is lost.

    Args:
      images: uint8 ``[n, R, R, C]``, C = 1 or 3.
      aspect: that of the data set; None leaves the images as they are.

    Returns:
      uint8 ``[n, H, W, C]``.
    """
    if aspect is None:
        return images
    resolution = images.shape[1]
    if aspect.fit == PAD:
        width, height = padded_size(resolution, aspect.ratio)
        left, top = (resolution - width) // 2, (resolution - height) // 2
        return images[:, top : top + height, left : left + width]
    width, height = (round(resolution * max(1, r)) for r in (aspect.ratio, 1 / aspect.ratio))
    shown = np.empty((len(images), height, width, images.shape[3]), np.uint8)
    for image, target in zip(images, shown, strict=True):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        target[:] = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS)).reshape(target.shape)
    return shown
