"""A sheet of generated images, each beside the training images that are nearest to it."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from noisytwins_jax.diagnostics.sheets import (
    BACKGROUND,
    FAINT,
    GAP,
    INK,
    MARGIN,
    RULE,
    _check,
    _font,
    _resize,
    _wrap,
    describe_scale,
    display_scale,
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
    fakes, nearest, distances = _check(fakes, "fakes"), np.asarray(nearest), np.asarray(distances)
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
    names = [str(class_names[labels[i]]) for i in order]
    counts = [f" · {(m := int(train_counts[labels[i]]))} image{'s' * (m != 1)}" for i in order]

    scale = display_scale(width)
    cell_w, cell_h = max(1, round(width * scale)), max(1, round(height * scale))
    pitch_w, pitch_h = max(cell_w, _NARROWEST) + GAP, cell_h + _LINE + GAP
    bold, text, small, heading = _font(14, bold=True), _font(14), _font(12), _font(16, bold=True)
    label_w = max(bold.getlength(name) + text.getlength(count) for name, count in zip(names, counts, strict=True))
    left = MARGIN + math.ceil(label_w) + 16
    titles = ("Generated", "Nearest training images")
    first = left + max(cell_w, math.ceil(heading.getlength(titles[0]))) + 2 * MARGIN
    right = max(first + k * pitch_w - GAP, first + math.ceil(heading.getlength(titles[1])))
    order_said = ", head to tail by number of training images" if len(class_names) > 1 else ""
    caption = _wrap(
        f"A generated image a row{order_said}; right of it the training images nearest to it in feature space, with their "
        "distances. " + describe_scale(height, width, scale),
        text,
        right - MARGIN,
    )
    top = MARGIN + 30
    bottom = top + n * pitch_h
    sheet = Image.new("RGB", (right + MARGIN, bottom + 12 + 20 * len(caption) + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for x, title in zip((left, first), titles, strict=True):
        draw.text((x, MARGIN - 4), title, fill=INK, font=heading)
    draw.line([(first - MARGIN, MARGIN), (first - MARGIN, bottom - GAP)], fill=RULE, width=1)
    for y, i, name, count in zip(range(top, bottom, pitch_h), order, names, counts, strict=True):
        middle = y + cell_h / 2
        draw.text((MARGIN, middle), name, fill=INK, font=bold, anchor="lm")
        draw.text((MARGIN + bold.getlength(name), middle), count, fill=FAINT, font=text, anchor="lm")
        sheet.paste(_resize(fakes[i], scale, smooth=True), (left, y))
        for j in np.flatnonzero(np.isfinite(distances[i])):
            x = first + int(j) * pitch_w
            sheet.paste(_resize(nearest[i, j], scale, smooth=True), (x, y))
            draw.text((x, y + cell_h + 1), _three_digits(distances[i, j]), fill=FAINT, font=small)
    for line, said in enumerate(caption):
        draw.text((MARGIN, bottom + 12 + 20 * line), said, fill=FAINT, font=text)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, format="PNG")
    return sheet


def _three_digits(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"
