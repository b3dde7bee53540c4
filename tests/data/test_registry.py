import re
from pathlib import Path

import fsspec
import numpy as np
import pytest

from noisytwins_jax.config.flags import load_config
from noisytwins_jax.data.config import DataConfig
from noisytwins_jax.data.digits import digits_splits
from noisytwins_jax.data.petals import FACTORS, draw
from noisytwins_jax.data.prepare.command import parse_arguments, prepare
from noisytwins_jax.data.prepare.embedded import CLASSIFIER_START, REFERENCE_START
from noisytwins_jax.data.prepared import VERSION, PreparedSource
from noisytwins_jax.data.registry import classes_and_channels, load_data, preprocessing_of
from noisytwins_jax.utils.errors import UserError

OPTIONS = {"num_classes": 3, "largest": 4, "imbalance_factor": 0.5, "reference_per_class": 2}
OPTIONS |= {"classifier_per_class": 3}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """Holds ``few`` and, with fewer classes than the public one, ``animal_face``; 8 px."""
    directory = tmp_path_factory.mktemp("prepared")
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    for name in ("few", "animal_face"):
        prepare(
            parse_arguments(
                ["petals", f"--data_dir={directory}", f"--name={name}", "--resolution=8", "--jobs=1", *options]
            )
        )
    return directory


def refusal(function, data: DataConfig) -> str:
    with pytest.raises(UserError) as error:
        function(data)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- load_data ---------------------------------------------------------------------------------------------------------


def test_preprocessing_of(tmp_path, data_dir):
    assert preprocessing_of(DataConfig("few", 8, dir=str(data_dir))).name == "center-lanczos"
    info = next(data_dir.glob("few/8px/*/preparation.json"))
    (tmp_path / info.relative_to(data_dir)).parent.mkdir(parents=True)
    text = info.read_text().replace('"center-lanczos"', '"stretch-box"')
    (tmp_path / info.relative_to(data_dir)).write_text(text)
    assert preprocessing_of(DataConfig("few", 8, dir=str(tmp_path))).name == "stretch-box"
    assert preprocessing_of(DataConfig("gone", 8, dir=str(tmp_path))).name == "center-lanczos"
    assert preprocessing_of(DataConfig("gone", 8, dir=str(tmp_path), preprocessing="stretch-box")).name == "stretch-box"
    assert preprocessing_of(DataConfig("digits_lt", 8)).name == "center-lanczos"


def test_digits():
    loaded = load_data(DataConfig("digits_lt", 16, options={"largest": 50, "seed": 3}))
    expected = digits_splits(16, largest=50, seed=3)
    for split in ("train", "reference", "classifier"):
        assert getattr(loaded, split).fingerprint == getattr(expected, split).fingerprint
    assert loaded.train.class_counts[0] == 50 and loaded.train.factors is None


def test_drawn_petals_have_their_factors():
    loaded = load_data(DataConfig("petals_drawn", 8, options=OPTIONS | {"seed": 2}))
    assert loaded.train.class_counts.tolist() == [4, 2, 2]
    assert loaded.reference.class_counts.tolist() == [2, 2, 2] and loaded.classifier.class_counts.tolist() == [3, 3, 3]
    for source, start in (
        (loaded.train, 0),
        (loaded.reference, REFERENCE_START),
        (loaded.classifier, CLASSIFIER_START),
    ):
        assert source.factor_names == FACTORS and source.factors.dtype == np.float32
        seen = [0] * 3
        for i, label in enumerate(source.labels):
            image, factors = draw(int(label), start + seen[label], 8, seed=2)
            seen[label] += 1
            np.testing.assert_array_equal(source[i]["image"], image)
            np.testing.assert_array_equal(source.factors[i], factors)


def test_prepared_data(data_dir):
    loaded = load_data(DataConfig("few", 8, dir=str(data_dir), preprocessing="center-lanczos"))
    drawn = load_data(DataConfig("petals_drawn", 8, options=OPTIONS))
    for split in ("train", "reference", "classifier"):
        ours, theirs = getattr(loaded, split), getattr(drawn, split)
        assert isinstance(ours, PreparedSource) and ours.class_names == theirs.class_names
        images = {theirs[i]["image"].tobytes(): i for i in range(len(theirs))}
        same = [images[ours[i]["image"].tobytes()] for i in range(len(ours))]
        assert sorted(same) == list(range(len(theirs)))
        np.testing.assert_array_equal(ours.labels, theirs.labels[same])
        np.testing.assert_array_equal(ours.factors, theirs.factors[same])


def test_prepared_data_of_a_public_name(data_dir):
    assert load_data(DataConfig("animal_face", 8, dir=str(data_dir))).train.num_classes == 3


def test_prepared_data_in_a_bucket(data_dir, tmp_path):
    files = fsspec.filesystem("memory")
    for path in (data_dir / "few" / "8px" / VERSION).iterdir():
        files.pipe_file(f"/registry/few/8px/{VERSION}/{path.name}", path.read_bytes())
    data = DataConfig("few", 8, dir="memory://registry", cache=str(tmp_path))
    local = load_data(DataConfig("few", 8, dir=str(data_dir)))
    assert load_data(data).train.fingerprint == local.train.fingerprint
    assert (tmp_path / "memory" / "registry" / "few").exists()
    assert classes_and_channels(data) == (3, 3)
    many = DataConfig("many", 8, dir="memory://registry", cache=str(tmp_path))
    for function in (load_data, classes_and_channels):
        assert refusal(function, many).startswith("There is no prepared data set many of 8 px in memory://registry")


def test_prepared_data_below_the_home_directory(data_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(data_dir.parent))
    for name in ("few", "animal_face"):
        data = DataConfig(name, 8, dir=f"~/{data_dir.name}")
        assert load_data(data).train.num_classes == 3
        assert classes_and_channels(data) == (3, 3)


def test_preprocessing_is_checked(data_dir):
    data = DataConfig("few", 8, dir=str(data_dir), preprocessing="center-bicubic")
    assert "were prepared with center-lanczos, not with center-bicubic" in refusal(load_data, data)


@pytest.mark.parametrize("name", ["few", "animal_face"])
def test_options_are_not_for_prepared_data(name, data_dir):
    message = refusal(load_data, DataConfig(name, 8, dir=str(data_dir), options={"seed": 1}))
    assert message.startswith("config.data.options are for digits_lt, petals_drawn, synthetic; ")
    assert f'"{name}" is as it was prepared' in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits_lt", 'The data set "digits_lt" has no option "largst"; did you mean \'largest\'?'),
        ("petals_drawn", 'The data set "petals_drawn" has no option "largst"; did you mean \'largest\'?'),
        ("synthetic", 'The data set "synthetic" has no option "largst"; did you mean '),
    ],
)
def test_unknown_options(name, message):
    assert refusal(load_data, DataConfig(name, 8, options={"largst": 4})).startswith(message)


def test_options_that_a_builder_refuses():
    assert "at least 1" in refusal(load_data, DataConfig("petals_drawn", 8, options={"classifier_per_class": 0}))
    assert "power of two" in refusal(load_data, DataConfig("digits_lt", 12))


@pytest.mark.parametrize("function", [load_data, classes_and_channels])
@pytest.mark.parametrize(
    ("name", "nearest"),
    [("digit_lt", "digits_lt"), ("imagenet_l", "imagenet_lt"), ("cifar1000_lt", "cifar100_lt"), ("petal", "petals")],
)
def test_an_unknown_name(function, name, nearest, tmp_path):
    """The nearest one is said, and how one's own pictures become a data set of that name."""
    message = refusal(function, DataConfig(name, 64, dir=str(tmp_path)))
    assert message.startswith(f"There is no data set \"{name}\" in {tmp_path}; did you mean '{nearest}'? (Valid: ")
    command = f"image_folder --name={name} --source=... --data_dir={tmp_path} --resolution=64"
    assert message.endswith(f"python -m noisytwins_jax.data.prepare {command}")


def test_a_prepared_name_may_be_the_nearest(tmp_path):
    (tmp_path / "birds" / "32px").mkdir(parents=True)
    message = refusal(load_data, DataConfig("birdz", 64, dir=str(tmp_path)))
    assert "did you mean 'birds'? (Valid: birds, " in message


@pytest.mark.parametrize(
    "name", ["cifar10_lt", "imagenet", "imagenet_lt", "inat19", "animal_face", "imagenet_carnivore", "petals"]
)
def test_a_known_name_that_is_not_prepared(name, tmp_path):
    message = refusal(load_data, DataConfig(name, 32, dir=str(tmp_path)))
    assert message.startswith(f"There is no prepared data set {name} of 32 px in {tmp_path}; prepare it with: ")
    assert re.search(rf"noisytwins_jax.data.prepare {name} .*--data_dir={tmp_path} --resolution=32", message)


def test_another_resolution_is_named(data_dir):
    for function in (load_data, classes_and_channels):
        assert "(there: 8px)" in refusal(function, DataConfig("few", 16, dir=str(data_dir)))


# --- classes_and_channels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("cifar10_lt", 10),
        ("imagenet", 1000),
        ("imagenet_lt", 1000),
        ("inat19", 1010),
        ("animal_face", 20),
        ("imagenet_carnivore", 20),
    ],
)
def test_public_classes_are_known_before_they_are_prepared(name, classes, tmp_path):
    assert classes_and_channels(DataConfig(name, 64, dir=str(tmp_path))) == (classes, 3)
    (tmp_path / name / "64px" / f"{VERSION}.incomplete").mkdir(parents=True)  # while they are being prepared
    assert classes_and_channels(DataConfig(name, 64, dir=str(tmp_path))) == (classes, 3)


def test_classes_of_data_sets_without_files():
    assert classes_and_channels(DataConfig("digits_lt", 8)) == (10, 1)
    assert classes_and_channels(DataConfig("petals_drawn", 8, options=OPTIONS)) == (3, 3)
    assert classes_and_channels(DataConfig("synthetic", 8, options={"num_classes": 4, "channels": 1})) == (4, 1)


def test_classes_of_prepared_data(data_dir):
    for name in ("few", "animal_face"):
        assert classes_and_channels(DataConfig(name, 8, dir=str(data_dir))) == (3, 3)
    # A public one at a resolution that is not prepared is as published.
    assert classes_and_channels(DataConfig("animal_face", 64, dir=str(data_dir))) == (20, 3)


def test_channels_of_prepared_data(tmp_path):
    arguments = ["digits_lt", f"--data_dir={tmp_path}", "--name=numbers", "--largest=20", "--jobs=1"]
    prepare(parse_arguments(arguments))
    data = DataConfig("numbers", 8, dir=str(tmp_path))
    assert classes_and_channels(data) == (10, 1)
    assert load_data(data).train.channels == 1


@pytest.mark.parametrize(("preset", "classes", "resolution"), [("cpu", 100, 32), ("1010", 1010, 64)])
def test_the_command_that_prepares_a_form_of_petals_is_named(preset, classes, resolution, tmp_path):
    configs = Path(__file__).parents[2] / "configs"
    data = load_config([f"--config={configs}/petals.py:{preset}", f"--config.data.dir={tmp_path}"]).data
    arguments = f"--name=petals_{classes} --num_classes={classes} --data_dir={tmp_path} --resolution={resolution}"
    with pytest.raises(UserError, match=f"data.prepare petals {arguments}$"):
        load_data(data)
