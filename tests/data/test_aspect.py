import numpy as np
import pytest
from PIL import Image

from noisytwins_jax.data.aspect import Aspect, restore_aspect, shared_aspect
from noisytwins_jax.data.preprocessing import Preprocessing

WIDE, TALL = (60, 40), (40, 60)


def smooth(width, height, channels=3):
    """A smooth picture without symmetry, uint8 ``[height, width, channels]``."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return (np.stack([200 * x, 200 * y * y, 120 * x * y + 60], axis=-1)[..., :channels]).astype(np.uint8)


def test_one_ratio_is_shared_up_to_its_rounding():
    sizes = [(1200, 800), (600, 401), (599, 400), (60, 40)]
    for fit in ("pad", "stretch"):
        assert shared_aspect(sizes, fit) == Aspect(fit, 1.5)
    assert shared_aspect([(400, 600)] + [(h, w) for w, h in sizes], "pad") == Aspect("pad", 0.6667)
    assert shared_aspect(sizes, "center") is None and shared_aspect([], "pad") is None


def test_nearly_all_pictures_have_to_share_it():
    assert shared_aspect([WIDE] * 95 + [TALL] * 5, "pad") == Aspect("pad", 1.5)
    assert shared_aspect([WIDE] * 94 + [TALL] * 6, "pad") is None
    assert shared_aspect([WIDE] * 50 + [TALL] * 50, "stretch") is None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [WIDE, TALL, (50, 37), (33, 32), (300, 2), (2, 300)])
def test_what_padding_added_is_cropped_exactly(size, channels):
    longer, ratio = 32 / max(size), size[0] / size[1]
    resized = [max(1, round(n * longer)) for n in size]
    square = Preprocessing.parse("pad")(smooth(*size, channels).squeeze(), 32, channels)
    (shown,) = restore_aspect(square[None], Aspect("pad", ratio))
    assert shown.shape == (*resized[::-1], channels)
    picture = Image.fromarray(smooth(*size, channels).squeeze()).resize(resized, Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(shown, np.asarray(picture).reshape(shown.shape))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [WIDE, TALL])
def test_what_was_stretched_is_stretched_back(size, channels):
    square = Preprocessing.parse("stretch")(smooth(*size, channels).squeeze(), 40, channels)
    (shown,) = restore_aspect(square[None], Aspect("stretch", size[0] / size[1]))
    assert shown.shape == (size[1], size[0], channels)
    assert np.abs(shown.astype(int) - smooth(*size, channels)).max() <= 6


def test_squares_stay_as_they_are():
    images = np.stack([smooth(16, 16), smooth(16, 16)[::-1]])
    for aspect in (None, Aspect("pad", 1.0), Aspect("stretch", 1.0)):
        np.testing.assert_array_equal(restore_aspect(images, aspect), images)
