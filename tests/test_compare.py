"""Comparing finished runs: what a user sees at the end of `make demo`."""

import json

import numpy as np
import pytest
from PIL import Image

from noisytwins_jax import compare
from noisytwins_jax.utils.errors import UserError

NUMBERS = ("fid", "ifid", "tail_ifid", "precision", "recall", "tail_recall", "w_ratio", "class_accuracy")


def finished_run(workdir, value: float, **protocol):
    """The three files of an evaluated run of two classes."""
    workdir.mkdir(parents=True)
    rows = [{"class": c, "name": str(c), "n_train": 9 - c, "n_real": 9, "ifid": value, "recall": 0.5} for c in (0, 1)]
    result = {"protocol": protocol, "metrics": dict.fromkeys(NUMBERS, value), "per_class": rows, "real_vs_real": {}}
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


def test_runs_of_different_protocols_are_refused_and_nothing_is_written(tmp_path, capsys):
    paths = [finished_run(tmp_path / name, 0.5, name=name, k=5) for name in ("tf1", "clean")]
    assert compare.main([*map(str, paths), f"--out={tmp_path / 'report.html'}"]) == 2
    printed = capsys.readouterr()
    assert "tf1 and clean were evaluated under different protocols (name: tf1 and clean)" in printed.err
    assert printed.err.count("\n") == 1 and not printed.out and not (tmp_path / "report.html").exists()
    seeds = {"method": [finished_run(tmp_path / f"run-seed{k}", 0.5, k=k) for k in (3, 5)]}
    with pytest.raises(UserError, match=r"run-seed3 and run-seed5 .*\(k: 3 and 5\)"):
        compare.compare(seeds, tmp_path / "report.html")


def test_a_run_that_is_not_evaluated_is_refused(tmp_path):
    workdir = finished_run(tmp_path / "run", 0.5)
    (workdir / "evaluation.json").unlink()
    with pytest.raises(UserError, match=r"no evaluation\.json.*evaluate"):
        compare.compare({"run": [workdir]}, tmp_path / "report.html")


@pytest.mark.parametrize("first", ["run", "files"])
def test_images_from_files_stand_beside_a_run(tmp_path, first):
    made = {"labels": "balanced", "truncation_psi": 0.7, "class_noise": True, "weights": "ema"}
    run = finished_run(tmp_path / "run", 0.25, **made)
    files = finished_run(
        tmp_path / "files", 0.75, **made | {"weights": "files", "truncation_psi": None, "class_noise": None}
    )
    for name in ("samples.png", "w.npz"):
        (files / name).unlink()
    order = {first: [tmp_path / first]} | {"run": [run], "files": [files]}
    text = compare.compare(order, tmp_path / "report.html")
    assert "0.750" in text and "0.250" in text and "images from files are not known" in text
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == 3 and "images from files are not known" in page  # one sheet, one W, the classes
    alone = compare.compare({"files": [files]}, tmp_path / "alone.html")
    assert "0.750" in alone and "not known" not in alone and (tmp_path / "alone.html").read_text().count("<img") == 1


def test_w_ratios_over_training_are_shown_where_they_were_logged(tmp_path):
    groups = {name: [finished_run(tmp_path / f"{name}{seed}", 0.5) for seed in (0, 1)] for name in ("logged", "not")}
    compare.compare(groups, tmp_path / "without.html")
    for i, workdir in enumerate(groups["logged"]):
        records = [{"step": s, "kimg": s / 10, "w_ratio": 0.1 * i, "loss": 1.0} for s in range(3)]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    compare.compare(groups, tmp_path / "with.html")
    without, shown = ((tmp_path / name).read_text() for name in ("without.html", "with.html"))
    assert "W ratio over training" in shown and "W ratio over training" not in without
    assert shown.count("<img") == without.count("<img") + 1
