"""Sheet of generated images, each beside its nearest training images."""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from noisytwins_jax.generation.sheet_frame import (
    FAINT,
    GAP,
    check_images,
    describe_scale,
    display_scale,
    displayed_size,
    draw_frame,
    font,
    resize_for_display,
)
from noisytwins_jax.utils.errors import UserError

_TEXT_HEIGHT = 16  # pixels: a distance below its image
_MIN_WIDTH = 44  # pixels: room for a distance of four digits
_TITLES = ("Nearest in feature space", "Nearest in pixels")  # of the training images, where both are shown


def neighbour_sheet(
    fakes: np.ndarray,
    nearest: np.ndarray,
    distances: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    train_counts: Sequence[int] | np.ndarray,
    path: str | os.PathLike | None = None,
    in_pixels: tuple[np.ndarray, np.ndarray] | None = None,
) -> Image.Image:
    """Draw a generated image a row, head to tail, and right of it its nearest training images with their distances.

    For a copied training image, the first neighbour looks the same, at a distance far below the others.

    Args:
      fakes: uint8 [n, H, W, C], C = 1 or 3, n >= 1: generated images.
      nearest: uint8 [n, k, H, W, C], k >= 1: the training images nearest to each in feature space, nearest first.
      distances: float [n, k], in units of the features. Where one is not finite, as in classes with fewer than k
        training images, the cell stays empty.
      labels: int [n], the class that each generated image was conditioned on. A class may have several rows.
      class_names: a name for every class id.
      train_counts: number of training images of every class id.
      path: where to save the picture (PNG), or None.
      in_pixels: images and distances, as ``nearest`` and ``distances``, of the nearest in pixels, drawn further
        right. A copy that is shifted or has other colours is near in features and far in pixels.

    Returns:
      An RGB picture. Small images are enlarged by an integer factor, given in the caption.

    Raises:
      UserError: images of another dtype, arrays of sizes that do not fit together, or no images.
    """
    fakes, labels = check_images(fakes, "fakes"), [int(label) for label in labels]
    groups = [
        _check_neighbours(fakes, labels, *group) for group in ((nearest, distances), in_pixels) if group is not None
    ]
    n, height, width, _ = fakes.shape
    order = sorted(range(n), key=lambda i: (-int(train_counts[labels[i]]), labels[i]))  # stable: as given in a class
    scale = display_scale(width)
    cell_w, cell_h = displayed_size(width, height, scale)
    pitch = max(cell_w, _MIN_WIDTH) + GAP
    head_to_tail = ", head to tail by number of training images" if len(class_names) > 1 else ""
    frame = draw_frame(
        rows=[(str(class_names[labels[i]]), int(train_counts[labels[i]])) for i in order],
        titles=("Generated", *(_TITLES if len(groups) > 1 else ("Nearest training images",))),
        widths=(cell_w, *(images.shape[1] * pitch - GAP for images, _ in groups)),
        height=cell_h,
        below=_TEXT_HEIGHT,
        caption=f"A generated image a row{head_to_tail}; right of it the training images nearest to it in feature space"
        + (
            ", and those nearest in pixels, with their distances; in pixels these are root mean square differences, of 255. "
            if len(groups) > 1
            else ", with their distances. "
        )
        + describe_scale(height, width, scale),
    )
    for y, i in zip(frame.tops, order, strict=True):
        frame.sheet.paste(resize_for_display(fakes[i], scale), (frame.lefts[0], y))
        for left, (images, values) in zip(frame.lefts[1:], groups, strict=True):
            for j in np.flatnonzero(np.isfinite(values[i])):
                x = left + int(j) * pitch
                frame.sheet.paste(resize_for_display(images[i, j], scale), (x, y))
                frame.draw.text((x, y + cell_h + 1), _three_digits(values[i, j]), fill=FAINT, font=font(12))
    return frame.save(path)


def _check_neighbours(
    fakes: np.ndarray, labels: list[int], nearest: np.ndarray, distances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return neighbours and distances as arrays; raise if they do not fit the images."""
    nearest, distances = np.asarray(nearest), np.asarray(distances)
    n, height, width, channels = fakes.shape
    if nearest.ndim != 5 or nearest.dtype != np.uint8 or nearest.shape[::2] != (n, height, channels):
        raise UserError(
            f"nearest must be uint8 [n, k, H, W, C] for fakes {list(fakes.shape)}; got {nearest.dtype} "
            f"{list(nearest.shape)}."
        )
    k = nearest.shape[1]
    if nearest.shape[3] != width or distances.shape != (n, k) or len(labels) != n or not n or not k:
        raise UserError(
            f"A neighbour sheet needs images, and as many neighbours, distances and labels: got fakes "
            f"{list(fakes.shape)}, nearest {list(nearest.shape)}, distances {list(distances.shape)} and {len(labels)} labels."
        )
    return nearest, distances


def _three_digits(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"
