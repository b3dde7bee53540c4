"""Sheets of images: a plain grid, and real beside generated images with one row a class."""

import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from noisytwins_jax.errors import UserError

BACKGROUND, INK, FAINT, RULE = (255, 255, 255), (28, 30, 38), (112, 116, 128), (206, 209, 217)
LEGIBLE = 56  # pixels: images below about this side are enlarged for display
LARGEST = 128  # pixels: images above this side are reduced for display
GAP = 4  # pixels between neighbouring images
MARGIN = 24  # pixels around the sheet; twice this parts real from generated


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which Matplotlib bundles: the same picture on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _check(images: np.ndarray, what: str) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(f"{what} must be uint8 [n, H, W, 1 or 3]; got {images.dtype} {list(images.shape)}.")
    return images


def display_scale(side: int) -> float:
    """The default enlargement of images ``side`` pixels wide: a whole number, or less than 1 for large images."""
    return LARGEST / side if side > LARGEST else float(max(1, round(LEGIBLE / side)))


def describe_scale(height: int, width: int, scale: float, smooth: bool = True) -> str:
    """Says in words how images of ``height`` x ``width`` pixels are shown at ``scale``."""
    size = f"Images are {width}x{height} pixels"
    if scale == 1:
        return f"{size}, shown as they are."
    if scale < 1:
        return f"{size}, reduced to {round(width * scale)}x{round(height * scale)} for display."
    how = "by bicubic interpolation" if smooth else "by repeating pixels"
    return f"{size}, enlarged {scale:g} times {how} for display."


def _resize(image: np.ndarray, scale: float, smooth: bool) -> Image.Image:
    """Shows uint8 [H, W, C] at ``scale``: reduced by area, enlarged by bicubic interpolation or repeated pixels."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    if scale == 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    enlarge = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return picture.resize(size, Image.Resampling.BOX if scale < 1 else enlarge)


def image_grid(
    images: np.ndarray, columns: int | None = None, scale: float | None = None, smooth: bool = True
) -> Image.Image:
    """Lays images out in rows, filled from left to right.

    Args:
      images: uint8 [n, H, W, C], C = 1 or 3, n >= 1.
      columns: images in a row; about the square root of n by default.
      scale: enlargement for display; ``display_scale(W)`` by default.
      smooth: enlarge by bicubic interpolation; False repeats pixels.

    Returns:
      An RGB picture.

    Raises:
      UserError: the images are of another type or shape, or there are none.
    """
    images = _check(images, "images")
    if not len(images):
        raise UserError("A grid needs at least one image.")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    scale = display_scale(images.shape[2]) if scale is None else scale
    cells = [_resize(image, scale, smooth) for image in images]
    width, height = cells[0].size
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), BACKGROUND)
    for i, cell in enumerate(cells):
        sheet.paste(cell, (GAP + (i % columns) * (width + GAP), GAP + (i // columns) * (height + GAP)))
    return sheet


def head_to_tail(class_counts: Sequence[int] | np.ndarray, classes: Sequence[int] | None = None) -> list[int]:
    """Class ids by falling number of training images, ties by id; all classes, or those given."""
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
    """Draws one row a class, head to tail: real images on the left, generated ones on the right.

    A class with fewer real images than the widest row leaves the rest of its row empty: that is all there are.

    Args:
      real: class id -> uint8 [m, H, W, C], C = 1 or 3. A class may be missing or empty.
      fake: class id -> uint8 [n, H, W, C], of the same size.
      class_names: a name for every class id.
      class_counts: number of training images of every class id.
      path: where to save the picture (PNG), or None.
      scale: enlargement for display; ``display_scale(W)`` by default. The caption says it.
      smooth: enlarge by bicubic interpolation, real and generated alike: 8x8 digits are hard to read as squares.
        False repeats pixels.

    Returns:
      An RGB picture.

    Raises:
      UserError: images of another type, or of different sizes, or none at all.
    """
    sets = [{int(c): _check(x, what) for c, x in images.items()} for what, images in (("real", real), ("fake", fake))]
    shapes = {x.shape[1:] for images in sets for x in images.values()}
    if len(shapes) != 1:
        raise UserError(f"A sample sheet needs images of one size; got {sorted(shapes) or 'none'}.")
    ((height, width, _),) = shapes
    scale = display_scale(width) if scale is None else scale
    cell_w, cell_h = max(1, round(width * scale)), max(1, round(height * scale))
    columns = [max((len(x) for x in images.values()), default=0) for images in sets]
    classes = head_to_tail(class_counts, sorted(sets[0].keys() | sets[1].keys()))
    names = [str(class_names[c]) for c in classes]
    counts = [f" · {int(class_counts[c])} image{'s' * (int(class_counts[c]) != 1)}" for c in classes]

    bold, text, heading = _font(14, bold=True), _font(14), _font(16, bold=True)
    label_w = max(bold.getlength(name) + text.getlength(count) for name, count in zip(names, counts, strict=True))
    left = MARGIN + math.ceil(label_w) + 16
    starts = [left, left + columns[0] * (cell_w + GAP) - GAP + 2 * MARGIN]
    right = max(starts[1] + columns[1] * (cell_w + GAP) - GAP, starts[1] + math.ceil(heading.getlength("Generated")))
    caption = _wrap(
        "One row a class, head to tail by number of training images. " + describe_scale(height, width, scale, smooth),
        text,
        max(right, 360) - MARGIN,
    )
    top, pitch = MARGIN + 30, max(cell_h, 20) + GAP
    bottom = top + len(classes) * pitch
    sheet = Image.new("RGB", (max(right, 360) + MARGIN, bottom + 12 + 20 * len(caption) + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for start, title in zip(starts, ("Real", "Generated"), strict=True):
        draw.text((start, MARGIN - 4), title, fill=INK, font=heading)
    divider = starts[1] - MARGIN
    draw.line([(divider, MARGIN), (divider, bottom - GAP)], fill=RULE, width=1)
    for y, c, name, count in zip(range(top, bottom, pitch), classes, names, counts, strict=True):
        middle = y + cell_h / 2
        draw.text((MARGIN, middle), name, fill=INK, font=bold, anchor="lm")
        draw.text((MARGIN + bold.getlength(name), middle), count, fill=FAINT, font=text, anchor="lm")
        for start, images in zip(starts, sets, strict=True):
            for column, image in enumerate(images.get(c, ())):
                sheet.paste(_resize(image, scale, smooth), (start + column * (cell_w + GAP), y))
    for i, line in enumerate(caption):
        draw.text((MARGIN, bottom + 12 + 20 * i), line, fill=FAINT, font=text)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, format="PNG")
    return sheet


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Breaks text into lines at most ``width`` pixels long, at spaces."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return lines
