import json

import pytest
from tiny_run import tiny_config

from noisytwins_jax.errors import UserError
from noisytwins_jax.workdir import CONFIG_FILE, open_workdir


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch):
    """The cache is a setting of the whole process: other tests keep theirs."""
    monkeypatch.setattr("noisytwins_jax.workdir.use_compilation_cache", lambda workdir: None)


def test_the_same_configuration_goes_on(tmp_path):
    config = tiny_config(**{"data.options": {"sizes": (1, 2)}})  # a tuple, which JSON does not have
    workdir = open_workdir(tmp_path / "run", config)
    assert open_workdir(workdir, config) == workdir
    assert json.loads((workdir / CONFIG_FILE).read_text())["data.options.sizes"] == [1, 2]


def test_what_is_only_watched_may_change(tmp_path):
    open_workdir(tmp_path, tiny_config())
    open_workdir(tmp_path, tiny_config(total_kimg=99.0, **{"evaluation.neighbours": 3}))
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["total_kimg"] == 99.0


def test_what_is_trained_may_not(tmp_path):
    open_workdir(tmp_path, tiny_config())
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
