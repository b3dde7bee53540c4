"""``--mode=sample --directions``: a sheet a direction, with the sample in the middle of each row."""

import numpy as np
import pytest
from PIL import Image
from test_projection import CLASSES, trained

from noisytwins_jax.config import flatten, parse_flat
from noisytwins_jax.generation import direction_sheets
from noisytwins_jax.generation import sample as sample_module
from noisytwins_jax.generation.direction_sheets import write_directions
from noisytwins_jax.generation.projection import mean_w
from noisytwins_jax.generation.sample import sample
from noisytwins_jax.generation.sefa import directions
from noisytwins_jax.utils.errors import UserError


@pytest.mark.parametrize("truncation", ["", "0.5"])
def test_images_move_along_directions(tmp_path, monkeypatch, truncation):
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(sample_module, "load", lambda *_: trained())
    drawn = []
    monkeypatch.setattr(
        direction_sheets, "write_row_sheet", lambda path, names, sides, _: drawn.append((path, names, *sides[0]))
    )
    config = parse_flat(flatten(trained().config))
    folder = sample(config, tmp_path, "latest", ["c", 0], 1, truncation, seed=2, directions=3)
    assert folder.name == f"step0-{'psi0.5' if truncation else 'untruncated'}-seed2-directions"
    assert [path.name for path, *_ in drawn] == [f"direction-{i}.png" for i in (1, 2, 3)]
    arrays = np.load(folder / "directions.npz")
    expected, strengths = directions(trained().variables, count=3)
    np.testing.assert_array_equal(arrays["directions"], expected)
    np.testing.assert_array_equal(arrays["strengths"], strengths)
    assert arrays["labels"].tolist() == [2, 0] and arrays["steps"].shape == (2, 9)
    np.testing.assert_allclose(arrays["steps"][0, -1], 4 * mean_w(trained(), 2, seed=2)[1] / np.sqrt(8), rtol=1e-5)
    psi = 0.5 if truncation else None
    samples = trained().sample([2, 0], seed=2, psi=psi, noise_mode="const").astype(int)
    for (_, names, title, images), direction, number in zip(drawn, expected, (1, 2, 3), strict=True):
        assert names == [CLASSES[2], CLASSES[0]] and title == f"Direction {number} of 3"
        assert images.shape == (2, 9, 8, 8, 1) and np.abs(images[:, 4] - samples).max() <= 1
        moved = trained().synthesize(arrays["w"][:1] + arrays["steps"][0, 8] * direction, psi)
        np.testing.assert_array_equal(images[0, 8], moved[0])
        assert np.abs(images[:, 8].astype(int) - samples).mean() > 1


def test_sheets(tmp_path):
    labels, indices = trained().labels_and_indices(None, 2)
    folder = write_directions(trained(), labels, indices, 0, None, 1, tmp_path / "x")
    assert sorted(path.name for path in folder.iterdir()) == ["direction-1.png", "directions.npz"]
    sheet = Image.open(folder / "direction-1.png")
    assert sheet.width > 9 * 56 and sheet.height > 8 * 56


def test_errors(tmp_path):
    labels, indices = trained().labels_and_indices([0], 1)
    with pytest.raises(UserError, match="W has 8 dimensions"):
        write_directions(trained(), labels, indices, 0, None, 9, tmp_path / "x")
    utlo = trained(**{"utlo.weight": 1.0, "utlo.resolution": 4})
    with pytest.raises(UserError, match=r"\(UTLO\) have a w of their own"):
        write_directions(utlo, labels, indices, 0, None, 1, tmp_path / "x")
    assert not list(tmp_path.iterdir())
