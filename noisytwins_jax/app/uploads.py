"""Pictures that somebody uploads: checked before they are decoded."""

import io

import numpy as np
from PIL import Image

from noisytwins_jax.data.preprocessing import Preprocessing
from noisytwins_jax.utils.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_BYTES = 10 * 2**20
MAX_PIXELS = 5000 * 5000
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")


def read_upload(data: bytes, resolution: int, channels: int, preprocessing: str = "") -> np.ndarray:
    """Decode an uploaded picture as the training images were: uint8 ``[resolution, resolution, channels]``.

    Args:
      data: the file.
      resolution: height and width of the result.
      channels: 1 or 3.
      preprocessing: its name, see `data.preprocessing`; that of the published runs by default. Photographs are turned
        upright.

    Raises:
      UserError: it is no picture of these formats, is damaged, or is too large.
    """
    if len(data) > MAX_BYTES:
        raise UserError(f"The file has more than {MAX_BYTES / 2**20:g} MB; reduce the picture first.")
    words = [*preprocessing.split("-"), "upright"] if preprocessing else ["upright"]
    convert = Preprocessing.parse("-".join(dict.fromkeys(words)))
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:  # reads the header alone
            pixels = image.width * image.height
        if pixels <= MAX_PIXELS:
            return convert(data, resolution, channels)
    except Exception:  # Pillow raises many types
        raise UserError(f"This is no picture that can be read; give one as {', '.join(_FORMATS)}.") from None
    raise UserError(f"The picture has more than {MAX_PIXELS / 1e6:g} million pixels; reduce it first.")
