import math

import numpy as np
import pytest
from PIL import Image

from noisytwins_jax.evaluation.report.neighbour_sheet import neighbour_sheet
from noisytwins_jax.utils.errors import UserError


def flat(values, side=64):
    """Images of one colour, (value, 0, 0), of the shape of ``values``."""
    images = np.zeros((*np.shape(values), side, side, 3), np.uint8)
    images[..., 0] = np.asarray(values)[..., None, None]
    return images


def places(sheet, value):
    """Left and top of an image of one colour, and how many pixels it has."""
    found = (np.asarray(sheet) == [value, 0, 0]).all(-1)
    return int(found.any(0).argmax()), int(found.any(1).argmax()), int(found.sum())


def test_rows_run_from_head_to_tail_and_neighbours_from_left_to_right(tmp_path):
    fakes, nearest = flat([10, 20, 30]), flat([[110, 111], [120, 121], [130, 131]])
    distances = np.array([[1.0, 2.0], [3.0, math.inf], [5.0, 6.0]])
    path = tmp_path / "new" / "sheet.png"
    sheet = neighbour_sheet(fakes, nearest, distances, [1, 0, 1], ["rare", "common"], [1, 90], path)
    at = {value: places(sheet, value) for value in (10, 20, 30, 110, 111, 120, 130, 131)}
    assert {size for _, _, size in at.values()} == {64 * 64}  # shown as they are
    assert at[10][1] < at[30][1] < at[20][1]  # class 1 is the head; in the order given within it
    for fake, first in ((10, 110), (20, 120), (30, 130)):
        assert at[fake][1] == at[first][1] and at[fake][0] + 64 < at[first][0]
    assert at[110][0] + 64 <= at[111][0] and at[110][1] == at[111][1] and at[110][0] == at[130][0]
    assert places(sheet, 121)[2] == 0  # there is no such neighbour
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(sheet))


def test_neighbours_in_pixels_are_a_group_of_their_own(monkeypatch):
    texts = []
    monkeypatch.setattr(
        "noisytwins_jax.generation.sheet_frame.ImageDraw.ImageDraw.text",
        lambda self, where, text, **_: texts.append((text, where)),
    )
    fakes, features = flat([10, 20]), (flat([[110, 111], [120, 121]]), np.array([[1.0, 2.0], [3.0, 4.0]]))
    pixels = flat([[210, 211, 212], [220, 221, 222]]), np.array([[5.0, 6.0, 7.0], [8.0, 9.0, math.inf]])
    sheet = neighbour_sheet(fakes, *features, [0, 1], ["a", "b"], [9, 5], in_pixels=pixels)
    at = {value: places(sheet, value) for value in (10, 20, 110, 111, 120, 121, 210, 211, 212, 220, 221)}
    assert {size for _, _, size in at.values()} == {64 * 64} and places(sheet, 222)[2] == 0
    assert at[10][0] < at[110][0] < at[111][0] < at[210][0] < at[211][0] < at[212][0]
    assert at[10][1] == at[110][1] == at[210][1] < at[20][1] == at[120][1] == at[220][1]
    where = dict(texts)
    assert where["Nearest in feature space"][0] == at[110][0] and where["Nearest in pixels"][0] == at[210][0]
    assert where["5.00"] == (at[210][0], at[210][1] + 65) and "root mean square" in " ".join(where)
    with pytest.raises(UserError, match="as many"):
        neighbour_sheet(fakes, *features, [0, 1], ["a", "b"], [9, 5], in_pixels=(pixels[0], pixels[1][:, :2]))


@pytest.mark.parametrize(("names", "order"), [(["all"], False), (["head", "tail"], True)])
def test_the_caption_speaks_of_head_and_tail_where_there_are_classes(monkeypatch, names, order):
    said = []
    monkeypatch.setattr("noisytwins_jax.generation.sheet_frame.wrap", lambda text, *_: said.append(text) or [text])
    neighbour_sheet(flat([10]), flat([[20]]), np.ones((1, 1)), [0], names, [3] * len(names))
    assert ("head to tail" in said[0]) == order and "with their distances" in said[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_enlarged_by_a_whole_number(channels):
    fakes = np.full((1, 8, 8, channels), 200, np.uint8)
    nearest = np.full((1, 3, 8, 8, channels), 100, np.uint8)
    sheet = np.asarray(neighbour_sheet(fakes, nearest, np.ones((1, 3)), [0], ["a"], [3]))
    cell = (sheet == 200).all(-1)  # text and rules have other colours
    assert cell[:, cell.any(0)].any(1).sum() == 56
    assert (sheet == 100).all(-1).sum() == 3 * 56 * 56


def test_each_distance_is_written_below_its_image():
    near, far = (
        np.asarray(neighbour_sheet(flat([10]), flat([[110]]), np.array([[d]]), [0], ["a"], [1])) for d in (1.5, 250.0)
    )
    x, y, _ = places(near, 110)
    changed = (near != far).any(-1)
    assert changed.any() and changed[y + 64 : y + 84, x : x + 64].sum() == changed.sum()


def test_errors():
    good = (flat([10]), flat([[110, 111]]), np.ones((1, 2)), [0], ["a"], [1])
    for position, value, message in (
        (0, flat([10]) / 255, "uint8"),
        (1, flat([110]), "n, k"),
        (1, flat([[110, 111]], 32), "n, k"),
        (1, flat([[110, 111]])[..., :32, :], "as many"),
        (2, np.ones((1, 3)), "as many"),
        (3, [0, 0], "as many"),
        (1, flat(np.zeros((1, 0))), "as many"),
    ):
        arguments = [*good]
        arguments[position] = value
        with pytest.raises(UserError, match=message):
            neighbour_sheet(*arguments)
