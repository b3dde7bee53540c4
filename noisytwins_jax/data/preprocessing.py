"""Crop, resize and colour conversion of images. The steps have a name, since FID depends on the filter.

A preprocessing's name consists of hyphen-separated words:

* ``center``, ``stretch`` or ``pad``: crop the central square, stretch the image to a square, or pad it to one.
* ``lanczos``, ``bicubic``, ``bilinear``, ``box`` or ``hamming``: Pillow's filter, with antialiasing, on uint8.
* ``white``: a white background, for transparent pixels and padding. By default the alpha channel is dropped, as published,
  and padding is black.
* ``edge``: pad by repeating the pixels at the edges; only with ``pad``.
* ``upright``: rotate a photograph according to its EXIF data. By default they are ignored, as published.

``center-lanczos`` is used by all published NoisyTwins runs (PyTorch-StudioGAN): the central square with torchvision's
rounding, then Pillow's Lanczos filter in one step. An image that already has the target size is not resampled.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, ImageOps

from noisytwins_jax.data.aspect import PAD, STRETCH, padded_size
from noisytwins_jax.utils.errors import UserError, did_you_mean

CROPS = ("center", STRETCH, PAD)
FILTERS = ("lanczos", "bicubic", "bilinear", "box", "hamming")
PUBLISHED = "center-lanczos"


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of every image; `name` as in the module's docstring."""

    crop: str = "center"
    filter: str = "lanczos"
    white: bool = False
    upright: bool = False
    edge: bool = False

    @classmethod
    def parse(cls, name: str) -> "Preprocessing":
        """Parse a name, whose words may be in any order.

        Raises:
          UserError: a word is unknown or without effect, or two are of one kind.
        """
        words = name.split("-")
        valid = (*CROPS, *FILTERS, "edge", "white", "upright")
        for word in words:
            if word not in valid:
                raise UserError(f"The preprocessing {name!r} has no meaning for {word!r}; {did_you_mean(word, valid)}")
        crops = [word for word in words if word in CROPS]
        filters = [word for word in words if word in FILTERS]
        if len(crops) > 1 or len(filters) > 1 or len(set(words)) < len(words):
            raise UserError(f"The preprocessing {name!r} says one thing twice; give for example {PUBLISHED}.")
        if "edge" in words and PAD not in words:
            raise UserError(f"The preprocessing {name!r} pads nothing, so edge has no effect; give {PAD}-edge.")
        flags = {flag: flag in words for flag in ("white", "upright", "edge")}
        return cls(*(crops or ["center"]), *(filters or ["lanczos"]), **flags)

    @property
    def name(self) -> str:
        """The name, its words in canonical order."""
        flags = [flag for flag in ("edge", "white", "upright") if getattr(self, flag)]
        return "-".join([self.crop, self.filter, *flags])

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
        return self.fit(self.load(source, channels, on_convert), resolution)

    def load(
        self, source: bytes | np.ndarray, channels: int = 3, on_convert: Callable[[str], None] = lambda kind: None
    ) -> Image.Image:
        """Decode an image, in its own size; see `__call__`."""
        if isinstance(source, np.ndarray):
            image = Image.fromarray(source)
        else:
            ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library in this process may have set it
            image = Image.open(io.BytesIO(source))
            image.load()  # raises here for a truncated file
        if self.upright:
            image = ImageOps.exif_transpose(image)
        return self._convert_mode(image, channels, on_convert)

    def fit(self, image: Image.Image, resolution: int) -> np.ndarray:
        """Make an image from `load` a square: uint8 ``[resolution, resolution, C]``."""
        size = resolution, resolution
        if self.crop == PAD:
            size = padded_size(resolution, image.width / image.height)
        elif self.crop == "center" and image.size != size:
            image = _center_crop(image)
        if image.size != size:
            image = image.resize(size, Image.Resampling[self.filter.upper()])
        pixels = np.asarray(image, np.uint8).reshape(image.height, image.width, -1)
        width, height = (((resolution - n) // 2, (resolution - n + 1) // 2) for n in size)
        options = {"mode": "edge"} if self.edge else {"constant_values": 255 if self.white else 0}
        return np.pad(pixels, (height, width, (0, 0)), **options) if self.crop == PAD else pixels

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
