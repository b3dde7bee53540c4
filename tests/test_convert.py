"""Conversion of runs to PyTorch files and back, and export of samplers, by their commands."""

import json
import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_biggan
import tiny_run
import yaml

from noisytwins_jax import load
from noisytwins_jax.config import flatten
from noisytwins_jax.convert import main
from noisytwins_jax.interop.public_checkpoint import read_public_checkpoint
from noisytwins_jax.interop.torch_writer import write_torch_file
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.checkpoint import Checkpoints
from noisytwins_jax.training.restore import restore_state
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.training.workdir import write_classes, write_config
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.torch_file import read_torch_file

pytestmark = pytest.mark.usefixtures("fast_compilation")
CLASSES, STEP = ("a", "b", "c", "d"), 7
CONFIGS = {
    "stylegan2": lambda: tiny_run.tiny_config(**{"lecam.weight": 0.01, "ada.operations": "", "ada.initial_p": 0.25}),
    "biggan": lambda: tiny_biggan.tiny_config(**{"evaluation.standing_passes": 2, "evaluation.standing_batch": 4}),
    "biggan_deep": lambda: tiny_biggan.tiny_config(
        **{
            "network": "biggan_deep",
            "data.resolution": 32,
            "biggan.attention": "none",
            "evaluation.standing_passes": 1,
            "evaluation.standing_batch": 2,
        }
    ),
}


def write_run(workdir, config, channels=1):
    """Write a workdir as training leaves it, in which all numbers differ."""
    step = TrainingStep(config, build_model(config, channels, len(CLASSES)))
    state = jax.device_get(jax.jit(step.init, static_argnums=0)(3).replace(key=None))
    rng = np.random.default_rng(0)

    def changed(x):
        x = np.asarray(x)
        if x.dtype != np.float32:
            return x
        moved = x + 0.05 * rng.standard_normal(x.shape)
        return (np.abs(moved) if (x >= 0).all() else moved).astype(np.float32)  # second moments stay non-negative

    state = jax.tree.map(changed, state)
    count = lambda x: np.full_like(x, STEP) if np.asarray(x).dtype == np.int32 else x  # noqa: E731
    networks = {name: jax.tree.map(count, getattr(state, name)) for name in ("generator", "discriminator")}
    state = state.replace(key=jax.random.key(3), **networks)
    workdir.mkdir(parents=True)
    write_config(workdir, config)
    write_classes(workdir, channels, CLASSES)
    with Checkpoints(workdir, writable=True) as checkpoints:
        checkpoints.save(STEP, state, {"next_index": STEP}, flatten(config), wait=True)
    return workdir


@pytest.fixture(scope="module", params=["stylegan2", "biggan", pytest.param("biggan_deep", marks=pytest.mark.slow)])
def run(request, tmp_path_factory):
    """Return a directory with a run of the network, and the network."""
    directory = tmp_path_factory.mktemp(request.param)
    write_run(directory / "run", CONFIGS[request.param]())
    return directory, request.param


def state_of(workdir):
    trained = load(workdir)
    return jax.device_get(restore_state(trained.config, workdir, "latest", trained.model)[1].replace(key=None))


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(have, want, but=()):
    have, want = leaves(have), leaves(want)
    assert have.keys() == want.keys()
    assert not [k for k in want if not any(word in k for word in but) and not np.array_equal(have[k], want[k])]


@pytest.mark.parametrize("naming", ["studiogan", "nvidia", "nvidia_pkl", "bigganpytorch"])
def test_there_and_back_is_the_same_run(run, naming, capsys):
    directory, network = run
    if naming.startswith("nvidia") != (network == "stylegan2") and naming != "studiogan":
        pytest.skip("another family's")
    there, back = directory / naming, directory / f"from-{naming}"
    assert main(["to-torch", f"--workdir={directory / 'run'}", f"--out={there}", f"--format={naming}"]) == 0
    if naming == "studiogan":
        [settings] = there.glob("*.yaml")
        assert f"-cfg {settings} -ckpt {there}" in capsys.readouterr().out
        assert yaml.safe_load(settings.read_text())["DATA"]["num_classes"] == len(CLASSES)
    assert main(["from-torch", str(there), f"--workdir={back}"]) == 0
    have, want = state_of(back), state_of(directory / "run")
    # The average of a BigGAN is written with its standing statistics.
    assert_same(have.ema, want.ema, but=["batch_stats"])
    assert_same(have.generator.variables, want.generator.variables)
    assert_same(have.discriminator.variables, want.discriminator.variables)
    if not naming.startswith("nvidia"):  # whose files have networks alone
        assert_same(have.generator, want.generator)
        assert_same(have.discriminator, want.discriminator)
        assert "Adam" not in capsys.readouterr().out
    images = [load(path).sample(per_class=2, seed=1) for path in (back, directory / "run")]
    np.testing.assert_array_equal(*images)


def test_training_continues_with_its_configuration(run):
    directory, network = run
    if network != "stylegan2":
        pytest.skip("the other families' averages are the same code")
    there = directory / "to-continue"
    assert main(["to-torch", f"--workdir={directory / 'run'}", f"--out={there}"]) == 0
    from noisytwins_jax.interop.importing import import_run

    back = import_run(read_public_checkpoint([there]), directory / "continued", CONFIGS[network]())
    have, want = state_of(back), state_of(directory / "run")
    assert_same(have, want, but=[".losses['path_length']", ".ada.sign_sum", ".ada.count", ".rates"])
    config = load(directory / "run").config
    assert flatten(load(back).config) == flatten(config)


@pytest.mark.slow  # statistics for 51 truncations
def test_hugging_face(tmp_path, capsys):
    """The statistics for every truncation survive the round trip."""
    options = {"network": "biggan_deep", "data.resolution": 32, "biggan.attention": "", "biggan.wide_rgb": True}
    fast = {"evaluation.standing_passes": 1, "evaluation.standing_batch": 2}
    config = tiny_biggan.tiny_config(**options | fast)
    write_run(tmp_path / "run", config, channels=3)
    given = ["to-torch", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'there'}", "--format=huggingface"]
    assert main(given) == 0
    back = ["from-torch", str(tmp_path / "there" / "pytorch_model.bin"), f"--workdir={tmp_path / 'back'}"]
    assert main(back) == 0
    assert "There is only the moving average" in capsys.readouterr().out
    run, back = load(tmp_path / "run"), load(tmp_path / "back")
    for strength in (0.5, 0.56, 1):
        images = [model.sample(per_class=2, seed=1, truncation=f"scaled:{strength}") for model in (run, back)]
        np.testing.assert_array_equal(*images)
    about = json.loads((tmp_path / "there" / "config.json").read_text())
    assert (about["output_dim"], about["n_stats"], about["channel_width"]) == (32, 51, 4)
    write_run(tmp_path / "grey", config)
    given[1] = f"--workdir={tmp_path / 'grey'}"
    assert "makes images of 1 channels" in refused(capsys, *given)


def test_safetensors(run):
    directory, _ = run
    there, back = directory / "safe", directory / "from-safe"
    assert main(["to-torch", f"--workdir={directory / 'run'}", f"--out={there}", "--safetensors"]) == 0
    assert sorted(path.name for path in there.iterdir()) == ["D.safetensors", "G.safetensors", "G_ema.safetensors"]
    (there / "any").touch()
    assert {path.stat().st_mode for path in there.iterdir()} == {(there / "any").stat().st_mode}
    (there / "any").unlink()
    assert main(["from-torch", str(there), f"--workdir={back}"]) == 0
    assert_same(state_of(back).generator.variables, state_of(directory / "run").generator.variables)


def test_a_sampler_runs_without_this_package(run):
    directory, network = run
    path, truncation = directory / "sampler.jax", [] if network == "stylegan2" else ["--truncation=std:0.5"]
    assert main(["to-jax", f"--workdir={directory / 'run'}", f"--out={path}", *truncation]) == 0
    model = load(directory / "run")
    options = {"psi": 0.7} if network == "stylegan2" else {"truncation": "std:0.5"}
    labels, indices = model.labels_and_indices([3, 1], 2)
    np.savez(directory / "rows.npz", labels=labels, indices=indices, images=model.sample([3, 1], 2, seed=5, **options))
    code = (
        "import sys, jax, jax.export, numpy as np\n"
        f"given = np.load({str(directory / 'rows.npz')!r})\n"
        f"sampler = jax.export.deserialize(bytearray(open({str(path)!r}, 'rb').read()))\n"
        f"psi = [np.float32(0.7)] if {network!r} == 'stylegan2' else []\n"
        "rows = [given[name].astype(np.int32) for name in ('labels', 'indices')]\n"
        "images = np.asarray(jax.jit(sampler.call)(*rows, np.uint32(5), *psi))\n"
        "assert not [name for name in sys.modules if name.startswith(('noisytwins_jax', 'flax'))]\n"
        "assert sampler.platforms == ('cpu', 'cuda', 'tpu')\n"
        "difference = np.abs(images.astype(int) - given['images'])\n"
        "assert images.shape == given['images'].shape and difference.max() <= 1, difference.max()\n"
        "assert len(np.unique(images)) > 1\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- bad input -------------------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and error.count("\n") == 1, error
    return error


@pytest.fixture
def files(run, tmp_path):
    directory, network = run
    if network != "stylegan2":
        pytest.skip("once is enough")
    assert main(["to-torch", f"--workdir={directory / 'run'}", f"--out={tmp_path / 'files'}", "--format=nvidia"]) == 0
    return tmp_path / "files"


def test_wrong_files_get_an_error_message(files, tmp_path, capsys):
    new = f"--workdir={tmp_path / 'new'}"
    assert "There is no file" in refused(capsys, "from-torch", files / "H.pth", new)
    assert "a discriminator and no generator" in refused(capsys, "from-torch", files / "D.pth", new)
    tensors = dict(read_torch_file(files / "G.pth"))
    write_torch_file(tmp_path / "other.pth", tensors)
    assert "and so is another of the files" in refused(
        capsys, "from-torch", files / "G.pth", tmp_path / "other.pth", new
    )
    content = (files / "G.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    assert "cut.pth" in refused(capsys, "from-torch", tmp_path / "cut.pth", new)
    write_torch_file(tmp_path / "more.pth", tensors | {"synthesis.b4.extra": np.zeros(3, np.float32)})
    assert "synthesis.b4.extra" in refused(capsys, "from-torch", tmp_path / "more.pth", new)
    lacking = {key: x for key, x in tensors.items() if key != "synthesis.b8.torgb.bias"}
    write_torch_file(tmp_path / "less.pth", lacking)
    assert "synthesis.b8.torgb.bias" in refused(capsys, "from-torch", tmp_path / "less.pth", new)
    write_torch_file(tmp_path / "resnet.pth", {"layer1.0.conv1.weight": np.zeros((4, 4, 3, 3), np.float32)})
    assert "is no network that is known here" in refused(capsys, "from-torch", tmp_path / "resnet.pth", new)
    assert not (tmp_path / "new").exists()


def test_another_configuration_is_refused(files, tmp_path, capsys):
    given = ["from-torch", files, f"--workdir={tmp_path / 'new'}", "--config=configs/digits_lt.py:baseline"]
    assert "The generator is of 4 classes and 1 channels, and config.data has 10 and 1" in refused(capsys, *given)
    assert "data.resolution" in refused(capsys, *given, "--config.data.resolution=16")
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_existing_runs_are_not_overwritten(files, run, capsys):
    directory, _ = run
    assert "has checkpoints already" in refused(capsys, "from-torch", files, f"--workdir={directory / 'run'}")


def test_a_malicious_file_does_not_run(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for name in ("evil.pkl", "evil.pth"):
        (tmp_path / name).write_bytes(pickle.dumps({"G": Evil()}, protocol=2))
        message = refused(capsys, "from-torch", tmp_path / name, f"--workdir={tmp_path / 'new'}")
        assert "system" in message
    assert not (tmp_path / "ran").exists()


def test_wrong_formats_and_options(run, tmp_path, capsys):
    directory, network = run
    given = ["to-torch", f"--workdir={directory / 'run'}", f"--out={tmp_path / 'out'}"]
    assert f"{network} is not written as 'tensorflow'" in refused(capsys, *given, "--format=tensorflow")
    assert "There is no option --fast" in refused(capsys, *given, "--fast")
    assert "holds no checkpoints" in refused(capsys, "to-torch", f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}")
    assert "There is no platform 'gpu'" in refused(
        capsys, "to-jax", f"--workdir={directory / 'run'}", f"--out={tmp_path / 'x'}", "--platforms=gpu"
    )
    assert "There is no platform ''" in refused(
        capsys, "to-jax", f"--workdir={directory / 'run'}", f"--out={tmp_path / 'x'}", "--platforms="
    )
    if network == "stylegan2":
        message = refused(capsys, *given, "--format=nvidia_pkl", "--safetensors")
        assert "give --safetensors with --format=nvidia" in message
    assert not list(tmp_path.iterdir())


def test_output_is_checked_first(tmp_path, capsys):
    """Before the run is looked for, which does not exist."""
    run, file = f"--workdir={tmp_path / 'run'}", tmp_path / "file"
    file.touch()
    assert f"--out={file} is a file; give a directory" in refused(capsys, "to-torch", run, f"--out={file}")
    assert f"--out={tmp_path} is a directory; give a file" in refused(capsys, "to-jax", run, f"--out={tmp_path}")
    for verb in ("to-torch", "to-jax"):
        assert f"because of {file}" in refused(capsys, verb, run, f"--out={file / 'in' / 'it'}")


def test_a_run_without_its_classes(run, tmp_path):
    directory, _ = run
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"has checkpoints but no config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text((directory / "run" / "config.json").read_text())
    with pytest.raises(UserError, match=r"classes\.json is missing, as in runs of an earlier version"):
        load(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps({"channels": 1}))
    with pytest.raises(UserError, match=r"classes\.json is not as this program writes it"):
        load(tmp_path)
