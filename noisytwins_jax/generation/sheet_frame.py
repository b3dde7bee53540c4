"""Common parts of sheets of images: checks, display size, and the frame around rows of one or more kinds of images."""

import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from noisytwins_jax.utils.errors import UserError

BACKGROUND, INK, FAINT, RULE = (255, 255, 255), (28, 30, 38), (112, 116, 128), (206, 209, 217)
LEGIBLE = 56  # pixels: images below about this side are enlarged for display
LARGEST = 128  # pixels: images above this side are reduced for display
GAP = 4  # pixels between neighbouring images
MARGIN = 24  # pixels around the sheet; twice this separates its sides
_NARROWEST = 360  # pixels: room for the caption
_LINE = 20  # pixels from line to line of the caption
_BAND = 38  # pixels for a heading between rows


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans as bundled with Matplotlib, so that pictures are the same on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def check_images(images: np.ndarray, name: str) -> np.ndarray:
    """Check that images are uint8 [n, H, W, C], C = 1 or 3, and return them as an array.

    Raises:
      UserError: they have another type or shape; the message begins with ``name``.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(f"{name} must be uint8 [n, H, W, 1 or 3]; got {images.dtype} {list(images.shape)}.")
    return images


def display_scale(side: int) -> float:
    """Return the default enlargement of images ``side`` pixels wide: a whole number, or less than 1 for large images."""
    return LARGEST / side if side > LARGEST else float(max(1, round(LEGIBLE / side)))


def displayed_size(width: int, height: int, scale: float) -> tuple[int, int]:
    """Return width and height in pixels of an image at ``scale``."""
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize_for_display(image: np.ndarray, scale: float, smooth: bool = True) -> Image.Image:
    """Resize uint8 [H, W, C] by ``scale``: reduced by area, enlarged by bicubic interpolation or repeated pixels."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    if scale == 1:
        return picture
    enlarge = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return picture.resize(displayed_size(*picture.size, scale), Image.Resampling.BOX if scale < 1 else enlarge)


def describe_scale(height: int, width: int, scale: float, smooth: bool = True) -> str:
    """Describe in a sentence how images of ``height`` x ``width`` pixels are displayed at ``scale``."""
    size = f"Images are {width}x{height} pixels"
    if scale == 1:
        return f"{size}, shown as they are."
    if scale < 1:
        return f"{size}, reduced to {round(width * scale)}x{round(height * scale)} for display."
    method = "by bicubic interpolation" if smooth else "by repeating pixels"
    return f"{size}, enlarged {scale:g} times {method} for display."


class Frame(NamedTuple):
    """A sheet with everything but its images.

    Attributes:
      sheet: the RGB picture, to paste images into.
      draw: for text below them.
      lefts: left edge of the images on each side, in pixels.
      tops: upper edge of each row, in pixels.
    """

    sheet: Image.Image
    draw: ImageDraw.ImageDraw
    lefts: tuple[int, ...]
    tops: tuple[int, ...]

    def save(self, path: str | os.PathLike | None) -> Image.Image:
        """Write the picture to ``path`` as PNG unless it is None, and return it."""
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.sheet.save(path, format="PNG")
        return self.sheet


def draw_frame(
    rows: Sequence[tuple[str, int | None]],
    titles: Sequence[str],
    widths: Sequence[int],
    height: int,
    below: int,
    caption: str,
    headings: Mapping[int, str] | None = None,
) -> Frame:
    """Draw the name of every row, titles above the images on each side, and a caption below.

    Args:
      rows: name of each row from the top: its class, with the number of training images, or None if it has no class.
      titles: of the sides, from the left.
      widths: of the images of each side, in pixels; a side is at least as wide as its title.
      height: of the images, in pixels.
      below: space below the images of each row, in pixels.
      caption: one paragraph of text.
      headings: titles between rows, by the index of the row below.
    """
    bold, text, heading = font(14, bold=True), font(14), font(16, bold=True)
    headings = headings or {}
    counts = ["" if count is None else f" · {count} image{'s' * (count != 1)}" for _, count in rows]
    labels = [bold.getlength(name) + text.getlength(count) for (name, _), count in zip(rows, counts, strict=True)]
    sides = [max(width, math.ceil(heading.getlength(title))) for width, title in zip(widths, titles, strict=True)]
    sides[0] = max([sides[0], *(math.ceil(heading.getlength(title)) for title in headings.values())])
    left = MARGIN + math.ceil(max(labels)) + 16
    lefts = tuple(left + sum(sides[:i]) + 2 * MARGIN * i for i in range(len(sides)))
    right = max(lefts[-1] + sides[-1], _NARROWEST)
    lines = wrap(caption, text, right - MARGIN)
    top, pitch = MARGIN + 30, height + below + GAP
    tops = tuple(top + pitch * i + _BAND * sum(row <= i for row in headings) for i in range(len(rows)))
    bottom = tops[-1] + pitch
    sheet = Image.new("RGB", (right + MARGIN, bottom + 12 + _LINE * len(lines) + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for x, title in zip(lefts, titles, strict=True):
        draw.text((x, MARGIN - 4), title, fill=INK, font=heading)
    for row, title in headings.items():
        draw.text((left, tops[row] - 28), title, fill=INK, font=heading)
    for x in lefts[1:]:
        draw.line([(x - MARGIN, MARGIN), (x - MARGIN, bottom - GAP)], fill=RULE, width=1)
    for y, (name, _), count in zip(tops, rows, counts, strict=True):
        middle = y + height / 2
        draw.text((MARGIN, middle), name, fill=INK, font=bold, anchor="lm")
        draw.text((MARGIN + bold.getlength(name), middle), count, fill=FAINT, font=text, anchor="lm")
    for number, line in enumerate(lines):
        draw.text((MARGIN, bottom + 12 + _LINE * number), line, fill=FAINT, font=text)
    return Frame(sheet, draw, lefts, tops)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break text into lines at most ``width`` pixels long, at spaces."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return lines


def truncate_text(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Truncate text with an ellipsis if it is longer than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1].rstrip()
    return f"{text}…"
