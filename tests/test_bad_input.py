"""User errors: one error message before anything is compiled, and no files left behind."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny_biggan
from paths import ROOT
from PIL import Image

from noisytwins_jax.config import RunConfig, default_config, parse_config
from noisytwins_jax.config.groups import AugmentConfig, DiscriminatorConfig, GeneratorConfig
from noisytwins_jax.data.config import DataConfig
from noisytwins_jax.evaluation.evaluate import evaluate
from noisytwins_jax.generation import sample as sample_module
from noisytwins_jax.generation.project import project_pictures
from noisytwins_jax.generation.sample import sample
from noisytwins_jax.generation.trained_generator import TrainedGenerator
from noisytwins_jax.losses.noisytwins import NoisyTwins
from noisytwins_jax.losses.path_length import PathLength
from noisytwins_jax.losses.r1 import R1
from noisytwins_jax.train import train
from noisytwins_jax.training.workdir import open_workdir, write_classes, write_config
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.sharding import Layout

SYNTHETIC = DataConfig("synthetic", 8, False, {"num_classes": 4, "num_images": 16, "channels": 1})
TINY = dataclasses.replace(
    RunConfig(),
    batch_size=16,
    data=SYNTHETIC,
    generator=GeneratorConfig(z_dim=8, w_dim=8, mapping_layers=1, channel_base=64, channel_max=8),
    discriminator=DiscriminatorConfig(channel_base=64, channel_max=8, mbstd_group_size=4),
)


@pytest.fixture(autouse=True)
def nothing_is_compiled():
    compiled = []

    def listen(event: str, duration: float, **_) -> None:
        if "backend_compile" in event:
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def refused(function, *arguments, **options) -> str:
    """Return the message of a `UserError`: a sentence on one line, which may end with a command to run."""
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message and (message[-1] in ".?)" or ": python -m " in message), message
    return message


def synthetic(**changes) -> DataConfig:
    return dataclasses.replace(SYNTHETIC, **changes)


def mbstd(size: int) -> DiscriminatorConfig:
    return dataclasses.replace(TINY.discriminator, mbstd_group_size=size)


def test_compilations_are_noticed(nothing_is_compiled):
    jax.jit(lambda x: x * 3.25 + 1)(1.5)
    assert nothing_is_compiled
    nothing_is_compiled.clear()


# --- train ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 18},
            "batch_size=18 does not divide among 1 device(s), minibatch-std groups of 4; it must be a multiple of 4",
        ),
        (
            {"batch_size": 9, "discriminator": mbstd(1), "noisytwins": NoisyTwins(weight=0.1)},
            "pairs of twins; it must be a multiple of 2, for example --config.batch_size=8.",
        ),
        ({"data": synthetic(resolution=12)}, "a power of two of at least 8, but it is 12"),
        ({"data": synthetic(resolution=4)}, "a power of two of at least 8, but it is 4"),
        ({"data": DataConfig("digits_lt", 128)}, "a power of two of at least 8 and at most 64, but it is 128"),
        ({"data": DataConfig("digits_tl", 8)}, "no data set \"digits_tl\" in data; did you mean 'digits_lt'?"),
        ({"data": synthetic(options={"num_image": 9})}, "no option \"num_image\"; did you mean 'num_images'?"),
        ({"data": synthetic(options={"num_images": 2})}, "at least one class and one image per class"),
        ({"data": DataConfig("digits_lt", 8, options={"largest": 900})}, '178 images of digit "0", but 900 are asked'),
        ({"augment": AugmentConfig("colour")}, "DiffAugment has no operation 'colour'; did you mean 'color'?"),
    ],
)
def test_training_refuses(tmp_path, changes, message):
    assert message in refused(train, dataclasses.replace(TINY, **changes), tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"biggan.attention": "512"}, "Networks for 8 px have no block at 512 px for attention to follow"),
        ({"biggan.attention": "8", "biggan.generator_width": 1}, "channels"),
        ({"generator.z_dim": 7}, "z_dim=7 does not make 2 equal chunks"),
    ],
)
def test_networks_that_cannot_be_leave_nothing(tmp_path, changes, message):
    assert message in refused(train, tiny_biggan.tiny_config(**changes), tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 16},
            "does not divide among 3 device(s), minibatch-std groups of 4; it must be a multiple of 12",
        ),
        (
            {"batch_size": 9, "noisytwins": NoisyTwins(weight=0.1), "discriminator": mbstd(1)},
            "it must be a multiple of 6, for example --config.batch_size=",
        ),
        (
            {"batch_size": 24, "path_length": PathLength(weight=2.0, batch_fraction=1 / 6)},
            "The path-length batch of 4 images does not divide among 3 devices",
        ),
    ],
)
def test_training_refuses_what_devices_cannot_divide(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(Layout, "num_devices", 3)
    assert message in refused(train, dataclasses.replace(TINY, **changes), tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("accepted", [12, 24])
def test_the_batch_size_that_a_refusal_proposes_is_accepted(monkeypatch, accepted):
    monkeypatch.setattr(Layout, "num_devices", 3)
    Layout().check_batch_size(accepted, 4, twins=True, path_length_batch=accepted // 2)
    assert f"for example --config.batch_size={accepted}." in refused(Layout().check_batch_size, accepted + 1, 4, True)


def test_unwritable_workdirs(tmp_path):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file" / "run", tmp_path / "file", Path("/dev/null/run")):
        message = refused(train, TINY, workdir)
        assert message.startswith(f"The workdir {workdir} cannot be written (") and "give another --workdir" in message
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_workdir_of_another_configuration(tmp_path, restored_cache_option):
    workdir = open_workdir(tmp_path / "run", TINY)
    write_config(workdir, TINY)
    before = (workdir / "config.json").read_bytes()
    other = dataclasses.replace(TINY, batch_size=32, r1=R1(gamma=1.0), total_kimg=7.0)
    for verb in (train, evaluate, sample):
        if verb is not train:
            (workdir / "checkpoints").mkdir(exist_ok=True)
        message = refused(verb, other, workdir)
        assert "made with another configuration: batch_size: 16 → 32; r1.gamma: 0.01 → 1.0." in message
        assert "total_kimg" not in message  # a longer run of the same training is welcome
    assert (workdir / "config.json").read_bytes() == before


def test_workdir_with_a_damaged_configuration(tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert "is not readable JSON; restore it or give another --workdir" in refused(train, TINY, tmp_path)


@pytest.fixture
def restored_cache_option():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    old = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in old.items():
        jax.config.update(name, value)


# --- numbers that no field takes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("batch_size", 0, "at least 1"),
        ("r1.interval", 0, "at least 1"),
        ("path_length.interval", 0, "at least 1"),
        ("discriminator.mbstd_group_size", 0, "at least 1"),
        ("generator.mapping_layers", 0, "at least 1"),
        ("optimizer.generator_lr", 0.0, "above 0"),
        ("path_length.batch_fraction", 0.0, "above 0"),
        ("generator.conv_clamp", -1.0, "above 0"),
        ("total_kimg", -1.0, "at least 0"),
        ("noisytwins.sigma", float("nan"), "at least 0"),
        ("ema.kimg", float("inf"), "at least 0"),
        ("ema.rampup", -0.5, "at least 0"),
        ("noisytwins.alpha", 1.0, "at least 0 and below 1"),
        ("optimizer.beta2", 1.0, "at least 0 and below 1"),
        ("style_mixing", 90.0, "from 0 to 1"),
        ("seed", -1, "from 0 to 4294967295"),
        ("seed", 2**32, "from 0 to 4294967295"),  # would be the networks of seed 0
        ("evaluation.seed", -1, "from 0 to 4294967295"),
    ],
)
def test_numbers_out_of_range(path, value, words):
    config = default_config()
    config.update_from_flattened_dict({path: value})
    assert refused(parse_config, config) == f"config.{path} must be {words}, but it is {value}."


def test_numbers_that_do_not_fit_together():
    config = default_config()
    config.evaluation.samples_per_class = 5
    assert "samples_per_class=5 is too few for 5 neighbours" in refused(parse_config, config)
    config = default_config()
    config.data.resolution, config.discriminator.channel_base = 256, 128
    assert "config.discriminator.channel_base=128 leaves no channels at 256 px" in refused(parse_config, config)


def test_architecture_typo():
    config = default_config()
    config.discriminator.architecture = "resent"
    assert refused(parse_config, config) == (
        "config.discriminator.architecture is 'resnet' or 'orig' or 'skip', not 'resent'."
    )


# --- evaluate and sample ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [evaluate, sample])
def test_without_checkpoint(tmp_path, verb):
    message = refused(verb, TINY, tmp_path / "run")
    assert f"{tmp_path / 'run'} holds no checkpoints; train first (--mode=train)" in message
    assert not list(tmp_path.iterdir())
    assert "--checkpoint=newest is no checkpoint; give latest, best or a step" in refused(
        verb, TINY, tmp_path / "run", "newest"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [0, 4]}, "There is no class 4; classes are 0 to 3."),
        ({"classes": [-1]}, "There is no class -1; classes are 0 to 3."),
        ({"classes": []}, "There are no classes to sample; give class ids"),
        ({"per_class": 0}, "0 images per class cannot be sampled; ask for 1 to"),
        ({"truncation": "psi:nan"}, "Truncation psi must be finite"),
        ({"seed": -1}, "The seed -1 must be an integer from 0 to 4294967295"),
        ({"noise_mode": "loud"}, "noise_mode is 'random' or 'const' or 'none', not 'loud'."),
        ({"formats": ["jpeg"]}, "--format=jpeg is none of grid, npz, files"),
        ({"formats": []}, "--format is empty"),
        ({"frames": -1}, "--frames=-1 is below 0"),
        ({"frames": 2, "mix_layers": "1"}, "give one of them"),
        ({"frames": 2, "classes": [1], "per_class": 1}, "An animation goes from image to image"),
        (
            {"mix_layers": "1-9"},
            "--mix_layers=1-9 are no layers of this generator; give a first and a last one as 4-7, from 0",
        ),
        ({"classes": ["x"]}, "There is no class x; classes are 0 to 3; did you mean"),
        ({"directions": 3, "frames": 2}, "--directions makes sheets of its own"),
        ({"directions": 3, "per_class": 9}, "36 images moved along each direction are too much to look at"),
        ({"mix_layers": "1", "per_class": 7}, "Mixing each of 28 images with each is too much to look at"),
    ],
)
def test_sampling_refuses(tmp_path, monkeypatch, options, message):
    (tmp_path / "checkpoints").mkdir()
    trained = TrainedGenerator(TINY, {}, 1, tuple("abcd"), 7)
    monkeypatch.setattr(sample_module, "load", lambda *_: trained)
    assert message in refused(sample, TINY, tmp_path, **options)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("pictures", "options", "message"),
    [
        ("none", {}, "/none; give pictures, or folders of them"),
        ("empty", {}, "/empty holds no pictures (.jpg,"),
        ("text.png", {}, "/text.png is no picture; leave it out."),
        ("cut.png", {}, "/cut.png cannot be read as a picture ("),
        ("whole.png", {"classes": ["9"]}, "There is no class 9; classes are 0 to 3."),
        ("whole.png", {"classes": ["bee"]}, "There is no class bee; classes are 0 to 3; did you mean 'b'?"),
        ("whole.png", {"space": "z"}, "A StyleGAN2 generator is projected into W or W+, not into z"),
        ("whole.png", {"seed": -1}, "The seed -1 must be an integer from 0 to 4294967295."),
        ("whole.png", {"steps": 0}, "--steps=0 is below 1"),
        ("whole.png", {"which": "newest"}, "--checkpoint=newest is no checkpoint"),
        ("whole.png", {"workdir": "elsewhere"}, "/elsewhere holds no checkpoints; train first (--mode=train)"),
    ],
)
def test_projection_refuses(tmp_path, pictures, options, message):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    write_config(tmp_path / "run", TINY)
    write_classes(tmp_path / "run", 1, "abcd")
    Image.effect_noise((20, 30), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    (tmp_path / "text.png").write_text("no picture")
    before = sorted(tmp_path.rglob("*"))
    options = dict(options)
    workdir, which = tmp_path / options.pop("workdir", "run"), options.pop("which", "latest")
    images = str(tmp_path / pictures)
    assert message in refused(project_pictures, None, workdir, which, images, **options)
    assert sorted(tmp_path.rglob("*")) == before


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.batch_size=33"], "batch_size=33 does not divide"),
        (["--mode=sample", "--directions=x"], "flag --directions=x"),
        (["--mode=project"], "There are no pictures to project; give files or folders of them: --images="),
        (["--seed=3"], "--seed is for --mode=sample or project, not for train; the run's own is --config.seed."),
        (["--topology=v3:2x2"], "--topology is for --mode=compile, not for train."),
    ],
)
def test_command(tmp_path, arguments, message):
    command = [sys.executable, "-m", "noisytwins_jax.main", "--config=configs/digits_lt.py", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert not list(tmp_path.iterdir())
