"""Runs that are killed at random moments, in every way, and resumed on a random number of devices."""

import random
import re
import resource
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from test_resume import assert_same_run
from waiting import TIMEOUT, wait_until

SAVED_EVERY, EVALUATED_EVERY = 10, 40  # steps
WAYS = (
    "kill",
    "terminate",
    "kill while saving",
    "kill while evaluating",
    "terminate while evaluating",
    "full disk",
)


def start(workdir: Path, devices: int) -> subprocess.Popen:
    return tiny_run.start(workdir, devices, **{"evaluation.interval_kimg": EVALUATED_EVERY * tiny_run.BATCH / 1000})


def whole_checkpoints(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def evaluating(workdir: Path) -> bool:
    """Whether the last line logged is that of a step whose evaluation is under way."""
    steps = logged_numbers(workdir)
    return bool(steps) and steps[-1][0] and steps[-1][0] % EVALUATED_EVERY == 0 and not steps[-1][1]


def logged_numbers(workdir: Path) -> list[tuple[int, bool]]:
    """Step of every line, and whether it holds an evaluation."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [(int(m[1]), "evaluation/" in m[0]) for m in re.finditer(r'^\{"step": (\d+),.*\}$', text, re.M)]


def interrupt(workdir: Path, devices: int, way: str, step: int) -> tuple[int, str]:
    """Runs until it has logged `step` and ends it in some way; its status and what it printed."""
    log, began = workdir / "metrics.jsonl", time.time_ns()
    process = start(workdir, devices)
    wait_until(
        lambda: log.exists() and log.stat().st_mtime_ns > began, process
    )  # what it resumes from is cut off there
    wait_until(lambda: any(s >= step for s, _ in logged_numbers(workdir)), process)
    if way == "kill while saving":
        wait_until(lambda: list((workdir / "checkpoints").glob("*tmp*")), process, interval=0.002)
    elif way.endswith("while evaluating"):
        wait_until(lambda: evaluating(workdir), process, interval=0.002)
    if process.poll() is None:
        if way.startswith("terminate"):
            process.send_signal(signal.SIGTERM)
        elif way == "full disk":  # no file can grow any more: the same errors from the same calls
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
        else:
            process.kill()
    output, _ = process.communicate(timeout=TIMEOUT)
    return process.returncode, output


def torture(workdir: Path, rng: random.Random, devices: tuple[int, ...]) -> None:
    """Interrupts a run two or three times, then lets it end."""
    interruptions = rng.randint(2, 3)
    moments = sorted(rng.sample(range(2, tiny_run.STEPS - 4), interruptions))
    ended = False
    for moment in moments:
        way, count = rng.choice(WAYS), rng.choice(devices)
        before = whole_checkpoints(workdir)
        status, output = interrupt(workdir, count, way, moment)
        if "kimg in" in output:  # it got as far as saying where it starts
            assert resumed_from(output) == (before[-1] if before else None), output
        ended = status == 0
        if ended:
            break
        if way == "full disk":
            assert status == 1, output
            assert "Error: There is no space left" in output, output
        else:
            assert "Traceback" not in output, output
            # SIGTERM before there is anything to save ends a process as it ends any other.
            assert status in (-signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM), output
        reached = max((step for step, _ in logged_numbers(workdir)), default=0)
        saved = max(whole_checkpoints(workdir), default=0)
        if status == 128 + signal.SIGTERM:
            assert saved == reached, output
        else:  # of two intervals one may have been on its way to the disk
            assert reached - saved <= 2 * SAVED_EVERY, output
    before = whole_checkpoints(workdir)
    output = tiny_run.finish(start(workdir, rng.choice(devices)))
    assert resumed_from(output) == (before[-1] if before else None)
    assert whole_checkpoints(workdir)[-1] == tiny_run.STEPS
    assert not list((workdir / "checkpoints").glob("*tmp*"))


def resumed_from(output: str) -> int | None:
    match = re.search(r"Resuming from the checkpoint of step (\d+)\.", output)
    return int(match[1]) if match else None


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Holds the runs, and the programs and the classifier that they share."""
    return tmp_path_factory.mktemp("torture")


@pytest.fixture(scope="module")
def uninterrupted(directory):
    tiny_run.finish(start(directory / "uninterrupted", 1))
    return directory / "uninterrupted"


def check(directory: Path, uninterrupted: Path, seed: int) -> None:
    rng = random.Random(seed)
    workdir = directory / f"run{seed}"
    same_devices = seed % 2 == 0
    torture(workdir, rng, (1,) if same_devices else (1, 2, 4))
    if same_devices:
        assert_same_run(workdir, uninterrupted)
    else:
        state = tiny_run.final_checkpoint(workdir)
        assert state["step"] == state["next_index"] == tiny_run.STEPS
        assert all(np.isfinite(x).all() for x in state.values() if np.issubdtype(x.dtype, np.floating))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(21))
def test_a_tortured_run_ends_as_if_nothing_had_happened(directory, uninterrupted, seed):
    check(directory, uninterrupted, seed)
