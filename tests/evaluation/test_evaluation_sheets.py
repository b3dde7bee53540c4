"""Which latents and truncations the sheets of a run show; the sheets themselves are tested with the diagnostics."""

import numpy as np
import pytest
from PIL import Image

from noisytwins_jax.config import default_config, parse_config
from noisytwins_jax.data.aspect import Aspect
from noisytwins_jax.data.registry import load_splits
from noisytwins_jax.evaluation import sheets as module
from noisytwins_jax.evaluation.report.latent_sheets import interpolation_sheet, truncation_sheet
from noisytwins_jax.evaluation.sheets import draw_nearest, make_latent_sheets, make_sheet, sheet_truncations
from noisytwins_jax.models.latents import Truncation


def configured(**changes):
    config = default_config()
    config.update_from_flattened_dict(changes)
    return parse_config(config)


BIGGAN = {"network": "biggan", "generator.z_dim": 40, "discriminator.mbstd_group_size": 1}


@pytest.mark.parametrize(
    ("changes", "kind", "strengths"),
    [
        ({}, "psi", [0.7, 0.4, 0.1]),
        (BIGGAN, "threshold", [2, 1, 0.5, 0.04]),
        (BIGGAN | {"evaluation.truncation_kind": "std"}, "std", [0.7, 0.4, 0.1]),
        (BIGGAN | {"latents.kind": "censored"}, "std", [0.7, 0.4, 0.1]),  # others cannot be had there
        ({"evaluation.truncation_kind": "std"}, "psi", [0.7, 0.4, 0.1]),  # which would change nothing
        ({"evaluation.truncations": "0.5,1,0.9"}, "psi", [0.9, 0.5]),  # ψ = 1 is no truncation
        (BIGGAN | {"evaluation.truncations": "0.5,1"}, "threshold", [1, 0.5]),
    ],
)
def test_strengths_run_from_none_to_the_strongest(changes, kind, strengths):
    assert sheet_truncations(configured(**changes)) == [None, *(Truncation(kind, x) for x in strengths)]


@pytest.fixture
def drawn(monkeypatch):
    """What the sheets of a run ask for: ways of (labels, indices, t), cuts of (truncation, labels, indices); and show."""
    asked = {"ways": [], "cuts": [], "bands": [], "rows": []}

    class Fakes:
        def __init__(self, truncation):
            self.truncation = truncation

        def __call__(self, labels, indices):
            asked["cuts"].append((self.truncation, labels, indices))
            strength = 9.0 if self.truncation is None else self.truncation.strength
            return pixels(10 * strength + indices), None

        def interpolate(self, labels, indices, t):
            asked["ways"].append((labels, indices, t))
            return pixels(np.arange(len(t)))

    def pixels(values):
        return np.broadcast_to(np.asarray(values)[:, None, None, None], (len(values), 8, 8, 1)).astype(np.uint8)

    def kept(name, draw):
        return lambda *arguments: asked[name].append(arguments) or draw(*arguments)

    monkeypatch.setattr(module, "build_sampler", lambda *_, truncation=None, **__: Fakes(truncation))
    monkeypatch.setattr(module, "interpolation_sheet", kept("bands", interpolation_sheet))
    monkeypatch.setattr(module, "truncation_sheet", kept("rows", truncation_sheet))
    return asked


def splits_of(classes):
    return load_splits("synthetic", resolution=8, num_classes=classes, channels=1, num_images=80)


def test_ways_in_z_in_the_class_and_in_both(drawn, tmp_path):
    splits = splits_of(10)
    sheets = make_latent_sheets(configured(), {}, splits, tmp_path)
    for name, sheet in zip(("interpolations.png", "truncation.png"), sheets, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), np.asarray(sheet))
    ((labels, indices, t),) = drawn["ways"]
    assert len(t) == 3 * 4 * 10
    labels, indices = (x.reshape(3, 4, 10, 2) for x in (labels, indices))
    np.testing.assert_allclose(t.reshape(12, 10), np.tile(np.linspace(0, 1, 10), (12, 1)))
    assert (labels == labels[:, :, :1]).all() and (indices == indices[:, :, :1]).all()  # fixed ends in a row
    ends, seeds = labels[:, :, 0], indices[:, :, 0]
    assert (ends[..., 0] == ends[0, :, 0]).all() and (seeds[..., 0] == seeds[0, :, 0]).all()  # all kinds begin alike
    changes = [((ends[i, :, 0] != ends[i, :, 1]).all(), (seeds[i, :, 0] != seeds[i, :, 1]).all()) for i in range(3)]
    assert changes == [(False, True), (True, False), (True, True)]
    assert (ends[0, :, 0] == ends[0, :, 1]).all() and (seeds[1, :, 0] == seeds[1, :, 1]).all()
    counts = splits.train.class_counts[ends[0, :, 0]]
    assert (np.diff(counts) <= 0).all() and counts[0] == splits.train.class_counts.max()  # head to tail
    ((bands, *_),) = drawn["bands"]
    shown = np.stack([band.images[..., 0, 0, 0] for band in bands])
    np.testing.assert_array_equal(shown.ravel(), np.arange(120))
    np.testing.assert_array_equal([band.labels for band in bands], ends)


def test_one_class_has_ways_in_z_alone(drawn, tmp_path):
    make_latent_sheets(configured(), {}, splits_of(1), tmp_path)
    ((labels, indices, _),) = drawn["ways"]
    assert len(labels) == 4 * 10 and not labels.any() and (indices[:, 0] != indices[:, 1]).all()


def test_truncation_keeps_the_z_of_a_column(drawn, tmp_path):
    splits = splits_of(10)
    make_latent_sheets(configured(), {}, splits, tmp_path)
    assert [cut for cut, *_ in drawn["cuts"]] == sheet_truncations(configured())
    for _, labels, indices in drawn["cuts"]:
        np.testing.assert_array_equal(labels, drawn["cuts"][0][1])
        np.testing.assert_array_equal(indices, np.arange(15))
    ((images, names, *_),) = drawn["rows"]
    assert names == ["no truncation", "ψ = 0.7", "ψ = 0.4", "ψ = 0.1"] and len(images) == 5
    for place, shown in enumerate(images.values()):
        expected = np.array([90, 7, 4, 1])[:, None] + 3 * place + np.arange(3)
        np.testing.assert_array_equal(shown[..., 0, 0, 0], expected)


@pytest.mark.parametrize(("aspect", "width"), [(Aspect("pad", 0.5), 4), (Aspect("stretch", 2.0), 16)])
def test_images_have_the_shape_of_the_pictures(drawn, tmp_path, monkeypatch, aspect, width):
    splits, sizes = splits_of(4), []
    splits.train.aspect = aspect

    def record(image, *_, **__):
        sizes.append(image.shape)
        return Image.new("RGB", (8, 8))

    for place in ("sheets", "sheet_frame"):
        monkeypatch.setattr(f"noisytwins_jax.generation.{place}.resize_for_display", record)
    for place in ("latent_sheets", "neighbour_sheet"):
        monkeypatch.setattr(f"noisytwins_jax.evaluation.report.{place}.resize_for_display", record)
    make_sheet(configured(), {}, splits, tmp_path / "samples.png")
    make_latent_sheets(configured(), {}, splits, tmp_path)
    examples = [{"class": 0, "index": 0, "nearest": [1, 2], "distances": [0.5, 1.0]}]
    draw_nearest(examples, np.zeros((1, 8, 8, 1), np.uint8), splits.train)
    assert len(sizes) > 200 and set(sizes) == {(8, width, 1)}
