"""Crop, resize and colour conversion of images. The steps have a name, since FID depends on the filter.

A preprocessing's name consists of hyphen-separated words:

* ``center`` or ``stretch``: crop the central square, or stretch the image to a square.
* ``lanczos``, ``bicubic``, ``bilinear``, ``box`` or ``hamming``: Pillow's filter, with antialiasing, on uint8.
* ``white``: composite transparent pixels onto white. By default the alpha channel is dropped, as published.
* ``upright``: rotate a photograph according to its EXIF data. By default they are ignored, as published.

``center-lanczos`` is used by all published NoisyTwins runs (PyTorch-StudioGAN): the central square with torchvision's
rounding, then Pillow's Lanczos filter in one step. An image that already has the target size is not resampled.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, ImageOps

from noisytwins_jax.utils.errors import UserError, did_you_mean

FILTERS = ("lanczos", "bicubic", "bilinear", "box", "hamming")
PUBLISHED = "center-lanczos"


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of every image; `name` as in the module's docstring."""

    crop: str = "center"
    filter: str = "lanczos"
    white: bool = False
    upright: bool = False

    @classmethod
    def parse(cls, name: str) -> "Preprocessing":
        """Parse a name, whose words may be in any order.

        Raises:
          UserError: a word is unknown, or two are of one kind.
        """
        words = name.split("-")
        valid = ("center", "stretch", *FILTERS, "white", "upright")
        for word in words:
            if word not in valid:
                raise UserError(f"The preprocessing {name!r} has no meaning for {word!r}; {did_you_mean(word, valid)}")
        crops = [word for word in words if word in ("center", "stretch")]
        filters = [word for word in words if word in FILTERS]
        if len(crops) > 1 or len(filters) > 1 or len(set(words)) < len(words):
            raise UserError(f"The preprocessing {name!r} says one thing twice; give for example {PUBLISHED}.")
        return cls(
            *(crops or ["center"]), *(filters or ["lanczos"]), white="white" in words, upright="upright" in words
        )

    @property
    def name(self) -> str:
        """The name, its words in canonical order."""
        words = [self.crop, self.filter, *(["white"] if self.white else []), *(["upright"] if self.upright else [])]
        return "-".join(words)

    def __call__(
        self,
        source: bytes | np.ndarray,
        resolution: int,
        channels: int = 3,
        on_convert: Callable[[str], None] = lambda kind: None,
    ) -> np.ndarray:
        """Preprocess an image.

        Args:
          source: an image file's bytes, or pixels uint8 ``[H, W]`` or ``[H, W, 3]``.
          resolution: height and width of the result.
          channels: 3 for RGB, 1 for grey (ITU-R 601 luma, as in Pillow).
          on_convert: called with the kind of a converted image: ``"grey images"``, ``"CMYK images"``, ….

        Returns:
          uint8 ``[resolution, resolution, channels]``.

        Raises:
          OSError, ValueError: the image cannot be read.
        """
        if isinstance(source, np.ndarray):
            image = Image.fromarray(source)
        else:
            ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library in this process may have set it
            image = Image.open(io.BytesIO(source))
            image.load()  # raises here for a truncated file
        if self.upright:
            image = ImageOps.exif_transpose(image)
        image = self._convert_mode(image, channels, on_convert)
        if image.size != (resolution, resolution):
            if self.crop == "center":
                image = _center_crop(image)
            image = image.resize((resolution, resolution), Image.Resampling[self.filter.upper()])
        return np.asarray(image, np.uint8).reshape(resolution, resolution, channels)

    def _convert_mode(self, image: Image.Image, channels: int, on_convert: Callable[[str], None]) -> Image.Image:
        mode = "RGB" if channels == 3 else "L"
        if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip such values at 255
            on_convert("images of 16 or 32 bits a channel")
            values = np.asarray(image, np.float64)
            scale = 257.0 if image.mode.startswith("I") else 1.0
            image = Image.fromarray(np.clip(np.round(values / scale), 0, 255).astype(np.uint8))
        elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            on_convert("images with transparency")
            if self.white:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        elif image.mode in ("1", "L") and channels == 3:
            on_convert("grey images")
        elif image.mode not in ("1", "L", "RGB", "P"):
            on_convert(f"{image.mode} images")
        elif image.mode == "RGB" and channels == 1:
            on_convert("colour images")
        return image if image.mode == mode else image.convert(mode)


def _center_crop(image: Image.Image) -> Image.Image:
    """Crop the largest central square, with the rounding of torchvision's ``center_crop``."""
    width, height = image.size
    side = min(width, height)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))
