import errno
import json
import os
import subprocess
import sys

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_run import tiny_config
from waiting import TIMEOUT

from noisytwins_jax.data.aspect import Aspect
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.training.workdir import (
    CLASSES_FILE,
    CONFIG_FILE,
    PARAMETERS_FILE,
    open_workdir,
    read_aspect,
    read_classes,
    use_compilation_cache,
    write_classes,
    write_config,
    write_parameter_tables,
)
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.files import write_atomically


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch):
    """The cache is a setting of the whole process: other tests keep theirs."""
    monkeypatch.setattr("noisytwins_jax.training.workdir.use_compilation_cache", lambda workdir: None)


def test_the_same_configuration_goes_on(tmp_path):
    config = tiny_config(**{"data.options": {"sizes": (1, 2)}})  # a tuple, which JSON does not have
    workdir = open_workdir(tmp_path / "run", config)
    write_config(workdir, config)
    assert open_workdir(workdir, config) == workdir
    assert json.loads((workdir / CONFIG_FILE).read_text())["data.options.sizes"] == [1, 2]


def test_what_is_only_watched_may_change(tmp_path):
    write_config(tmp_path, tiny_config())
    before = (tmp_path / CONFIG_FILE).read_text()
    longer = tiny_config(total_kimg=99.0, **{"evaluation.neighbours": 3})
    open_workdir(tmp_path, longer)
    assert (tmp_path / CONFIG_FILE).read_text() == before  # only a run that trains writes
    write_config(tmp_path, longer)
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["total_kimg"] == 99.0


def test_what_is_trained_may_not(tmp_path):
    write_config(tmp_path, tiny_config())
    before = (tmp_path / CONFIG_FILE).read_text()
    with pytest.raises(UserError, match=r"another configuration: noisytwins.weight: 0.05 → 0.1; seed: 0 → 1\."):
        open_workdir(tmp_path, tiny_config(seed=1, **{"noisytwins.weight": 0.1}))
    assert (tmp_path / CONFIG_FILE).read_text() == before


def test_places_that_cannot_hold_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        open_workdir(tmp_path / "file" / "run", tiny_config())
    with pytest.raises(UserError, match="is not a local directory"):
        open_workdir("gs://bucket/run", tiny_config())
    (tmp_path / CONFIG_FILE).write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        open_workdir(tmp_path, tiny_config())


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a", "old")

    def full(action, what):
        (next(tmp_path.glob(".a.*"), tmp_path / f".a.{os.getpid()}")).write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("noisytwins_jax.utils.files.retry", full)
    with pytest.raises(OSError):
        write_atomically(tmp_path / "a", "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]


@pytest.mark.parametrize("fsdp", [1, 2])
def test_overview_of_the_parameters(tmp_path, capsys, fsdp):
    mesh = jax.sharding.AbstractMesh((1, fsdp), ("data", "fsdp"))

    def shard(x):
        return NamedSharding(mesh, PartitionSpec("fsdp") if fsdp > 1 and x.ndim == 4 else PartitionSpec())

    config = tiny_config()
    state = TrainingStep(config, build_model(config, 1, 4)).abstract_state(lambda shapes: jax.tree.map(shard, shapes))
    write_parameter_tables(tmp_path, state)
    sizes = [sum(x.size for x in jax.tree.leaves(network.params)) for network in (state.generator, state.discriminator)]
    path = tmp_path / PARAMETERS_FILE
    assert capsys.readouterr().out == (
        f"Generator: {sizes[0]:,} parameters, discriminator: {sizes[1]:,}; the tables are in {path}.\n"
    )
    text = path.read_text()
    assert f"Generator: {sizes[0]:,} parameters\n+--" in text
    assert f"Discriminator: {sizes[1]:,} parameters\n+--" in text
    weight = next(line for line in text.splitlines() if line.startswith("| mapping/"))
    assert "float32" in weight
    assert ("Sharding" in text, "'fsdp'" in text) == (fsdp > 1,) * 2


def test_the_overview_needs_no_tensorflow():
    program = "import sys, noisytwins_jax.training.workdir; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=TIMEOUT)


@pytest.mark.parametrize("variables", [{}, {"JAX_COMPILATION_CACHE_DIR": "/elsewhere"}])
def test_compiled_programs_are_cached_beside_the_runs_or_where_jax_is_told(tmp_path, monkeypatch, variables):
    options = {}
    monkeypatch.setattr(jax.config, "update", options.__setitem__)
    monkeypatch.setattr(os, "environ", variables)
    use_compilation_cache(tmp_path / "runs" / "a")
    compiled = str(tmp_path / "runs" / "cache" / "compiled")
    assert options.get("jax_compilation_cache_dir") == (None if variables else compiled)


def test_the_aspect_ratio_is_known_without_the_data(tmp_path):
    for aspect in (Aspect("pad", 1.5), None):
        write_classes(tmp_path, 3, ["ant", "bee"], aspect)
        assert read_classes(tmp_path) == (3, ("ant", "bee")) and read_aspect(tmp_path) == aspect
    (tmp_path / CLASSES_FILE).write_text('{"channels": 3, "class_names": ["ant"]}')  # of an earlier version
    assert read_classes(tmp_path) == (3, ("ant",)) and read_aspect(tmp_path) is None
    (tmp_path / CLASSES_FILE).write_text('{"channels": 3, "class_names": ["ant"], "aspect": {"ratio": 2}}')
    with pytest.raises(UserError, match="not as this program writes it"):
        read_aspect(tmp_path)
