"""Animated images for browsers and notebooks."""

from pathlib import Path

import numpy as np

from noisytwins_jax.generation.sheet_frame import check_images, display_scale, resize_for_display
from noisytwins_jax.utils.errors import UserError

SUFFIXES = (".gif", ".webp", ".png")  # GIF has 256 colours a frame, the others have all


def loop_ends(labels: np.ndarray, indices: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the arguments of `Sampler.interpolate` for a closed way from each sample to the next and back to the first.

    Args:
      labels: int ``[n]``.
      indices: int ``[n]``, of samples.
      frames: from a sample to the next.

    Returns:
      labels and indices of both ends ``[n · frames, 2]``, and t ``[n · frames]``.
    """
    ends = [np.repeat(np.stack([x, np.roll(x, -1)], axis=1), frames, axis=0) for x in (labels, indices)]
    return *ends, np.tile(np.arange(frames) / frames, len(labels))


def save_animation(
    images: np.ndarray,
    path: str | Path,
    frames_per_second: float = 24.0,
    scale: float | None = None,
    smooth: bool = True,
) -> Path:
    """Write images as an animation that loops.

    Args:
      images: uint8 ``[n, H, W, C]``, C = 1 or 3, n >= 2.
      path: of the file; its suffix, of `SUFFIXES`, sets the format.
      frames_per_second: above 0, at most 50, the limit of players.
      scale: enlargement; ``display_scale(W)`` by default.
      smooth: enlarge by bicubic interpolation; False repeats pixels.

    Returns:
      The path.

    Raises:
      UserError: the images, format or speed are not supported.
    """
    path, images = Path(path), check_images(images, "images")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path.name} is no animation that can be written; call it {' or '.join(SUFFIXES)}.")
    if len(images) < 2:
        raise UserError("An animation needs at least two images.")
    if not 0 < frames_per_second <= 50:
        raise UserError(f"{frames_per_second} frames a second cannot be shown; give more than 0, at most 50.")
    scale = display_scale(images.shape[2]) if scale is None else scale
    first, *others = (resize_for_display(image, scale, smooth) for image in images)
    options = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, duration=1000 / frames_per_second, loop=0, **options)
    return path
