"""Sweeps: planning, resuming and collecting results. Only the last test runs real runs, the others stubs."""

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
from paths import ROOT
from waiting import TIMEOUT

from noisytwins_jax import sweep
from noisytwins_jax.config import flatten
from noisytwins_jax.config.flags import load_config
from noisytwins_jax.sweep import parse_grids, plan, short_names
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.subprocesses import run_all

# ml_collections' way to load a config file
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

DIGITS = str(ROOT / "configs" / "digits_lt.py")
GRIDS = ["config.noisytwins.sigma=0,0.1", "config.noisytwins.weight=0.1,0.4"]
NUMBERS = ("fid", "ifid", "tail_ifid", "precision", "recall", "tail_recall", "w_ratio", "class_accuracy")


def test_every_line_of_output_names_its_run(capfd):
    commands = {name: [sys.executable, "-c", f"print('hello from {name}')"] for name in ("a", "b", "c")}
    assert run_all(commands, jobs=2) == []
    printed = capfd.readouterr().out
    assert all(f"[{name}] hello from {name}" in printed for name in commands)


def test_a_failing_run_stops_the_others(capfd):
    commands = {
        "long": [sys.executable, "-c", "import time; time.sleep(600)"],
        "bad": [sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"],
    }
    with pytest.raises(UserError, match="bad failed"):
        run_all(commands, jobs=2)
    assert "[bad] no such thing" in capfd.readouterr().out


def test_other_runs_continue_after_a_failure_with_keep_going(capfd):
    commands = {"bad": [sys.executable, "-c", "import sys; sys.exit(3)"], "good": [sys.executable, "-c", "print('hi')"]}
    assert run_all(commands, jobs=1, keep_going=True) == ["bad"]
    assert "[good] hi" in capfd.readouterr().out


def test_a_grid_is_every_combination_once_per_seed(tmp_path):
    runs = plan(DIGITS, "noisytwins", "0,1", GRIDS, ["--config.total_kimg=2"], tmp_path)
    assert len(runs) == 8
    assert runs[1].workdir == tmp_path / "digits_lt-noisytwins-sigma0-weight0.1-seed1"
    assert runs[-1].point == {"sigma": "0.1", "weight": "0.4"}
    config = runs[-1].config
    assert (config.noisytwins.sigma, config.noisytwins.weight, config.seed, config.total_kimg) == (0.1, 0.4, 1, 2)
    command = runs[-1].command
    assert load_config([o for o in command if o.startswith("--config")]) == config
    assert command[-1] == f"--workdir={runs[-1].workdir}"


def test_names_without_a_grid(tmp_path):
    def names(*arguments):
        return [run.workdir.name for run in plan(DIGITS, *arguments, [], [], tmp_path)]

    assert names("baseline,noisytwins", "0") == ["digits_lt-baseline", "digits_lt-noisytwins"]
    assert names("noisytwins", "0,3") == ["digits_lt-noisytwins-seed0", "digits_lt-noisytwins-seed3"]
    (smoke,) = plan(f"{DIGITS}:smoke", "noise", "0", [], [], tmp_path)
    assert smoke.workdir.name == "digits_lt-noise-smoke" and f"--config={DIGITS}:noise,smoke" in smoke.options
    (words,) = plan(DIGITS, "noisytwins", "0", ["config.loss=hinge"], [], tmp_path)
    assert words.workdir.name == "digits_lt-noisytwins-loss-hinge-seed0"


def test_short_names_tell_fields_apart():
    assert short_names(["config.noisytwins.sigma"]) == ["sigma"]
    fields = ["config.noisytwins.weight", "config.path_length.weight", "config.batch_size"]
    assert short_names(fields) == ["noisytwins.weight", "path_length.weight", "batch_size"]


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        (["noisytwins.sigma=1"], "as in --grid config.noisytwins.sigma=0,0.1,0.3, not 'noisytwins.sigma=1'"),
        (["config.noisytwins.sigma"], "takes a field and its values"),
        (["config.noisytwins.sigma=0,,1"], "takes a field and its values"),
        (["config.r1.gamma=1", "config.r1.gamma=2"], "has config.r1.gamma twice"),
        (["config.seed=0,1"], "seeds are given with --seeds"),
    ],
)
def test_grids_that_cannot_be_read(grids, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        parse_grids(grids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid=config.noisytwins.sgima=0"], "no field config.noisytwins.sgima; did you mean 'config.noisytwins.si"),
        (["--grid=config.noisytwins.sigma=0,x"], "config.noisytwins.sigma=x"),
        (["--grid=config.noisytwins.alpha=0,2"], "config.noisytwins.alpha must be"),
        (["--grid=config.r1.gamma=1,1"], "name every method, seed and value once"),
        (["--grid=config.r1.gamma=1", "--config.r1.gamma=2"], "a field of --grid too"),
        (["--methods=nosytwins"], "no method 'nosytwins'; did you mean 'noisytwins'"),
        (["--sedes=1"], "sedes"),
        (["stray"], "Unexpected argument 'stray'"),
        (["--jobs=0"], "--jobs must be at least 1"),
    ],
)
def test_mistakes_are_reported_before_anything_starts(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr(sweep, "run_all", lambda *_, **__: pytest.fail("started"))
    arguments = [f"--config={DIGITS}", "--methods=noisytwins", f"--out={tmp_path / 'runs'}", *options]
    assert sweep.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def finish_run(run: sweep.Run, ifid: float, step: int | None = None) -> None:
    """Write the files of an evaluated run that a sweep reads."""
    run.workdir.mkdir(parents=True, exist_ok=True)
    (run.workdir / "config.json").write_text(json.dumps(flatten(run.config)))
    metrics = dict.fromkeys(NUMBERS, 0.5) | {"ifid": ifid, "tail_recall": None}
    options = run.config.evaluation
    protocol = {
        "name": options.protocol,
        "n_fake_per_class": options.samples_per_class,
        "k": options.settings.k,
        "seed": options.seed,
    }
    protocol["extractors"] = {"classifier": {}}
    protocol["step"] = run.config.total_steps if step is None else step
    (run.workdir / "evaluation.json").write_text(json.dumps({"protocol": protocol, "metrics": metrics}))
    (run.workdir / "report.html").write_text("<!doctype html>")


def test_what_counts_as_finished(tmp_path):
    (run,) = plan(DIGITS, "noisytwins", "0", [], ["--config.total_kimg=2"], tmp_path)
    (longer,) = plan(DIGITS, "noisytwins", "0", [], ["--config.total_kimg=4"], tmp_path)
    assert run.evaluation() is None
    finish_run(run, 7.0)
    assert run.evaluation()["metrics"]["ifid"] == 7.0
    assert longer.evaluation() is None  # another configuration
    finish_run(run, 7.0, step=run.config.total_steps - 1)  # of an earlier checkpoint
    assert run.evaluation() is None
    finish_run(run, 7.0)
    (run.workdir / "report.html").unlink()  # stopped while it was evaluated
    assert run.evaluation() is None
    finish_run(run, 7.0)
    report = (run.workdir / "report.html").stat()
    later = json.dumps(flatten(run.config))
    while (run.workdir / "config.json").stat().st_mtime_ns <= report.st_mtime_ns:
        (run.workdir / "config.json").write_text(later)  # started again since
    assert run.evaluation() is None


def test_a_grid_resumes_and_collects_finished_runs(tmp_path, capsys, monkeypatch):
    started = []

    def stub(commands, jobs, keep_going):
        """Finish the requested runs, except those with σ = 0.1 and λ = 0.4 while `fails` is set."""
        assert jobs == 2 and keep_going
        started.append(list(commands))
        wanted = [shlex.join(command) for command in commands.values()]
        for run in plan(DIGITS, "noisytwins", "0,1", GRIDS, [], tmp_path):
            if shlex.join(run.command) in wanted and not (fails and run.point == {"sigma": "0.1", "weight": "0.4"}):
                finish_run(run, float(run.point["sigma"]) + 2 * float(run.seed))
        return [name for name in commands if fails and "sigma0.1-weight0.4" in name]

    monkeypatch.setattr(sweep, "run_all", stub)
    arguments = [f"--config={DIGITS}", "--methods=noisytwins", "--seeds=0,1", "--jobs=2", f"--out={tmp_path}"]
    arguments += [f"--grid={grid}" for grid in GRIDS]
    prefix = tmp_path / "digits_lt-noisytwins-sigma-weight"

    fails = True
    assert sweep.main(arguments) == 2
    printed = capsys.readouterr()
    assert "2 of 8 runs failed (noisytwins-sigma0.1-weight0.4-seed0, " in printed.err
    assert len(started[0]) == 8
    table = Path(f"{prefix}.txt").read_text()
    assert table in printed.out
    assert "sigma=0.1 weight=0.1 (2 seeds)" in table and "1.10 ± 1.00" in table  # mean and deviation of 0.1 and 2.1
    assert "sigma=0.1 weight=0.4" not in table

    fails = False
    assert sweep.main(arguments) == 0
    assert started[1] == [f"noisytwins-sigma0.1-weight0.4-seed{seed}" for seed in (0, 1)]
    rows = list(csv.DictReader(Path(f"{prefix}.csv").read_text().splitlines()))
    assert len(rows) == 8
    assert rows[-1]["run"] == "digits_lt-noisytwins-sigma0.1-weight0.4-seed1"
    assert [rows[-1][key] for key in ("method", "sigma", "weight", "seed", "ifid", "tail_recall")] == [
        "noisytwins", "0.1", "0.4", "1", "2.1", ""
    ]  # fmt: skip
    assert Path(f"{prefix}.png").read_bytes().startswith(b"\x89PNG")

    capsys.readouterr()
    assert sweep.main([*arguments, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and all(line.startswith("# finished: ") for line in lines)


def test_an_interrupt_prints_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_all", interrupted)
    assert sweep.main([f"--config={DIGITS}", "--methods=noisytwins", f"--out={tmp_path}"]) == 130
    assert capsys.readouterr().err == "Stopped; the same command resumes.\n"


def test_dry_run_prints_the_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "run_all", lambda *_, **__: pytest.fail("started"))
    arguments = [f"--config={DIGITS}", "--methods=noisytwins", f"--grid={GRIDS[0]}", f"--out={tmp_path / 'runs'}"]
    assert sweep.main([*arguments, "--dry-run", "--config.total_kimg=2"]) == 0
    first, second = map(shlex.split, capsys.readouterr().out.splitlines())
    assert first[:3] == [sys.executable, "-m", "noisytwins_jax.main"]
    assert "--config.noisytwins.sigma=0" in first and "--config.noisytwins.sigma=0.1" in second
    assert "--config.total_kimg=2" in first and f"--workdir={tmp_path}/runs/digits_lt-noisytwins-sigma0-seed0" in first
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_real_grid(tmp_path):
    command = [sys.executable, "-m", "noisytwins_jax.sweep", f"--config={DIGITS}", "--methods=noisytwins"]
    command += ["--grid=config.noisytwins.weight=0.05,0.5", f"--out={tmp_path}", "--jobs=2"]
    command += ["--config.total_kimg=0.32", "--config.evaluation.samples_per_class=8"]
    for finished in (0, 2):
        result = subprocess.run(command, env=tiny_run.environment(1), capture_output=True, text=True, timeout=TIMEOUT)
        assert result.returncode == 0, result.stderr
        assert f"2 runs in {tmp_path}, {finished} of them already finished." in result.stdout
        assert result.stdout.count("Compiling") == 2 - finished
    rows = list(csv.DictReader((tmp_path / "digits_lt-noisytwins-weight.csv").read_text().splitlines()))
    assert [row["weight"] for row in rows] == ["0.05", "0.5"]
    assert all(0 < float(row["w_ratio"]) <= 1 and float(row["ifid"]) > 0 for row in rows)
    assert (tmp_path / "digits_lt-noisytwins-weight.png").exists()
