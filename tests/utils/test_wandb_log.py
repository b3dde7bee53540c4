"""Logging to Weights & Biases. As a program, logs as a training does: python tests/utils/test_wandb_log.py WORKDIR."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_wandb
import jax
import numpy as np
import pytest
import tiny_run
from paths import HELPERS, ROOT
from PIL import Image

from noisytwins_jax.training.hooks.log import wandb_log
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.logging import MetricsWriter, read_metrics
from noisytwins_jax.utils.wandb_log import WandbLog


def write(workdir, first=0):
    """Logs three steps, an image and a table, as a training does."""
    with WandbLog("project", workdir, "digits", {"r1": {"gamma": 0.1}}) as log:
        writer = MetricsWriter(workdir, wandb=log)
        writer.truncate_after(first - 1)
        for step in range(first, first + 3):
            writer.write_scalars(step, {"loss/r1": np.float32(step)})
        writer.write_images(first + 2, {"samples": Image.new("RGB", (16, 8)), "grey": np.zeros((8, 8, 1), np.uint8)})
        writer.close()
        log.write_table(first + 2, "classes", [{"class": 0, "ifid": 1.5}, {"class": 1, "recall": None}])


def steps(workdir):
    return [record["step"] for record in read_metrics(workdir)]


def test_numbers_images_tables_and_configuration_arrive(tmp_path, monkeypatch, capsys):
    runs = fake_wandb.install(monkeypatch)
    write(tmp_path)
    (run,) = runs
    assert (run.arguments["project"], run.arguments["name"], run.exit_code) == ("project", "digits", 0)
    assert run.arguments["config"] == {"r1": {"gamma": 0.1}}
    assert [(step, values["loss/r1"]) for step, values in run.logged[:3]] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert run.values()["samples"][1].size == (16, 8)
    table = run.values()["classes"]
    assert (table.columns, table.data) == (["class", "ifid", "recall"], [[0, 1.5, None], [1, None, None]])
    assert capsys.readouterr().err == "Weights & Biases: https://server/id0\n"


def test_a_resumed_training_continues_its_run(tmp_path, monkeypatch):
    runs = fake_wandb.install(monkeypatch)
    write(tmp_path)
    (tmp_path / "wandb_id.txt").write_text("id7\n")
    write(tmp_path, first=3)
    assert [run.arguments["id"] for run in runs] == [None, "id7"]
    assert all(run.arguments["resume"] == "allow" and run.arguments["allow_val_change"] for run in runs)
    assert runs[1].logged[0] == (3, {"loss/r1": 3.0})
    assert steps(tmp_path) == [0, 1, 2, 3, 4, 5]


def test_an_exception_ends_the_run_as_failed(tmp_path, monkeypatch):
    runs = fake_wandb.install(monkeypatch)
    with pytest.raises(SystemExit), WandbLog("project", tmp_path, "digits", {}) as log:
        log.start()
        raise SystemExit(143)
    assert runs[0].exit_code == 1


def test_without_a_project_the_package_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it is an ImportError
    with WandbLog("", tmp_path, "digits", {}) as log:
        log.start()
        log.write_scalars(0, {"x": 1.0})
    assert not [*tmp_path.iterdir()]


def test_a_missing_package_is_an_error_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"config\.wandb=mine needs .*pip install -e '\.\[wandb\]'"):
        wandb_log(tiny_run.tiny_config(wandb="mine"), tmp_path)
    assert not [*tmp_path.iterdir()]


def test_only_the_primary_process_writes(tmp_path, monkeypatch):
    runs = fake_wandb.install(monkeypatch)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with wandb_log(tiny_run.tiny_config(wandb="mine"), tmp_path) as log:
        log.start()
    assert not runs


def test_without_a_server_the_run_is_kept_on_disk(tmp_path, monkeypatch, capsys):
    runs = fake_wandb.install(monkeypatch, refuse=[None])
    write(tmp_path)
    assert runs[0].arguments["mode"] == "offline"
    assert runs[0].values()["loss/r1"] == 2
    warning, how = capsys.readouterr().err.splitlines()
    assert "cannot be used now (no server)" in warning and "`wandb login`" in warning
    assert how == f"Weights & Biases: wandb sync {tmp_path}/wandb/offline-run-id0"


def test_a_failing_package_stops_nothing(tmp_path, monkeypatch, capsys):
    assert fake_wandb.install(monkeypatch, refuse=[None, "offline"]) == []
    write(tmp_path)
    assert steps(tmp_path) == [0, 1, 2]
    assert capsys.readouterr().err.count("training goes on without it") == 1


def test_an_error_in_the_middle_is_reported_once(tmp_path, monkeypatch, capsys):
    runs = fake_wandb.install(monkeypatch)

    def fail(self, values, step):
        if step == 1:
            raise BrokenPipeError("the service died")
        self.logged.append((step, values))

    monkeypatch.setattr(fake_wandb.Run, "log", fail)
    write(tmp_path)
    assert steps(tmp_path) == [0, 1, 2]
    assert [step for step, _ in runs[0].logged] == [0]
    assert capsys.readouterr().err.count("failed (the service died); training goes on without it") == 1


def write_in_a_process(workdir, **environment):
    """`write` with the real package and without a network; returns what was printed to standard error."""
    pytest.importorskip("wandb")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(workdir), "PYTHONPATH": os.pathsep.join([str(HELPERS), str(ROOT)])}
    done = subprocess.run([sys.executable, __file__, workdir], env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_the_real_package_writes_a_folder_without_a_network(tmp_path):
    said = [write_in_a_process(tmp_path, WANDB_MODE="offline") for _ in range(2)]
    first, second = sorted((tmp_path / "wandb").glob("offline-run-*"))
    name = (tmp_path / "wandb_id.txt").read_text().strip()
    for folder in (first, second):
        records = (folder / f"run-{name}.wandb").read_bytes()
        assert f"Weights & Biases: wandb sync {folder}\n" in "".join(said)
        assert all(word in records for word in (b"project", b"digits", b"gamma", b"loss/r1", b"samples", b"classes"))
    images = [Image.open(path).size for path in (first / "files/media/images").glob("*.png")]
    assert sorted(images) == [(8, 8), (16, 8)]
    (table,) = (first / "files/media/table").rglob("*.json")
    assert json.loads(table.read_text())["data"] == [[0, 1.5, None], [1, None, None]]


@pytest.mark.slow
def test_the_real_package_without_a_key_keeps_the_run_on_disk(tmp_path):
    assert "cannot be used now (No API key" in write_in_a_process(tmp_path)
    assert [*(tmp_path / "wandb").glob("offline-run-*")]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
