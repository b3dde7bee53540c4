"""``--mode=project``: pictures in, arrays and sheets out; what is finished stays; the class is given or found."""

import json

import numpy as np
import pytest
from PIL import Image
from test_projection import CLASSES, trained, with_distinct_classes

from noisytwins_jax.config import flatten
from noisytwins_jax.generation import project as project_module
from noisytwins_jax.generation.project import find_pictures, project_pictures
from noisytwins_jax.training.workdir import write_classes
from noisytwins_jax.utils.errors import UserError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's directory whose generator is `trained`."""
    workdir = tmp_path / "run"
    (workdir / "checkpoints").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(flatten(trained().config)))
    write_classes(workdir, 1, CLASSES)
    monkeypatch.setattr(project_module, "load", lambda *_: trained())
    return workdir


@pytest.fixture
def pictures(tmp_path):
    """Five generated images of classes 0 to 3 and 0, as files of several sizes and modes in two folders."""
    images = trained().sample([0, 1, 2, 3, 0], seed=4, noise_mode="const")
    paths = [tmp_path / "pictures" / name for name in ("a.png", "b.png", "deep/c.png", "deep/d.png", "deep/e.PNG")]
    paths[-1].parent.mkdir(parents=True)
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[..., 0]).save(path)
    Image.fromarray(images[1][..., 0]).resize((16, 16), Image.Resampling.NEAREST).convert("RGB").save(paths[1])
    (tmp_path / "pictures" / ".hidden.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


def test_results_of_every_picture(run, pictures, capsys):
    folder = project_pictures(None, run, "latest", str(pictures), steps=60, classes=["b"])
    assert folder == run / "projections" / "step0-w-classes_1-60steps-seed0"
    everything = np.load(folder / "all.npz")
    assert everything["w"].shape == (5, 8) and everything["labels"].tolist() == [1] * 5
    assert [file[-5:] for file in everything["files"]] == ["a.png", "b.png", "c.png", "d.png", "e.PNG"]
    assert everything["class_names"].tolist() == list(CLASSES) and everything["seed"] == 0
    settings = json.loads(str(everything["settings"]))
    assert (settings["space"], settings["steps"], settings["classes"]) == ("w", 60, [1])
    np.testing.assert_array_less(np.abs(trained().synthesize(everything["w"]).astype(int) - everything["images"]), 2)
    (single,) = folder.glob("b-*.npz")
    result = np.load(single)
    assert result["picture"].shape == (8, 8, 1) and result["way_steps"].tolist() == [0, 25, 50, 60]
    assert result["way_distances"][-1] == everything["distances"][1] < result["way_distances"][0]
    sheet = Image.open(folder / "sheet-1.png")
    assert sheet.height > 5 * 56 and sheet.width > 5 * 56
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and f"b.png: class b, distance {everything['distances'][1]:.2g}" in lines[1]


def test_an_interrupted_projection_resumes(run, pictures, monkeypatch, capsys):
    monkeypatch.setattr(project_module, "_LARGEST_BATCH", 2)
    whole = project_pictures(None, run, "latest", str(pictures), steps=30, classes=[0])
    expected = {path.name: dict(np.load(path)) for path in whole.glob("*.npz")}
    for path in whole.iterdir():
        path.unlink()
    calls, project_images = [], project_module.project_images

    def project_until_killed(model, images, *arguments, **options):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return project_images(model, images, *arguments, **options)

    monkeypatch.setattr(project_module, "project_images", project_until_killed)
    with pytest.raises(KeyboardInterrupt):
        project_pictures(None, run, "latest", str(pictures), steps=30, classes=[0])
    finished = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert len(finished) == 4
    next(iter(finished)).write_bytes(b"cut off")
    capsys.readouterr()
    assert project_pictures(None, run, "latest", str(pictures), steps=30, classes=[0]) == whole
    assert calls == [2, 2, 1, 2]  # the one that is cut off and the last
    assert capsys.readouterr().out.startswith("3 of 5 pictures are finished")
    assert [path.stat().st_mtime_ns == time for path, time in finished.items()] == [False, True, True, True]
    found = {path.name: dict(np.load(path)) for path in whole.glob("*.npz")}
    assert found.keys() == expected.keys()
    for name, arrays in expected.items():
        np.testing.assert_allclose(found[name]["w"], arrays["w"], atol=0.05)
        assert str(found[name]["settings"]) == str(arrays["settings"])


def test_another_generator_is_another_result(run, pictures, monkeypatch):
    only = str(pictures / "a.png")
    folder = project_pictures(None, run, "latest", only, steps=2, classes=[0])
    first = np.load(folder / "all.npz")["w"]
    retrained = trained(**{"generator.w_avg_decay": 0.5})  # its own object
    retrained.variables["params"]["synthesis"]["b4"]["const"] += 1.0
    monkeypatch.setattr(project_module, "load", lambda *_: retrained)
    assert project_pictures(None, run, "latest", only, steps=2, classes=[0]) == folder
    assert not np.array_equal(np.load(folder / "all.npz")["w"], first)


def test_classes_are_found(run, pictures, monkeypatch, capsys):
    monkeypatch.setattr(project_module, "load", lambda *_: with_distinct_classes())
    images = with_distinct_classes().sample([0, 1, 2, 3, 0], seed=4, noise_mode="const")
    for path, image in zip(find_pictures(str(pictures)), images, strict=True):
        Image.fromarray(image[..., 0]).save(path)
    folder = project_pictures(None, run, "latest", str(pictures), steps=2)
    assert "classes_all" in folder.name
    assert np.load(folder / "all.npz")["labels"].tolist() == [0, 1, 2, 3, 0]
    assert capsys.readouterr().out.count(" (found at ") == 5
    some = project_pictures(None, run, "latest", str(pictures), steps=2, classes=["3", "a"])
    assert some.name == "step0-w-classes_0_3-2steps-seed0"
    assert set(np.load(some / "all.npz")["labels"]) <= {0, 3}


def test_paths(tmp_path, pictures):
    one, two = pictures / "a.png", pictures / "deep"
    assert find_pictures(f"{two},{one},{one}") == [*sorted(two.iterdir()), one]
    with_comma = tmp_path / "x,y"
    with_comma.mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        find_pictures(str(with_comma))
