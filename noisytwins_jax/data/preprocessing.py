"""From a picture to a square of pixels: crop, resize, colours. Named, because FID hangs on the filter.

A preprocessing is named by words with hyphens between:

* ``center`` or ``stretch``: crops the central square, or stretches the picture to a square.
* ``lanczos``, ``bicubic``, ``bilinear``, ``box`` or ``hamming``: Pillow's filter, with antialiasing, on uint8.
* ``white``: transparent pixels show white. Otherwise the alpha channel is dropped, as published.
* ``upright``: turns a photograph the way its EXIF data say. Otherwise they are ignored, as published.

``center-lanczos`` is that of all published NoisyTwins runs (PyTorch-StudioGAN's): central square with torchvision's
rounding, then Pillow's Lanczos filter in one step. A picture that already has the size is left as it is.
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
    """What is done to every picture; `name` as in the module's docstring."""

    crop: str = "center"
    filter: str = "lanczos"
    white: bool = False
    upright: bool = False

    @classmethod
    def parse(cls, name: str) -> "Preprocessing":
        """The preprocessing of a name, whose words may stand in any order.

        Raises:
          UserError: a word that there is not, or two of one kind.
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
        """The words in their usual order."""
        words = [self.crop, self.filter, *(["white"] if self.white else []), *(["upright"] if self.upright else [])]
        return "-".join(words)

    def __call__(
        self,
        picture: bytes | np.ndarray,
        resolution: int,
        channels: int = 3,
        converted: Callable[[str], None] = lambda kind: None,
    ) -> np.ndarray:
        """Pixels of a picture.

        Args:
          picture: an image file's bytes, or pixels uint8 ``[H, W]`` or ``[H, W, 3]``.
          resolution: height and width of the result.
          channels: 3 for RGB, 1 for grey (ITU-R 601 luma, as Pillow's).
          converted: told what had to be converted: ``"grey images"``, ``"CMYK images"``, ….

        Returns:
          uint8 ``[resolution, resolution, channels]``.

        Raises:
          OSError, ValueError: the picture cannot be read.
        """
        if isinstance(picture, np.ndarray):
            image = Image.fromarray(picture)
        else:
            ImageFile.LOAD_TRUNCATED_IMAGES = False  # other libraries of the process may have set it
            image = Image.open(io.BytesIO(picture))
            image.load()  # all of it: a truncated file is an error here
        if self.upright:
            image = ImageOps.exif_transpose(image)
        image = self._to_colours(image, channels, converted)
        if image.size != (resolution, resolution):
            if self.crop == "center":
                image = _central_square(image)
            image = image.resize((resolution, resolution), Image.Resampling[self.filter.upper()])
        return np.asarray(image, np.uint8).reshape(resolution, resolution, channels)

    def _to_colours(self, image: Image.Image, channels: int, converted: Callable[[str], None]) -> Image.Image:
        mode = "RGB" if channels == 3 else "L"
        if image.mode.startswith("I") or image.mode == "F":  # Pillow would cut such values off at 255
            converted("images of 16 or 32 bits a channel")
            values = np.asarray(image, np.float64)
            scale = 257.0 if image.mode.startswith("I") else 1.0
            image = Image.fromarray(np.clip(np.round(values / scale), 0, 255).astype(np.uint8))
        elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            converted("images with transparency")
            if self.white:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        elif image.mode in ("1", "L") and channels == 3:
            converted("grey images")
        elif image.mode not in ("1", "L", "RGB", "P"):
            converted(f"{image.mode} images")
        elif image.mode == "RGB" and channels == 1:
            converted("colour images")
        return image if image.mode == mode else image.convert(mode)


def _central_square(image: Image.Image) -> Image.Image:
    """The largest central square, with the rounding of torchvision's ``center_crop``."""
    width, height = image.size
    side = min(width, height)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))
