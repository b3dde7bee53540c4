"""Stop anywhere, resume anywhere: the run is the same. Real processes, really killed."""

import json
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from tiny_run import curves
from waiting import TIMEOUT, wait_until


def logged_steps(workdir: Path) -> int:
    """Steps with a line in metrics.jsonl; the first line is step 0's, which holds the W ratio alone."""
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") - 1 if path.exists() else 0


def send(process, workdir: Path, steps: int, number: int) -> str:
    """Waits until so many steps are logged, sends the signal, and returns what the process printed."""
    wait_until(lambda: logged_steps(workdir) >= steps, process)
    process.send_signal(number)
    return process.communicate(timeout=TIMEOUT)[0]


def assert_same_run(workdir: Path, other: Path) -> None:
    """Every bit of the last state, and every number logged on the way."""
    have, want = tiny_run.final_checkpoint(workdir), tiny_run.final_checkpoint(other)
    assert have.keys() == want.keys()
    assert len(have) > 100
    different = [name for name in want if not np.array_equal(have[name], want[name])]
    assert not different
    assert want["step"] == tiny_run.STEPS
    assert want["next_index"] == tiny_run.STEPS
    steps = [record["step"] for record in curves(workdir) if "evaluation/fid" not in record]
    assert steps == list(range(tiny_run.STEPS + 1))  # step 0: the W ratio
    assert [r["step"] for r in curves(workdir) if "w_ratio/tail" in r] == list(range(0, tiny_run.STEPS + 1, 5))
    assert curves(workdir) == curves(other)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Holds the runs and the programs that they share."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def uninterrupted(directory):
    output = tiny_run.finish(tiny_run.start(directory / "uninterrupted"))
    assert "Resuming" not in output
    return directory / "uninterrupted"


def test_sigterm_saves_and_the_same_command_goes_on(uninterrupted, directory):
    workdir = directory / "terminated"
    process = tiny_run.start(workdir)
    output = send(process, workdir, 33, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM, output
    step = logged_steps(workdir)
    assert 33 <= step < tiny_run.STEPS
    assert f"Stopped by SIGTERM at step {step}; saved. Run the same command again to resume." in output
    assert "Traceback" not in output
    output = tiny_run.finish(tiny_run.start(workdir))
    assert f"Resuming from the checkpoint of step {step}." in output
    assert_same_run(workdir, uninterrupted)


@pytest.mark.slow
def test_killed_three_times_the_run_is_the_same(uninterrupted, directory):
    workdir = directory / "killed"
    rng = random.Random(0)
    moments = sorted(rng.sample(range(12, tiny_run.STEPS - 5), 3))
    resumed_from = []
    for steps in moments:
        process = tiny_run.start(workdir)
        output = send(process, workdir, steps, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, output
        assert logged_steps(workdir) < tiny_run.STEPS
        resumed_from.append(output.partition("Resuming from the checkpoint of step ")[2].partition(".")[0])
    output = tiny_run.finish(tiny_run.start(workdir))
    assert "Resuming" in output
    assert resumed_from[0] == ""
    assert all(resumed_from[1:])
    assert_same_run(workdir, uninterrupted)
    assert not list((workdir / "checkpoints").glob("*tmp*"))


@pytest.mark.slow
def test_extended_run_is_the_longer_run(uninterrupted, directory):
    workdir, half = directory / "extended", tiny_run.STEPS // 2
    tiny_run.finish(tiny_run.start(workdir, total_kimg=half * tiny_run.BATCH / 1000))
    assert logged_steps(workdir) == half
    tiny_run.finish(tiny_run.start(workdir))
    assert_same_run(workdir, uninterrupted)


@pytest.mark.slow
def test_looking_at_w_changes_nothing(uninterrupted, directory):
    tiny_run.finish(tiny_run.start(directory / "not_looked_at", w_ratio_interval_kimg=0.0))
    have, want = (tiny_run.final_checkpoint(workdir) for workdir in (directory / "not_looked_at", uninterrupted))
    assert have.keys() == want.keys()
    assert not [name for name in want if not np.array_equal(have[name], want[name])]
    looked = [{k: v for k, v in r.items() if not k.startswith("w_ratio")} for r in curves(uninterrupted)]
    assert curves(directory / "not_looked_at") == looked[1:]


@pytest.mark.slow
def test_finished_run_is_left_as_it_is(uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    output = tiny_run.finish(tiny_run.start(uninterrupted, total_kimg=0.1))  # shorter than it is already
    assert f"Resuming from the checkpoint of step {tiny_run.STEPS}." in output
    assert "Compiling" not in output
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_resumes_on_another_number_of_devices(uninterrupted, directory):
    """The same data in the same order; values differ by rounding, which Adam then makes larger."""
    workdir = shutil.copytree(uninterrupted, directory / "more_devices")
    shutil.rmtree(workdir / "checkpoints" / str(tiny_run.STEPS))
    output = tiny_run.finish(tiny_run.start(workdir, devices=4))
    start = tiny_run.STEPS - 10
    assert f"Resuming from the checkpoint of step {start}." in output
    assert "on 4 cpu device(s)" in output
    want, have = curves(uninterrupted), curves(workdir)
    assert [record["step"] for record in have] == [record["step"] for record in want]
    for name in ("logits/real", "logits/fake", "loss/generator", "loss/generator/noisytwins"):
        # Other images would change the first of these by far more than a thousandth.
        np.testing.assert_allclose(have[start + 1][name], want[start + 1][name], rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(have[-1][name], want[-1][name], rtol=0.05, atol=0.01, err_msg=name)
    assert have[-1]["w_ratio"] == pytest.approx(want[-1]["w_ratio"], rel=0.01)
    want, have = tiny_run.final_checkpoint(uninterrupted), tiny_run.final_checkpoint(workdir)
    assert have["next_index"] == want["next_index"]
    for name in want:
        np.testing.assert_allclose(have[name], want[name], rtol=0.05, atol=0.05, err_msg=name)


def test_a_workdir_of_another_configuration_is_refused(uninterrupted):
    process = tiny_run.start(uninterrupted, **{"r1.gamma": 0.5})
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert "was made with another configuration: r1.gamma: 0.01 → 0.5" in output
    assert "Traceback" not in output
    assert json.loads((uninterrupted / "config.json").read_text())["r1.gamma"] == 0.01
