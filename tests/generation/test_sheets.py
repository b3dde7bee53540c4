import numpy as np
import pytest
from PIL import Image

from noisytwins_jax.generation.sheet_frame import GAP, INK, MARGIN, RULE, describe_scale, display_scale
from noisytwins_jax.generation.sheets import head_to_tail, image_grid, sample_sheet
from noisytwins_jax.utils.errors import UserError


def flat(value, count, side=32, channels=3):
    """Images of one colour: (value, 0, 0) or grey value."""
    images = np.zeros((count, side, side, channels), np.uint8)
    images[..., 0] = value
    return images


def row_values(sheet, x, values):
    """The given red values in the order in which they occur down column ``x``."""
    column = np.asarray(sheet)[:, x]
    found = [int(red) for red, green, blue in column if green == 0 and blue == 0 and red in values]
    return list(dict.fromkeys(found))


def test_rows_run_from_head_to_tail_with_real_left_and_generated_right():
    real = {0: flat(10, 2), 1: flat(20, 2), 2: flat(30, 2)}
    fake = {0: flat(110, 3), 1: flat(120, 3), 2: flat(130, 3)}
    sheet = sample_sheet(real, fake, ["a", "b", "c"], [5, 90, 40], scale=1)
    pixels = np.asarray(sheet)
    reds = [np.flatnonzero(((pixels == [value, 0, 0]).all(-1)).any(0)) for value in (20, 120)]
    assert len(reds[0]) == 2 * 32 and len(reds[1]) == 3 * 32
    assert reds[0].max() + 8 * GAP < reds[1].min()  # a clear gap
    assert row_values(sheet, reds[0].min(), {10, 20, 30}) == [20, 30, 10]
    assert row_values(sheet, reds[1].min(), {110, 120, 130}) == [120, 130, 110]


def test_a_rare_class_leaves_its_row_empty_and_a_missing_one_too(tmp_path):
    real = {0: flat(10, 4), 1: flat(20, 1)}
    fake = {0: flat(110, 2), 1: flat(120, 2), 2: flat(130, 2)}
    sheet = sample_sheet(real, fake, ["a", "b", "c"], [50, 1, 0], tmp_path / "new" / "sheet.png", scale=1)
    counts = {value: int((np.asarray(sheet) == [value, 0, 0]).all(-1).sum()) for value in (10, 20, 110, 120, 130)}
    assert counts == {10: 4 * 1024, 20: 1024, 110: 2048, 120: 2048, 130: 2048}
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "sheet.png")), np.asarray(sheet))


@pytest.mark.parametrize("channels", [1, 3])
def test_enlargement(channels):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, channels), np.uint8)
    exact = np.asarray(image_grid(images, columns=2, scale=3, smooth=False))
    assert exact.shape == (24 + 2 * GAP, 2 * 24 + 3 * GAP, 3)
    shown = exact[GAP : GAP + 24 : 3, GAP : GAP + 24 : 3]
    np.testing.assert_array_equal(shown, np.broadcast_to(images[0], (8, 8, 3)))
    smooth = np.asarray(image_grid(images, columns=2, scale=3))
    assert smooth.shape == exact.shape and (smooth != exact).any()


def test_grid_is_filled_from_left_to_right():
    images = np.concatenate([flat(value, 1, 64) for value in (10, 20, 30)])
    pixels = np.asarray(image_grid(images, columns=2, scale=1))
    cell = 64 + GAP
    assert [pixels[GAP, GAP, 0], pixels[GAP, GAP + cell, 0], pixels[GAP + cell, GAP, 0]] == [10, 20, 30]
    assert (pixels[GAP + cell :, GAP + cell :] == 255).all()


def test_large_images_are_reduced_and_small_ones_enlarged():
    assert [display_scale(side) for side in (8, 16, 32, 64, 128, 256)] == [7, 4, 2, 1, 1, 0.5]
    assert image_grid(flat(9, 1, 256)).width == 128 + 2 * GAP
    assert "reduced to 128x128" in describe_scale(256, 256, 0.5)
    assert "enlarged 7 times by bicubic" in describe_scale(8, 8, 7.0)
    assert "as they are" in describe_scale(64, 64, 1.0)


def test_head_to_tail_breaks_ties_by_class_id():
    assert head_to_tail([5, 9, 5, 1]) == [1, 0, 2, 3]
    assert head_to_tail(np.array([5, 9, 5, 1]), [3, 2]) == [2, 3]


def test_errors():
    with pytest.raises(UserError, match="uint8"):
        image_grid(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(UserError, match="at least one"):
        image_grid(np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="one size"):
        sample_sheet({0: flat(1, 1, 8)}, {0: flat(1, 1, 16)}, ["a"], [1])
    with pytest.raises(UserError, match="one size"):
        sample_sheet({}, {}, [], [])


def test_the_title_of_a_side_without_images_has_room():
    """The dividing line stays right of it."""
    sheet = np.asarray(sample_sheet({}, {0: flat(110, 1, 64)}, ["a"], [1], scale=1))
    ink = (sheet[:44] == INK).all(-1).any(0)
    divider = int((sheet == RULE).all(-1).sum(0).argmax())
    title = [int(x) for x in np.flatnonzero(ink) if x < divider]
    assert title[-1] - title[0] > 25 and divider - title[-1] >= MARGIN - 4
