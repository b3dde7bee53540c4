"""Comparing finished runs, and running several: what a user sees at the end of `make demo`."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from noisytwins_jax import compare, sweep
from noisytwins_jax.errors import UserError

NUMBERS = ("fid", "ifid", "tail_ifid", "precision", "recall", "tail_recall", "w_ratio", "class_accuracy")


def finished_run(workdir, value: float):
    """The three files of an evaluated run of two classes."""
    workdir.mkdir(parents=True)
    rows = [{"class": c, "name": str(c), "n_train": 9 - c, "n_real": 9, "ifid": value, "recall": 0.5} for c in (0, 1)]
    result = {"protocol": {}, "metrics": dict.fromkeys(NUMBERS, value), "per_class": rows, "floor": {}}
    (workdir / "evaluation.json").write_text(json.dumps(result))
    Image.new("L", (8, 8)).save(workdir / "samples.png")
    np.savez(workdir / "w.npz", w=np.random.default_rng(0).normal(size=(20, 4)), labels=np.arange(20) % 2)
    return workdir


def test_seeds_are_averaged_and_the_page_is_written(tmp_path):
    groups = {
        "baseline": [finished_run(tmp_path / f"baseline-seed{s}", 0.1 + 0.2 * s) for s in (0, 1)],
        "noisytwins": [finished_run(tmp_path / "noisytwins", 0.75)],
    }
    text = compare.compare(groups, tmp_path / "report.html")
    assert "baseline-seed1" in text and "0.750" in text
    assert "0.200 ± 0.100" in text  # mean and population deviation of 0.1 and 0.3
    assert "noisytwins" in (tmp_path / "report.html").read_text()


def test_runs_of_one_name_stay_apart(tmp_path, capsys):
    paths = [finished_run(tmp_path / side / "run", value) for side, value in (("a", 0.25), ("b", 0.5))]
    assert compare.main([*map(str, paths), f"--out={tmp_path / 'report.html'}"]) == 0
    printed = capsys.readouterr().out
    assert str(paths[0]) in printed and str(paths[1]) in printed


@pytest.mark.parametrize("missing", ["evaluation.json", "samples.png", "w.npz"])
def test_a_run_that_is_not_evaluated_is_refused(tmp_path, missing):
    workdir = finished_run(tmp_path / "run", 0.5)
    (workdir / missing).unlink()
    with pytest.raises(UserError, match=f"no {missing}.*evaluate"):
        compare.compare({"run": [workdir]}, tmp_path / "report.html")


def test_sweep_runs_everything_and_says_who_speaks(capfd):
    commands = {name: [sys.executable, "-c", f"print('hello from {name}')"] for name in ("a", "b", "c")}
    sweep.sweep(commands, jobs=2)
    printed = capfd.readouterr().out
    assert all(f"[{name}] hello from {name}" in printed for name in commands)


def test_a_failing_run_stops_the_others(capfd):
    commands = {
        "long": [sys.executable, "-c", "import time; time.sleep(600)"],
        "bad": [sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"],
    }
    with pytest.raises(UserError, match="bad failed"):
        sweep.sweep(commands, jobs=2)
    assert "[bad] no such thing" in capfd.readouterr().out
