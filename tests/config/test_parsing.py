"""Configuration: the tree, its typed form, the files in configs/ and the command line."""

import dataclasses
import importlib.util
from pathlib import Path

import ml_collections
import pytest
from absl import flags
from paths import ROOT

from noisytwins_jax import main
from noisytwins_jax.config import RunConfig, default_config, differences, flatten, parse_config
from noisytwins_jax.utils.errors import UserError

DIGITS = ROOT / "configs" / "digits_lt.py"
METHODS = ["baseline", "noise", "noisytwins", "decorrelation"]


def config_file(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command_line(monkeypatch):
    """Parses a command line as the command does; returns the configuration."""

    def parse(*arguments: str) -> RunConfig:
        argv = ["main", *arguments]
        monkeypatch.setattr("sys.argv", argv)
        assert main.parse_flags(argv) == ["main"]
        return parse_config(flags.FLAGS.config)

    yield parse
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


# --- the tree --------------------------------------------------------------------------------------------------------


def test_default_tree_parses_to_the_defaults():
    assert parse_config(default_config()) == RunConfig()


def test_changed_fields_arrive_where_they_belong():
    config = default_config()
    config.noisytwins.gamma, config.batch_size, config.data.options = 0.5, 24, {"largest": 9}
    config.generator.conv_clamp, config.ema.rampup = 256, 0.05
    run = parse_config(config)
    assert run.noisytwins.gamma == 0.5 and run.batch_size == 24 and run.data.options == {"largest": 9}
    assert run.generator.conv_clamp == 256.0 and run.ema.rampup == 0.05
    assert run.discriminator == RunConfig().discriminator


def test_fields_keep_their_types():
    config = default_config()
    with pytest.raises(TypeError):
        config.batch_size = "many"
    with pytest.raises(TypeError):
        config.ema.rampup = "none"


def test_flatten():
    flat = flatten(dataclasses.replace(RunConfig(), seed=3))
    assert flat["seed"] == 3 and flat["generator.z_dim"] == 512 and flat["ema.rampup"] is None
    assert flat["gsr.alpha"] == 0.99 and not any(isinstance(value, dict) for value in flat.values())
    values = [getattr(RunConfig(), field.name) for field in dataclasses.fields(RunConfig)]
    leaves = sum(len(dataclasses.fields(value)) if dataclasses.is_dataclass(value) else 1 for value in values)
    assert len(flat) == leaves - 1  # data.options has no fields of its own


def test_differences():
    old = flatten(RunConfig())
    assert differences(old, old) == []
    new = old | {"r1.gamma": 1.0, "batch_size": 8, "total_kimg": 1.0, "evaluation.seed": 5, "log_interval_kimg": 9.0}
    assert differences(old, new) == ["batch_size: 128 → 8", "r1.gamma: 0.01 → 1.0"]  # not those that only watch
    assert differences(old, new | {"data.options.largest": 9})[1] == "data.options.largest: (absent) → 9"
    earlier = {name: value for name, value in old.items() if name not in ("loss", "utlo.weight")}
    assert differences(earlier, old) == []  # of a version without these fields
    assert differences(earlier, old | {"utlo.weight": 1.0}) == ["utlo.weight: 0.0 → 1.0"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("loss", "hing"),
        ("fake_labels", "empirica"),
        ("dtype", "float16"),
        ("up_impl", "fast"),
        ("generator.architecture", "skipp"),
        ("generator.noise_mode", "off"),
        ("discriminator.architecture", "resnet50"),
        ("noisytwins.noise_normalization", "mean"),
        ("noisytwins.noise_scale", "var"),
        ("noisytwins.correlation", "pearson"),
        ("noisytwins.diagonal", "twins"),
    ],
)
def test_words_must_be_known(path, value):
    config = default_config()
    config.update_from_flattened_dict({path: value})
    with pytest.raises(UserError) as error:
        parse_config(config)
    assert str(error.value).startswith(f"config.{path} is '") and str(error.value).endswith(f", not {value!r}.")


def test_a_config_file_cannot_add_a_field():
    config = default_config()
    config.noisytwins.weigth = 0.1
    with pytest.raises(UserError, match=r"There is no field config\.noisytwins\.weigth; did you mean 'weight'\?"):
        parse_config(config)


def test_steps():
    run = dataclasses.replace(RunConfig(), batch_size=32, total_kimg=0.1)
    assert (run.images_per_step, run.total_steps) == (32, 4)  # 100 images need 3.1 steps
    run = dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, discriminator_updates=2))
    assert (run.images_per_step, run.total_steps) == (64, 2)


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_method_of_every_file_parses(path):
    module = config_file(path)
    names = {parse_config(module.get_config(method)).name for method in module.METHODS}
    assert names == {f"{path.stem}-{method}" for method in module.METHODS}
    assert parse_config(module.get_config()).name == f"{path.stem}-{module.METHODS[0]}"


def test_methods_of_digits_differ_from_the_baseline_in_the_method_only():
    module = config_file(DIGITS)
    flat = {method: flatten(parse_config(module.get_config(method))) for method in METHODS}

    def changed(method: str) -> set[str]:
        baseline, fields = flat["baseline"], flat[method]
        assert baseline.keys() == fields.keys()
        return {name for name in fields if fields[name] != baseline[name]}

    noise, twins = {"noisytwins.sigma"}, {"noisytwins.weight"}
    assert changed("noise") == {"name"} | noise
    assert changed("noisytwins") == {"name"} | noise | twins
    assert changed("decorrelation") == {"name"} | twins
    assert flat["baseline"]["noisytwins.sigma"] == flat["baseline"]["noisytwins.weight"] == 0.0
    for field in noise | twins:
        assert flat["noisytwins"][field] > 0


def test_misspelt_method_names_its_neighbour():
    with pytest.raises(UserError, match="no method 'noisytwin'; did you mean 'noisytwins'"):
        config_file(DIGITS).get_config("noisytwin")


# --- the command line ------------------------------------------------------------------------------------------------


def test_every_field_can_be_overridden(command_line):
    run = command_line(
        f"--config={DIGITS}:noise",
        "--config.ema.rampup=0.1",
        "--config.generator.conv_clamp=256",
        "--config.noisytwins.sigma=0.25",
        "--config.data.options.largest=100",
        "--config.data.mirror",
        "--config.total_kimg=5",
    )
    assert run.name == "digits_lt-noise" and run.ema.rampup == 0.1 and run.generator.conv_clamp == 256.0
    assert run.noisytwins.sigma == 0.25 and run.data.options["largest"] == 100 and run.data.mirror
    assert run.total_kimg == 5.0 and isinstance(run.total_kimg, float)
    assert run.discriminator.conv_clamp is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config={d}", "--config.noisytwins.weigth=1"],
            "no field config.noisytwins.weigth; did you mean 'config.noisytwins.weight'?",
        ),
        (["--config={d}", "--config.noisytwin.weight=1"], "did you mean 'config.noisytwins.weight'?"),
        (
            ["--config={d}", "--config.noisytwins=1"],
            "There is no field config.noisytwins; did you mean 'config.noisytw",
        ),
        (["--config={d}", "--config.data.options.sed=1"], "does not set config.data.options.sed; set it there first."),
        (["--config={d}", "--config.batch_size=many"], "--config.batch_size=many: invalid literal for int()"),
        (["--config={d}", "--config.ema.rampup=yes"], "--config.ema.rampup=yes: could not convert"),
        (["--config={d}:noisytwin"], "configs/digits_lt.py has no method 'noisytwin'; did you mean 'noisytwins'?"),
        (["--config=nowhere/digits.py"], "cannot be read ([Errno 2] No such file or directory: 'nowhere/digits.py')"),
        (["--config.batch_size=8"], "There is no configuration; give --config="),
        (["--config={d}", "--mode=trian"], "value should be one of <train|evaluate|sample|project|compile>"),
        (["--config={d}", "--wrokdir=x"], "Unknown command line flag 'wrokdir'. Did you mean: workdir ?"),
    ],
)
def test_mistakes_are_one_sentence(command_line, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        command_line(*(argument.replace("{d}", str(DIGITS)) for argument in arguments))
    assert exit_.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Error: ") and printed.count("\n") == 1 and message in printed


def test_mistakes_in_a_config_files_code_are_shown_where_they_are(command_line, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from noisytwins_jax.config import default_config\n\ndef get_config():\n    default_config().nowhere.x\n"
    )
    with pytest.raises(AttributeError, match="nowhere"):
        command_line(f"--config={path}")


def test_placeholders_are_those_of_optional_fields():
    config = default_config()
    assert isinstance(config, ml_collections.ConfigDict)
    assert config.ema.rampup is None and config.generator.conv_clamp is None
    config.ema.rampup = 1  # an int where a float belongs
    assert parse_config(config).ema.rampup == 1.0
