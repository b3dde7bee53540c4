"""``--mode=sample``: which latents are sampled, and where the pictures are written."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.aspect import Aspect
from noisytwins_jax.evaluation.image_reading import read_image_files
from noisytwins_jax.generation import sample as sample_module
from noisytwins_jax.generation.sample import sample
from noisytwins_jax.generation.sheet_frame import GAP, display_scale
from noisytwins_jax.generation.trained_generator import TrainedGenerator
from noisytwins_jax.utils.errors import UserError


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Replace the trained generator by one with pixel value label + 10·(index within the class); record its calls."""
    recorded = []

    def generate(labels, indices):
        recorded.append((labels, indices))
        values = labels + 10 * (indices % 2**20)
        return np.broadcast_to(values[:, None, None, None], (len(labels), 8, 8, 1)).astype(np.uint8), None

    def interpolate(labels, indices, t):
        return np.full((len(t), 8, 8, 1), 100 * t[:, None, None, None], np.uint8)

    generate.interpolate = interpolate

    class Fake(TrainedGenerator):
        def sampler(self, *_, **__):
            return generate

    (tmp_path / "checkpoints").mkdir()
    names = tuple(f"class {i}" for i in range(4))
    monkeypatch.setattr(sample_module, "load", lambda *_: Fake(RunConfig(), {}, 1, names, 5))
    return recorded


def test_every_truncation_and_seed_has_its_own_files(calls, tmp_path):
    pictures = [
        sample(RunConfig(), tmp_path, classes=[1], per_class=2, truncation=truncation, seed=seed)
        for truncation, seed in (("0.7", 0), ("0.75", 0), ("0.7", 1), ("", 0))
    ]
    assert len(set(pictures)) == 4 and all(path.exists() for path in pictures)
    assert pictures[0].name == "step5-psi0.7-seed0.png"
    saved = np.load(pictures[0].with_name("step5-psi0.7-seed0.npz"))
    assert saved["labels"].tolist() == [1, 1] and saved["images"][:, 0, 0, 0].tolist() == [1, 11]
    assert saved["class_names"].tolist() == ["class 0", "class 1", "class 2", "class 3"]
    found = read_image_files(pictures[0].with_name("step5-psi0.7-seed0.npz"))
    assert found.class_names == ("class 1",) and found.class_ids == (1,)


def test_latents_of_a_class_do_not_depend_on_the_other_classes(calls, tmp_path):
    sample(RunConfig(), tmp_path, classes=[3], per_class=3)
    sample(RunConfig(), tmp_path, classes=[0, 3], per_class=3)
    alone, together = calls[0][1], calls[1][1]
    assert alone.tolist() == together[3:].tolist() and len(set(together.tolist())) == 6


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_pictures_have_the_shape_of_those_trained_on(calls, tmp_path, monkeypatch, fit):
    trained = dataclasses.replace(sample_module.load(), aspect=Aspect(fit, 2.0))
    monkeypatch.setattr(sample_module, "load", lambda *_: trained)
    width, height = {"pad": (8, 4), "stretch": (16, 8)}[fit]
    options = {"classes": [1, 2], "per_class": 1, "formats": ("grid", "npz", "files")}
    shown, squares = (sample(RunConfig(), tmp_path, square=square, **options) for square in (False, True))
    assert squares.name == "step5-untruncated-seed0-square.png"
    for picture, size in ((shown, (width, height)), (squares, (8, 8))):
        scale = display_scale(size[0])
        assert Image.open(picture).size == (size[0] * scale + 2 * GAP, 2 * size[1] * scale + 3 * GAP)
        assert Image.open(picture.with_suffix("") / "1" / "000000.png").size == size
        assert np.load(picture.with_suffix(".npz"))["images"].shape == (2, 8, 8, 1)  # for metrics
    with pytest.raises(UserError, match="sample with --square"):
        read_image_files(shown.with_suffix(""))
    assert read_image_files(squares.with_suffix("")).resolution == 8
    animation = sample(RunConfig(), tmp_path, classes=[1, 2], per_class=1, frames=2)
    scale = display_scale(width)
    assert Image.open(animation).size == (width * scale, height * scale)
