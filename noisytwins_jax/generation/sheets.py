"""Sheets of images: a grid, and real beside generated images with one row per class."""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from noisytwins_jax.generation.sheet_frame import (
    BACKGROUND,
    GAP,
    check_images,
    describe_scale,
    display_scale,
    displayed_size,
    draw_frame,
    resize_for_display,
)
from noisytwins_jax.utils.errors import UserError

_TEXT = 20  # pixels: a row is at least as high as the name of its class


def image_grid(
    images: np.ndarray, columns: int | None = None, scale: float | None = None, smooth: bool = True
) -> Image.Image:
    """Lay images out in rows, filled from left to right.

    Args:
      images: uint8 [n, H, W, C], C = 1 or 3, n >= 1.
      columns: images per row; about the square root of n by default.
      scale: enlargement for display; ``display_scale(W)`` by default.
      smooth: enlarge by bicubic interpolation; False repeats pixels.

    Returns:
      An RGB picture.

    Raises:
      UserError: the images have another type or shape, or there are none.
    """
    images = check_images(images, "images")
    if not len(images):
        raise UserError("A grid needs at least one image.")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    scale = display_scale(images.shape[2]) if scale is None else scale
    cells = [resize_for_display(image, scale, smooth) for image in images]
    width, height = cells[0].size
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), BACKGROUND)
    for i, cell in enumerate(cells):
        sheet.paste(cell, (GAP + (i % columns) * (width + GAP), GAP + (i // columns) * (height + GAP)))
    return sheet


def head_to_tail(class_counts: Sequence[int] | np.ndarray, classes: Sequence[int] | None = None) -> list[int]:
    """Sort class ids (all or the given ones) by descending number of training images, ties by id."""
    ids = range(len(class_counts)) if classes is None else classes
    return sorted((int(c) for c in ids), key=lambda c: (-int(class_counts[c]), c))


def sample_sheet(
    real: Mapping[int, np.ndarray],
    fake: Mapping[int, np.ndarray],
    class_names: Sequence[str],
    class_counts: Sequence[int] | np.ndarray,
    path: str | os.PathLike | None = None,
    scale: float | None = None,
    smooth: bool = True,
) -> Image.Image:
    """Draw one row per class, head to tail: real images on the left, generated ones on the right.

    The row of a class with fewer real images than the widest row is left empty at its end.

    Args:
      real: class id -> uint8 [m, H, W, C], C = 1 or 3. A class may be missing or empty.
      fake: class id -> uint8 [n, H, W, C], of the same size.
      class_names: a name for every class id.
      class_counts: number of training images of every class id.
      path: where to save the picture (PNG), or None.
      scale: enlargement for display; ``display_scale(W)`` by default. The caption states it.
      smooth: enlarge by bicubic interpolation, real and generated alike: 8x8 digits are hard to read as squares; False
        repeats pixels.

    Returns:
      An RGB picture.

    Raises:
      UserError: images have another type or different sizes, or there are none.
    """
    sets = [
        {int(c): check_images(x, name) for c, x in images.items()} for name, images in (("real", real), ("fake", fake))
    ]
    shapes = {x.shape[1:] for images in sets for x in images.values()}
    if len(shapes) != 1:
        raise UserError(f"A sample sheet needs images of one size; got {sorted(shapes) or 'none'}.")
    ((height, width, _),) = shapes
    scale = display_scale(width) if scale is None else scale
    cell_w, cell_h = displayed_size(width, height, scale)
    columns = [max((len(x) for x in images.values()), default=0) for images in sets]
    classes = head_to_tail(class_counts, sorted(sets[0].keys() | sets[1].keys()))
    frame = draw_frame(
        rows=[(str(class_names[c]), int(class_counts[c])) for c in classes],
        titles=("Real", "Generated"),
        widths=(columns[0] * (cell_w + GAP) - GAP, columns[1] * (cell_w + GAP) - GAP),
        height=cell_h,
        below=max(0, _TEXT - cell_h),
        caption="One row a class, head to tail by number of training images. "
        + describe_scale(height, width, scale, smooth),
    )
    for y, c in zip(frame.tops, classes, strict=True):
        for left, images in zip(frame.lefts, sets, strict=True):
            for column, image in enumerate(images.get(c, ())):
                frame.sheet.paste(resize_for_display(image, scale, smooth), (left + column * (cell_w + GAP), y))
    return frame.save(path)
