"""Uploaded pictures, good and bad."""

import io

import numpy as np
import pytest
from PIL import Image

from noisytwins_jax.app import uploads
from noisytwins_jax.app.uploads import read_upload
from noisytwins_jax.utils.errors import UserError


def encode(image, suffix="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=suffix, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_prepared_like_training_images(suffix, channels):
    picture = encode(Image.new("RGB", (40, 30), (200, 200, 200)), suffix)
    image = read_upload(picture, 8, channels)
    assert image.shape == (8, 8, channels) and image.dtype == np.uint8 and np.abs(image.astype(int) - 200).max() <= 2


def test_photographs_are_turned_upright():
    image = Image.new("L", (8, 8))
    image.paste(255, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = read_upload(encode(image, exif=exif), 8, 1)
    assert turned[:, 4:].min() == 255 and turned[:, :4].max() == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encode(Image.new("L", (64, 64)))[:60],
        encode(Image.effect_noise((64, 64), 50))[:-900],
        encode(Image.new("L", (8, 8)), "GIF"),
        encode(Image.new("L", (8, 8)), "TIFF"),
    ],
)
def test_what_is_no_picture(data):
    with pytest.raises(UserError, match="no picture that can be read"):
        read_upload(data, 8, 1)


def test_large_pictures_are_refused_before_they_are_decoded(monkeypatch):
    bomb = encode(Image.new("1", (6000, 6000)))
    assert len(bomb) < 10_000
    monkeypatch.setattr(uploads.Preprocessing, "__call__", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match="more than 25 million pixels"):
        read_upload(bomb, 8, 1)
    with pytest.raises(UserError, match="more than 10 MB"):
        read_upload(bytes(uploads.MAX_BYTES + 1), 8, 1)
