"""Training that collapses: the last good checkpoint is kept, and the run goes back to it, as often as it is asked to.

The collapse is a real one: from some step on, the generator's learning rate is many times what it was.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from several_processes import run as run_processes
from tiny_run import curves
from waiting import TIMEOUT, wait_until

from noisytwins_jax.config.groups import CollapseConfig
from noisytwins_jax.evaluation.evaluate import evaluate
from noisytwins_jax.training.fault_tolerance.collapse_detector import CollapseDetector
from noisytwins_jax.training.fault_tolerance.collapse_log import read_collapses
from noisytwins_jax.utils.logging import read_metrics

STEPS, EVERY, BREAK = 70, 10, 45  # steps of a run, from one checkpoint to the next, and before it breaks
FACTOR = 300.0  # of the learning rate from there on
# Patient enough for a checkpoint to be written between the break and the alarm.
COLLAPSE = {"action": "return", "window": 12, "patience": 6, "generator_lr": 1 / FACTOR}
FIELDS = {
    "total_kimg": STEPS * tiny_run.BATCH / 1000,
    "noisytwins.weight": 0.0,
    "path_length.weight": 0.0,
    "r1.gamma": 0.0,
    "augment.diffaugment": "",
    "w_ratio_interval_kimg": 0.0,
    "spectra.interval": 1,
    "intervention.step": BREAK,
    "intervention.generator_lr": FACTOR,
    **{f"collapse.{name}": value for name, value in COLLAPSE.items()},
}
KEPT = 40  # the last checkpoint before it breaks


def start(workdir: Path, **changes):
    return tiny_run.start(workdir, **(FIELDS | changes))


def final_checkpoint(workdir: Path) -> dict[str, np.ndarray]:
    return tiny_run.final_checkpoint(workdir, **FIELDS)


def rates(workdir: Path) -> tuple[float, float]:
    state = final_checkpoint(workdir)
    return tuple(float(state[f".rates.{name}"]) for name in ("generator", "discriminator"))


def pinned(workdir: Path) -> list[int]:
    return json.loads((workdir / "checkpoints" / "pinned.json").read_text())


def folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.glob("*") if entry.is_dir())


def largest_growth(before: dict, after: dict) -> float:
    """Of σ0 of any of the generator's weights."""
    names = [name for name in after if name.startswith("spectra/generator/") and name.endswith("/0")]
    return max(after[name] / before[name] for name in names)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Holds the runs and the programs that they share."""
    return tmp_path_factory.mktemp("collapse")


@pytest.fixture(scope="module")
def returned(directory):
    """A run that went back once, and what it printed."""
    return directory / "returned", tiny_run.finish(start(directory / "returned"))


def test_it_goes_back_and_ends_well(returned):
    workdir, output = returned
    (record,) = read_collapses(workdir)
    assert record["returned"]
    assert record["kept"] == KEPT <= record["good_step"] <= BREAK < record["step"] <= BREAK + 15
    assert f"Training collapses: {record['sign']}; the checkpoint of step {KEPT}, which is of before, is kept" in output
    rate = f"{1 / FACTOR:g} (generator) and 1 (discriminator)"
    assert f"Resuming after a collapse from step {KEPT}, with learning rates times {rate}." in output
    assert pinned(workdir) == [KEPT]
    state = final_checkpoint(workdir)
    assert state["step"] == STEPS
    assert all(np.isfinite(x).all() for x in state.values() if np.issubdtype(x.dtype, np.floating))
    assert rates(workdir) == pytest.approx((1.0, 1.0))  # the intervention was made again, on what was lower before


def test_the_log_is_that_of_the_new_branch_and_the_old_one_is_kept(returned):
    workdir, _ = returned
    (record,) = read_collapses(workdir)
    new, old = curves(workdir), read_metrics(workdir / record["log"])
    assert [x["step"] for x in new] == list(range(1, STEPS + 1))
    assert [x["step"] for x in old] == list(range(1, record["step"] + 1))
    losses = [[x["loss/generator"] for x in log] for log in (new, old)]
    # The first step after it sees the same parameters; from the second on they differ.
    assert losses[0][:KEPT] == losses[1][:KEPT]
    assert losses[0][KEPT + 1 : BREAK] != losses[1][KEPT + 1 : BREAK]
    grown = [largest_growth(log[KEPT - 1], log[-1]) for log in (new, old)]
    assert grown[0] < 1.2
    assert grown[1] > 3
    saved = folders(workdir / "collapsed_checkpoints")
    assert saved
    assert saved == [str(step) for step in range(KEPT + EVERY, record["step"], EVERY)]


@pytest.mark.slow
def test_the_report_shows_both(returned):
    workdir, _ = returned
    page = evaluate(tiny_run.tiny_config(**FIELDS), workdir).read_text()
    (record,) = read_collapses(workdir)
    assert f"Given up: {record['sign']}. Training went on from step {KEPT}." in page
    assert "Singular values of every weight" in page


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["checkpoints/pinned.json", "collapsed_checkpoints", "collapses.json"])
def test_killed_while_it_goes_back(returned, directory, moment):
    other, _ = returned
    workdir = directory / f"killed-{Path(moment).stem}"
    process = start(workdir)
    wait_until((workdir / moment).exists, process, interval=0.001)
    process.kill()
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode < 0, output
    last = tiny_run.finish(start(workdir))
    if moment == "collapses.json":
        assert f"Resuming after a collapse from step {KEPT}" in last
        assert "Training collapses" not in last
    assert curves(workdir) == curves(other)
    assert read_collapses(workdir) == read_collapses(other)
    assert pinned(workdir) == [KEPT]
    have, want = final_checkpoint(workdir), final_checkpoint(other)
    assert have.keys() == want.keys()
    assert not [name for name in want if not np.array_equal(have[name], want[name])]


@pytest.mark.slow
def test_it_goes_back_again_with_the_factors_again_and_then_no_more(directory):
    workdir = directory / "again"
    output = tiny_run.finish(start(workdir, **{"collapse.generator_lr": 0.9, "collapse.discriminator_lr": 0.8}))
    records = read_collapses(workdir)
    assert [record["returned"] for record in records] == [True, True, False]
    assert [record["kept"] for record in records] == [KEPT] * 3
    assert "learning rates times 0.9 (generator) and 0.8 (discriminator)" in output
    assert "learning rates times 0.81 (generator) and 0.64 (discriminator)" in output
    assert "going on, having gone back as often as config.collapse.max_returns=2 says." in output
    assert rates(workdir) == pytest.approx((FACTOR * 0.81, 0.64))
    logs = {record["log"] for record in records}
    assert len(logs) == 3
    assert None in logs
    assert [x["step"] for x in read_metrics(workdir)] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_report_goes_on_and_a_resumed_run_watches_as_if_it_had_never_stopped(directory):
    workdir, changes = directory / "reported", {"collapse.action": "report"}
    half = start(workdir, **changes, total_kimg=(BREAK + 1) * tiny_run.BATCH / 1000)  # in the middle of the collapse
    output = tiny_run.finish(half) + tiny_run.finish(start(workdir, **changes))
    records = read_collapses(workdir)
    assert "going on." in output
    assert [record["returned"] for record in records] == [False] * len(records)
    assert records[0]["kept"] == KEPT
    assert KEPT in pinned(workdir)
    assert not (workdir / "collapsed_checkpoints").exists()
    config = CollapseConfig(**COLLAPSE)
    alarms = CollapseDetector(config).replay(read_metrics(workdir))
    assert [list(alarm) for alarm in alarms] == [[x["step"], x["good_step"], x["sign"]] for x in records]
    assert rates(workdir) == pytest.approx((FACTOR, 1.0))
    page = evaluate(tiny_run.tiny_config(**FIELDS), workdir).read_text()
    assert records[0]["sign"] in page
    assert "Given up" not in page


@pytest.mark.slow
def test_no_checkpoint_that_is_old_enough(directory):
    workdir = directory / "nothing"
    output = tiny_run.finish(start(workdir, checkpoint_interval_kimg=1.0))
    records = read_collapses(workdir)
    assert (records[0]["kept"], records[0]["returned"]) == (None, False)
    assert f"no checkpoint of step {records[0]['good_step']} or before is left (lower config.checkpoint_" in output
    assert "going on." in output


@pytest.mark.slow
def test_all_processes_go_back_together(directory):
    workdir = directory / "processes" / "run"
    outputs = run_processes(2, "train", workdir, json.dumps(FIELDS))
    (record,) = read_collapses(workdir)
    assert (record["kept"], record["returned"]) == (KEPT, True)
    assert f"Resuming after a collapse from step {KEPT}" in outputs[0]
    assert [x["step"] for x in read_metrics(workdir) if "loss/generator" in x] == list(range(1, STEPS + 1))
