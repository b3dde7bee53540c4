"""Sheets of the latent space: interpolations between (z, class) pairs, and the same z under truncation.

Both follow BigGAN (Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis", ICLR 2019):
interpolations as in figures 8 and 9, truncation as in figure 2.
"""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from noisytwins_jax.generation.sheet_frame import (
    GAP,
    Frame,
    check_images,
    describe_scale,
    display_scale,
    displayed_size,
    draw_frame,
    font,
    resize_for_display,
    truncate_text,
)
from noisytwins_jax.generation.sheets import head_to_tail
from noisytwins_jax.utils.errors import UserError

_NAME_WIDTH = 200  # pixels: longer names of classes are truncated
_ROW_HEIGHT = 20  # pixels: a row is at least as high as its name


class Band(NamedTuple):
    """Rows of an interpolation sheet in which the same inputs change.

    Attributes:
      heading: what changes.
      images: uint8 [n, steps, H, W, C], C = 1 or 3; the first and the last of a row are its ends.
      labels: int [n, 2], the classes of both ends.
    """

    heading: str
    images: np.ndarray
    labels: np.ndarray


def interpolation_sheet(
    bands: Sequence[Band], class_names: Sequence[str], path: str | os.PathLike | None = None
) -> Image.Image:
    """Draw bands of rows of images, each an interpolation from one end to the other.

    Args:
      bands: from top to bottom, with equal numbers of steps and sizes of images; at least one, each with a row.
      class_names: a name for every class id.
      path: where to save the picture (PNG), or None.

    Returns:
      An RGB picture.

    Raises:
      UserError: images of another dtype or of different sizes, or no images.
    """
    shapes = {np.shape(band.images)[1:] for band in bands}
    if len(shapes) != 1 or not all(len(band.images) == len(band.labels) > 0 for band in bands):
        raise UserError(
            "An interpolation sheet needs bands of rows of as many images of one size, with labels for every row; got "
            f"images {[list(np.shape(band.images)) for band in bands]}."
        )
    images = [check_images(row, "images") for band in bands for row in band.images]
    steps, height, width, _ = images[0].shape
    scale = display_scale(width)
    cell_w, cell_h = displayed_size(width, height, scale)
    labels = [(int(first), int(second)) for band in bands for first, second in band.labels]
    starts = np.cumsum([0, *(len(band.images) for band in bands)])
    frame = draw_frame(
        rows=[(_row_name(class_names[first], class_names[second]), None) for first, second in labels],
        titles=(bands[0].heading,),
        widths=(steps * (cell_w + GAP) - GAP,),
        height=cell_h,
        below=max(0, _ROW_HEIGHT - cell_h),
        headings={int(start): band.heading for start, band in zip(starts[1:], bands[1:], strict=False)},
        caption=f"In every row, {steps - 2} image{'s' * (steps != 3)} in even steps between its ends. "
        + describe_scale(height, width, scale),
    )
    for row, row_images in enumerate(images):
        _paste_row(frame, row_images, 0, row, scale)
    return frame.save(path)


def truncation_sheet(
    images: Mapping[int, np.ndarray],
    strengths: Sequence[str],
    class_names: Sequence[str],
    class_counts: Sequence[int] | np.ndarray,
    path: str | os.PathLike | None = None,
) -> Image.Image:
    """Draw a row for each strength of truncation, with the classes side by side, head to tail; a column has one z.

    Args:
      images: class id -> uint8 [strengths, n, H, W, C], C = 1 or 3, n of each class >= 1; at least one class.
      strengths: names of the rows, from no truncation to the strongest.
      class_names: a name for every class id.
      class_counts: number of training images of every class id.
      path: where to save the picture (PNG), or None.

    Returns:
      An RGB picture.

    Raises:
      UserError: images of another dtype, of different sizes or numbers, or no images.
    """
    shapes = {(len(x), *np.shape(x)[2:]) for x in images.values()}
    if len(shapes) != 1 or next(iter(shapes))[0] != len(strengths) or not all(np.shape(x)[1] for x in images.values()):
        raise UserError(
            f"A truncation sheet needs images of one size of every class for each of {len(strengths)} strengths; got "
            f"{({int(c): list(np.shape(x)) for c, x in images.items()}) or 'none'}."
        )
    classes = head_to_tail(class_counts, list(images))
    rows = {c: [check_images(row, "images") for row in images[c]] for c in classes}
    _, height, width, _ = rows[classes[0]][0].shape
    scale = display_scale(width)
    cell_w, cell_h = displayed_size(width, height, scale)
    widths = [len(rows[c][0]) * (cell_w + GAP) - GAP for c in classes]
    heading = font(16, bold=True)
    names = [
        truncate_text(str(class_names[c]), heading, max(w, _NAME_WIDTH)) for c, w in zip(classes, widths, strict=True)
    ]
    counts = [int(class_counts[c]) for c in classes]
    frame = draw_frame(
        rows=[(strength, None) for strength in strengths],
        titles=names,
        widths=widths,
        height=cell_h,
        below=max(0, _ROW_HEIGHT - cell_h),
        caption="A strength of truncation a row, and the same z all the way down a column. "
        + (f"Classes from head to tail: {', '.join(map(str, counts))} training images. " if len(classes) > 1 else "")
        + describe_scale(height, width, scale),
    )
    for side, c in enumerate(classes):
        for row, row_images in enumerate(rows[c]):
            _paste_row(frame, row_images, side, row, scale)
    return frame.save(path)


def _paste_row(frame: Frame, images: np.ndarray, side: int, row: int, scale: float) -> None:
    for column, image in enumerate(images):
        picture = resize_for_display(image, scale)
        frame.sheet.paste(picture, (frame.lefts[side] + column * (picture.width + GAP), frame.tops[row]))


def _row_name(first: str, second: str) -> str:
    """Return the name of a row: its class, or both classes where they differ."""
    names = [truncate_text(str(name), font(14, bold=True), _NAME_WIDTH) for name in (first, second)]
    return names[0] if first == second else " → ".join(names)
