"""A sheet of generated images, each beside the training images that are nearest to it."""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from noisytwins_jax.diagnostics.sheet_frame import (
    FAINT,
    GAP,
    check_images,
    describe_scale,
    display_scale,
    displayed,
    displayed_size,
    draw_frame,
    font,
)
from noisytwins_jax.errors import UserError

_LINE = 16  # pixels: a distance below its image
_NARROWEST = 44  # pixels: room for a distance of four digits


def neighbour_sheet(
    fakes: np.ndarray,
    nearest: np.ndarray,
    distances: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    train_counts: Sequence[int] | np.ndarray,
    path: str | os.PathLike | None = None,
) -> Image.Image:
    """Draws a generated image a row, head to tail, and right of it its nearest training images with their distances.

    A copied training image shows as a first neighbour that looks the same, at a distance far below the others.

    Args:
      fakes: uint8 [n, H, W, C], C = 1 or 3, n >= 1: generated images.
      nearest: uint8 [n, k, H, W, C], k >= 1: the training images nearest to each in feature space, nearest first.
      distances: float [n, k], in the features' own unit. Where one is not finite, as in classes with fewer than k
        training images, the place stays empty.
      labels: int [n], the class that each generated image was asked for. A class may have several rows.
      class_names: a name for every class id.
      train_counts: number of training images of every class id.
      path: where to save the picture (PNG), or None.

    Returns:
      An RGB picture. Small images are enlarged by a whole number, which the caption says.

    Raises:
      UserError: images of another type, arrays of sizes that do not fit together, or no image at all.
    """
    fakes, nearest, distances = check_images(fakes, "fakes"), np.asarray(nearest), np.asarray(distances)
    labels = [int(label) for label in labels]
    n, height, width, _ = fakes.shape
    if nearest.ndim != 5 or nearest.dtype != np.uint8 or nearest.shape[::2] != (n, height, fakes.shape[3]):
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
    order = sorted(range(n), key=lambda i: (-int(train_counts[labels[i]]), labels[i]))  # stable: as given in a class
    scale = display_scale(width)
    cell_w, cell_h = displayed_size(width, height, scale)
    pitch = max(cell_w, _NARROWEST) + GAP
    head_to_tail = ", head to tail by number of training images" if len(class_names) > 1 else ""
    frame = draw_frame(
        rows=[(str(class_names[labels[i]]), int(train_counts[labels[i]])) for i in order],
        titles=("Generated", "Nearest training images"),
        widths=(cell_w, k * pitch - GAP),
        height=cell_h,
        below=_LINE,
        caption=f"A generated image a row{head_to_tail}; right of it the training images nearest to it in feature space, "
        "with their distances. " + describe_scale(height, width, scale),
    )
    for y, i in zip(frame.tops, order, strict=True):
        frame.sheet.paste(displayed(fakes[i], scale), (frame.lefts[0], y))
        for j in np.flatnonzero(np.isfinite(distances[i])):
            x = frame.lefts[1] + int(j) * pitch
            frame.sheet.paste(displayed(nearest[i, j], scale), (x, y))
            frame.draw.text((x, y + cell_h + 1), _three_digits(distances[i, j]), fill=FAINT, font=font(12))
    return frame.save(path)


def _three_digits(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"
