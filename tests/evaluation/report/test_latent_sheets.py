import numpy as np
import pytest
from PIL import Image

from noisytwins_jax.evaluation.report.latent_sheets import Band, interpolation_sheet, truncation_sheet
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


@pytest.fixture
def said(monkeypatch):
    """Every text that is drawn."""
    texts = []
    monkeypatch.setattr(
        "noisytwins_jax.generation.sheet_frame.ImageDraw.ImageDraw.text",
        lambda self, where, text, **_: texts.append((text, where)),
    )
    return texts


def test_bands_come_one_below_the_other_and_steps_from_left_to_right(tmp_path, said):
    bands = [
        Band("in z", flat([[10, 11, 12], [20, 21, 22]]), np.array([[0, 0], [1, 1]])),
        Band("in y", flat([[30, 31, 32]]), np.array([[0, 1]])),
        Band("in both", flat([[40, 41, 42]]), np.array([[1, 0]])),
    ]
    path = tmp_path / "new" / "sheet.png"
    sheet = interpolation_sheet(bands, ["cat", "dog"], path)
    at = {value: places(sheet, value) for value in (*range(10, 13), *range(20, 23), *range(30, 33), *range(40, 43))}
    assert {size for _, _, size in at.values()} == {64 * 64}
    for row in (10, 20, 30, 40):
        assert at[row][0] + 64 <= at[row + 1][0] < at[row + 1][0] + 64 <= at[row + 2][0]
        assert len({at[row + step][1] for step in range(3)}) == 1 and at[row][0] == at[10][0]
    tops = [at[row][1] for row in (10, 20, 30, 40)]
    texts = dict(said)
    assert tops[0] + 64 <= tops[1] < tops[1] + 64 < texts["in y"][1] < tops[2] < tops[2] + 64 < texts["in both"][1]
    assert texts["in both"][1] + 20 <= tops[3] and texts["in z"][1] < tops[0]
    assert {"cat", "dog", "cat → dog", "dog → cat"} <= set(texts)
    assert "1 image in even steps" in " ".join(texts)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(sheet))


def test_truncation_has_a_row_a_strength_and_classes_head_to_tail(tmp_path, said):
    images = {0: flat([[10, 11], [12, 13], [14, 15]]), 1: flat([[20, 21], [22, 23], [24, 25]])}
    path = tmp_path / "sheet.png"
    sheet = truncation_sheet(images, ["none", "ψ = 0.5", "ψ = 0.1"], ["rare", "common"], [3, 90], path)
    at = {value: places(sheet, value) for value in (*range(10, 16), *range(20, 26))}
    assert {size for _, _, size in at.values()} == {64 * 64}
    assert at[20][0] < at[21][0] < at[10][0] < at[11][0]  # class 1 is the head
    for first in (10, 11, 20, 21):
        assert at[first][0] == at[first + 2][0] == at[first + 4][0]
        assert at[first][1] < at[first + 2][1] < at[first + 4][1] and at[first][1] == at[10][1]
    texts = dict(said)
    assert texts["common"][0] == at[20][0] and texts["rare"][0] == at[10][0]
    assert texts["none"][1] < texts["ψ = 0.5"][1] < texts["ψ = 0.1"][1]
    assert "90, 3 training images" in " ".join(texts)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(sheet))


def test_long_names_of_classes_are_cut_off(said):
    name = "a very long name of a class, " * 20
    truncation_sheet({0: flat([[10]])}, ["none"], [name], [3])
    sheet = interpolation_sheet([Band("z", flat([[10, 11]]), np.array([[0, 0]]))], [name])
    assert sheet.width < 700
    drawn = [text for text, _ in said if text.startswith("a very long name")]
    assert len(drawn) == 2 and all(text.endswith("…") and len(text) < 60 for text in drawn)


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_enlarged(channels):
    images = np.full((1, 4, 8, 8, channels), 200, np.uint8)
    sheet = np.asarray(interpolation_sheet([Band("z", images, np.array([[0, 0]]))], ["a"]))
    assert (sheet == 200).all(-1).sum() == 4 * 56 * 56
    sheet = np.asarray(truncation_sheet({0: images}, ["none"], ["a"], [1]))
    assert (sheet == 200).all(-1).sum() == 4 * 56 * 56


def test_errors():
    good, labels = flat([[10, 11]]), np.array([[0, 1]])
    for bands in (
        [],
        [Band("z", good, labels), Band("y", flat([[10, 11]], 32), labels)],
        [Band("z", good, labels[:0])],
        [Band("z", good[:0], labels[:0])],
    ):
        with pytest.raises(UserError, match="bands of rows"):
            interpolation_sheet(bands, ["a", "b"])
    with pytest.raises(UserError, match="uint8"):
        interpolation_sheet([Band("z", good / 255, labels)], ["a", "b"])
    for images in ({}, {0: good}, {0: flat([[10], [11]]), 1: flat([[10], [11]], 32)}, {0: flat(np.zeros((2, 0)))}):
        with pytest.raises(UserError, match="each of 2 strengths"):
            truncation_sheet(images, ["none", "some"], ["a", "b"], [1, 1])
    with pytest.raises(UserError, match="uint8"):
        truncation_sheet({0: good / 255}, ["none"], ["a"], [1])
