"""Checkpoints on a disk that is full, or fails for a moment; in processes of their own."""

import subprocess
import sys

import pytest
import tiny_run
from paths import HELPERS
from waiting import TIMEOUT

from noisytwins_jax.training.checkpoint import Checkpoints

PROGRAM = HELPERS / "full_disk_program.py"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Output and workdir of every scene, which run at the same time."""
    workdirs = {scene: tmp_path_factory.mktemp(scene) for scene in ("full", "passing", "final")}
    processes = {
        scene: subprocess.Popen(
            [sys.executable, PROGRAM, workdir, scene],
            env=tiny_run.environment(1),
            stderr=subprocess.PIPE,
            text=True,
        )
        for scene, workdir in workdirs.items()
    }
    return {scene: (process.communicate(timeout=TIMEOUT)[1], workdirs[scene]) for scene, process in processes.items()}


def whole(workdir):
    """Steps with a checkpoint; nothing else may be there."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    with Checkpoints(workdir) as checkpoints:
        assert sorted(map(int, names)) == checkpoints.steps()
        return checkpoints.steps()


def test_a_full_disk_is_one_error_message_and_the_whole_checkpoint_stays(scenes):
    output, workdir = scenes["full"]
    where = workdir / "checkpoints"
    assert (
        f"Error: There is no space left to write a checkpoint in {where}: free some and run the same command; the last "
        "whole checkpoint is step 1."
    ) in output
    assert whole(workdir) == [1]


def test_transient_errors_do_not_stop_training(scenes):
    output, workdir = scenes["passing"]
    message = "A checkpoint could not be written ([Errno 5] Input/output error); another will be tried. So far the last"
    steps = [line.removeprefix(message) for line in output.splitlines() if line.startswith(message)]
    # One in the background; two while the program waits; then two of the three that are one too many.
    assert steps == [f" whole checkpoint is step {step}." for step in (1, 3, 3, 4, 4)]
    assert "Error: A checkpoint could not be written" in output
    assert "the last whole checkpoint is step 4" in output.splitlines()[-1]
    assert whole(workdir)[-2:] == [3, 4]


def test_the_last_checkpoint_is_not_lost_in_silence(scenes):
    output, workdir = scenes["final"]
    assert "Error: A checkpoint could not be written ([Errno 5] Input/output error); fix the storage of" in output
    assert whole(workdir) == [1]
