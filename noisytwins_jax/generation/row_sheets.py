"""Sheets with one named row of images for each item."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from noisytwins_jax.generation.sheet_frame import (
    FAINT,
    GAP,
    describe_scale,
    display_scale,
    displayed_size,
    draw_frame,
    font,
    resize_for_display,
    truncate_text,
)
from noisytwins_jax.utils.files import replacing

ROWS = 24  # of a sheet that is easy to look at
_LONGEST = 240  # pixels of a name
_LINE = 13  # pixels from line to line below an image


def write_row_sheet(
    path: Path,
    names: Sequence[str],
    sides: Sequence[tuple[str, np.ndarray]],
    caption: str,
    texts: Sequence[Sequence[str]] | None = None,
) -> None:
    """Write a sheet with a row for each name, and side by side the images of each side.

    Args:
      path: of the sheet (PNG).
      names: of the rows ``[n]``; long ones are truncated.
      sides: title and images uint8 ``[n, k, H, W, C]`` of each.
      caption: one paragraph; how the images are enlarged is added.
      texts: of all images of each row ``[n][k of all sides]``, shown below them, with line breaks; None for none.
    """
    height, width = sides[0][1].shape[2:4]
    scale, small = display_scale(width), font(10)
    cell_w, cell_h = displayed_size(width, height, scale)
    lines = 0 if texts is None else 1 + max(text.count("\n") for row in texts for text in row)
    frame = draw_frame(
        rows=[(truncate_text(name, font(14, bold=True), _LONGEST), None) for name in names],
        titles=[title for title, _ in sides],
        widths=[images.shape[1] * (cell_w + GAP) - GAP for _, images in sides],
        height=cell_h,
        below=lines * _LINE + (6 if lines else 0),
        caption=f"{caption} {describe_scale(height, width, scale)}",
    )
    for row, y in enumerate(frame.tops):
        column = 0
        for x, (_, images) in zip(frame.lefts, sides, strict=True):
            for image in images[row]:
                frame.sheet.paste(resize_for_display(image, scale), (x, y))
                if texts is not None:
                    frame.draw.multiline_text((x, y + cell_h + 1), texts[row][column], FAINT, small, spacing=1)
                x, column = x + cell_w + GAP, column + 1
    with replacing(path) as temporary:
        frame.save(temporary)
