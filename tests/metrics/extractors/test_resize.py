import itertools

import jax
import numpy as np
import pytest
from golden_numbers import Golden, nhwc
from PIL import Image

from noisytwins_jax.metrics.extractors import resize as module
from noisytwins_jax.metrics.extractors.resize import (
    KINDS,
    center_crop,
    resize,
    resize_matrix,
    resize_uint8,
    short_side_crop_uint8,
    short_side_size,
)
from noisytwins_jax.utils.errors import UserError

FILTERS = {
    "pillow_box": Image.Resampling.BOX,
    "pillow_bilinear": Image.Resampling.BILINEAR,
    "pillow_bicubic": Image.Resampling.BICUBIC,
    "pillow_lanczos": Image.Resampling.LANCZOS,
}
# Height and width before and after: up, down, one of each, one side as it is, odd, tiny, by whole factors.
SIZES = [
    ((16, 16), (61, 61)),
    ((61, 47), (16, 15)),
    ((33, 20), (20, 33)),
    ((24, 17), (24, 40)),
    ((1, 3), (5, 2)),
    ((64, 32), (8, 8)),
]


def pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Return uint8 noise with many pixels at the ends of the range, so that overshooting filters are clipped."""
    noise = np.random.default_rng(seed).integers(-100, 356, (height, width, channels))
    return noise.clip(0, 255).astype(np.uint8)


def pillow(image: np.ndarray, size: tuple[int, int], kind: str) -> np.ndarray:
    """Resize with Pillow, width first in every version; uint8, or float32 (mode "F", channel by channel)."""
    height, width = size
    filter = FILTERS[kind]
    channels = [Image.fromarray(channel) for channel in np.moveaxis(image, 2, 0)]
    channels = [channel.resize((width, channel.height), filter).resize((width, height), filter) for channel in channels]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_8_bit_images_are_pillows_pixel_for_pixel(sizes, kind):
    before, after = sizes
    channels = 1 if before[0] == 33 else 3
    images = np.stack([pixels(*before, channels, seed) for seed in range(2)])
    result = resize_uint8(images, *after, kind)
    assert result.dtype == np.uint8 and result.shape == (2, *after, channels)
    np.testing.assert_array_equal(result, [pillow(image, after, kind) for image in images])


def test_square_rgb_images_are_pillows_in_one_call():
    for before, after in ((32, 224), (256, 224), (61, 16)):
        image = pixels(before, before)
        expected = Image.fromarray(image).resize((after, after), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(resize_uint8(image[None], after, after, "pillow_bicubic")[0], expected)


def test_integer_weights_are_pillows_for_every_size():
    """One row of pixels, each in turn the only white one, shows the weights themselves; no compilation."""
    with jax.disable_jit():
        for size_in, size_out, kind in itertools.product((7, 23), (9,), FILTERS):
            images = (np.eye(size_in) * 255).astype(np.uint8)[:, None, :, None]
            expected = [pillow(image, (1, size_out), kind) for image in images]
            np.testing.assert_array_equal(module._resize_side_uint8(images, 2, size_out, kind), expected)


@pytest.mark.parametrize("kind", FILTERS)
def test_float_images_are_pillows(kind):
    for before, after in SIZES:
        image = pixels(*before).astype(np.float32)
        result = resize(image[None], *after, kind)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result[0], pillow(image, after, kind), rtol=0, atol=1e-4)


def test_tensorflow_1_bilinear_reproduces_the_reference():
    golden = Golden("inception_fid")
    images = nhwc(golden["in/images_64x64"]).astype(np.float32)
    for size in ((37, 29), (9, 11), (64, 64)):
        expected = nhwc(golden[f"out/resize_tf1_crop16/{size[0]}x{size[1]}"])
        np.testing.assert_allclose(resize(images[:, :16, :16], *size, "tf1_bilinear"), expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("kind, name", [("tf1_bilinear", "tf1"), ("torch_bilinear", "legacy")])
def test_bilinear_to_299_reproduces_the_reference(kind, name):
    golden = Golden("inception_fid")
    images = nhwc(golden["in/images_64x64"]).astype(np.float32)
    rows = np.asarray(resize(images, 299, 299, kind))[:, [0, 1, 2, 149, 297, 298]]
    np.testing.assert_allclose(rows, nhwc(golden[f"out/resize_{name}_299_rows"]), rtol=0, atol=1e-3)


def test_torch_bicubic_has_its_own_weights_and_repeats_the_edge():
    """By hand, 4 pixels to 8: a = -3/4 at distances 1/4, 3/4, 5/4 and 7/4 gives -9/256, 67/256, 225/256, -27/256."""
    far, next_, near, other = -9 / 256, 67 / 256, 225 / 256, -27 / 256
    matrix = resize_matrix(4, 8, "torch_bicubic")
    np.testing.assert_allclose(matrix[3], [other, near, next_, far], atol=1e-15)
    np.testing.assert_allclose(matrix[4], [far, next_, near, other], atol=1e-15)
    np.testing.assert_allclose(matrix[0], [far + next_ + near, other, 0, 0], atol=1e-15)
    np.testing.assert_allclose(matrix[7], [0, 0, other, far + next_ + near], atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_torch_kinds_are_torchs(mode):
    torch = pytest.importorskip("torch")
    for before, after in (*SIZES, ((64, 64), (299, 299)), ((500, 375), (224, 224))):
        images = pixels(*before)[None]
        expected = torch.nn.functional.interpolate(  # in float64: in float32 its positions are off by up to 1e-5 pixels
            torch.from_numpy(images).permute(0, 3, 1, 2).double(), after, mode=mode, align_corners=False
        )
        actual = resize(images.astype(np.float32), *after, f"torch_{mode}")
        np.testing.assert_allclose(actual, expected.permute(0, 2, 3, 1).numpy(), rtol=0, atol=3e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_keep_constants_and_the_identity(kind):
    for size_in, size_out in itertools.product((1, 2, 13, 64), (1, 3, 13, 100)):
        matrix = resize_matrix(size_in, size_out, kind)
        assert matrix.shape == (size_out, size_in) and matrix.dtype == np.float64
        np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(resize_matrix(13, 13, kind), np.eye(13), atol=1e-12)


@pytest.mark.parametrize("height, width", [(50, 70), (70, 51), (24, 24), (33, 90), (32, 47), (20, 31)])
def test_short_side_and_crop_is_clips(height, width):
    """The definition: the shorter side to 24, the longer one rounded down, then the crop with halves to even."""
    image = pixels(height, width)
    scaled = (24, 24 * width // height) if height <= width else (24 * height // width, 24)
    assert short_side_size(height, width, 24) == scaled
    full = pillow(image, scaled, "pillow_bicubic")
    top, left = ((rest := side - 24) // 2 + (rest % 4 == 3) for side in scaled)
    expected = full[top : top + 24, left : left + 24]
    np.testing.assert_array_equal(short_side_crop_uint8(image[None], 24, "pillow_bicubic")[0], expected)


def test_center_crop_rounds_halves_to_even():
    images = np.arange(5)[None, :, None, None] + 10 * np.arange(7)[None, None, :, None]
    crop = center_crop(images, 4)[0, :, :, 0]  # offsets 0.5 -> 0 and 1.5 -> 2
    np.testing.assert_array_equal(crop, images[0, 0:4, 2:6, 0])


def test_pillow_presets_of_clip_reproduce_the_reference():
    golden = Golden("clip_vit_tiny")
    for name in ("sq", "rect"):
        image = golden[f"in/image_{name}"]
        crop = short_side_crop_uint8(image[None], 32, "pillow_bicubic")[0]
        np.testing.assert_array_equal(crop, golden[f"out/pil_bicubic_{name}"])
        stretched = resize(image[None].astype(np.float32), 32, 32, "torch_bicubic")[0].clip(0, 255)
        np.testing.assert_allclose(stretched, golden[f"out/torch_bicubic_{name}"], rtol=0, atol=5e-4)


def test_unknown_kinds_and_empty_sizes_are_one_sentence():
    images = np.zeros((1, 4, 4, 3), np.uint8)
    with pytest.raises(UserError, match=r"no resizing 'pillow_bicubc'; did you mean 'pillow_bicubic'\?"):
        resize(images.astype(np.float32), 8, 8, "pillow_bicubc")
    with pytest.raises(
        UserError, match=r"8-bit images have no resizing 'torch_bicubic'; did you mean 'pillow_bicubic'"
    ):
        resize_uint8(images, 8, 8, "torch_bicubic")
    for call in (lambda: resize_uint8(images, 8, 0, "pillow_box"), lambda: resize_matrix(0, 3, "tf1_bilinear")):
        with pytest.raises(UserError, match="must have at least 1 pixel"):
            call()
