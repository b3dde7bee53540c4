"""Communication between two real processes of a run."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
from paths import HELPERS
from waiting import TIMEOUT

PROGRAM = HELPERS / "two_processes_program.py"


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each process saw, and what the first and the second printed on stderr."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    workdir = tmp_path_factory.mktemp("run")
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAM, port, str(index), workdir],
            env=tiny_run.environment(2),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=TIMEOUT) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs], [err for _, err in outputs]


def test_texts_of_different_lengths(seen):
    assert [one["strings"] for one in seen[0]] == [["ä", "ä" * 41]] * 2


def test_disagreement_is_the_same_message_in_both(seen):
    for one in seen[0]:
        assert one["same"] is None
        assert one["seed"] == (
            "The processes of this run differ in config.seed: 0 in process 0, 1 in process 1 (1 more differ); give all "
            "of them the same command, code and data."
        )
        assert "differ in config.new: (absent) in process 0, 1 in process 1;" in one["absent"]


def test_the_failure_of_one_ends_both(seen):
    assert [one["one fails"] for one in seen[0]] == ["Process 1: no such file", "no such file"]
    assert [one["none fails"] for one in seen[0]] == [None, None]


def test_a_locked_workdir_is_refused_in_both(seen):
    assert all("is being trained in (process" in one["lock"] for one in seen[0])
    assert [one["unlocked"] for one in seen[0]] == [None, None]


def test_values_of_all_processes_are_checked(seen):
    line = "params/weight: 1 of 8 values are NaN and 1 of 8 values are infinite"
    assert [one["tensors"] for one in seen[0]] == [[line]] * 2


def test_the_watchdog_names_the_late_process(seen):
    first, second = seen[1]
    words = f"process 1 on {socket.gethostname()} is at step 7, waiting for input; the other is at step 7, training."
    said = [line for line in first.splitlines() if line.startswith("No step has ended")]
    assert len(said) == 1
    assert all(line.endswith(words) for line in said)  # and nothing about the evaluation
    assert "No step" not in second


def test_one_sigterm_stops_both_at_the_same_step(seen):
    assert [one["stopped"] for one in seen[0]] == [[152, "SIGTERM", 143]] * 2
    assert [one["asked"] for one in seen[0]] == [False, True]


def test_one_process_without_space_ends_both(seen):
    for one in seen[0]:
        assert one["full"].startswith("There is no space left to write a checkpoint in ")
        assert one["full"].endswith("the last whole checkpoint is step 1.")
        assert [path.name for path in Path(one["checkpoints"]).iterdir()] == ["1"]
