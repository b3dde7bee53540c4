"""Several processes are one run: the same gradients, logs, checkpoints, numbers and pictures as one process."""

import json
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny_run
from several_processes import free_port, run
from waiting import TIMEOUT

from noisytwins_jax.utils.errors import TryAgainError, UserError
from noisytwins_jax.utils.logging import read_metrics
from noisytwins_jax.utils.sharding import join_processes

# Networks whose larger arrays a shared state splits, and numbers to look at on the way.
FIELDS = {
    "generator.channel_base": 512,
    "generator.channel_max": 64,
    "discriminator.channel_base": 512,
    "discriminator.channel_max": 64,
    "checkpoint_interval_kimg": 0.032,
    "w_ratio_interval_kimg": 0.032,
    "evaluation.samples_per_class": 50,
    "evaluation.interval_kimg": 0.064,
    "sheet_interval_kimg": 0.064,
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, 0), r"needs --coordinator too; or give --coordinator=auto alone"),
        (("host:1234", None, None), r"needs --num_processes and --process_id too"),
        (("auto", 2, None), r"--coordinator=auto finds out --num_processes and --process_id by itself"),
        (("host", 2, 0), r"--coordinator=host is not host:port; give, for example"),
        (("host:99999", 2, 0), r"is not host:port"),
        (("host:1234", 2, 2), r"--process_id=2 must be from 0 to 1 for --num_processes=2"),
        (("host:1234", 2, -1), r"--process_id=-1 must be from 0 to 1"),
        (("host:1234", 0, 0), r"--num_processes=0 must be at least 1"),
    ],
)
def test_what_is_missing_or_out_of_range_is_said(arguments, message):
    with pytest.raises(UserError, match=message):
        join_processes(*arguments)


def test_a_port_in_use_is_said():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"Port {port} of --coordinator cannot be used here \(.*in use\)"):
            join_processes(f"localhost:{port}", 2, 0)


def test_a_coordinator_that_does_not_answer_is_said():
    with pytest.raises(TryAgainError, match=r"did not answer within 0\.2 s .*start process 0 on that host"):
        join_processes(f"localhost:{free_port()}", 2, 1, timeout=0.2)


def test_waiting_for_the_others_ends():
    """In a process of its own, which is left half joined."""
    code = f"""if True:
        from noisytwins_jax.utils.errors import TryAgainError
        from noisytwins_jax.utils.sharding import join_processes
        try:
            join_processes("localhost:{free_port()}", 2, 0, timeout=1)
        except TryAgainError as error:
            print(error)
    """
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=tiny_run.environment(1), capture_output=True, text=True, timeout=TIMEOUT)
    assert "Not all processes of the run came together within 1 s" in result.stdout, result.stderr
    assert result.returncode == 0


@pytest.mark.parametrize(("count", "devices"), [(2, 1), (3, 2)])
def test_work_is_shared_and_failure_too(count, devices):
    outputs = run(count, "together", devices=devices)
    for i, output in enumerate(outputs):
        assert f"{i}: {'' if i == 1 else 'Process 1: '}Nothing here.\n" in output
        assert f"{i}: {'' if i == 0 else 'Process 0: '}The disk is gone.\n" in output
        assert f"{i}: well\n" in output


@pytest.mark.slow
def test_gradients_agree(tmp_path):
    meshes = [(1, 1), (2, 1), (4, 1)]  # processes, and devices of each
    for count, devices in meshes:
        run(count, "gradients", tmp_path / f"{count}x{devices}.npz", devices=devices, double=True)
    (one, *others) = (dict(np.load(tmp_path / f"{count}x{devices}.npz")) for count, devices in meshes)
    assert len(one) > 50 and {x.dtype for x in one.values()} == {np.dtype("float64")}
    for other in others:
        assert other.keys() == one.keys()
        worst = max(np.abs(other[name] - x).max() / max(np.abs(x).max(), 1e-300) for name, x in one.items())
        assert worst < 1e-10


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Holds the runs and what they share."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(directory):
    """A run of one process."""
    run(1, "train", directory / "alone", json.dumps(FIELDS | {"total_kimg": 0.096}))
    return directory / "alone"


@pytest.fixture(scope="module")
def joined(directory):
    """The same run by two processes that share the state, going on with other numbers of processes and devices."""
    workdir = directory / "joined"
    first = run(2, "train", workdir, json.dumps(FIELDS | {"total_kimg": 0.032, "mesh.fsdp": 2}))
    assert "on 2 cpu device(s) of 2 processes" in first[0]
    then = run(2, "train", workdir, json.dumps(FIELDS | {"total_kimg": 0.064, "mesh.fsdp": 4}), devices=2)
    assert "Resuming from the checkpoint of step 4." in then[0]
    last = run(1, "train", workdir, json.dumps(FIELDS | {"total_kimg": 0.096}))
    assert "Resuming from the checkpoint of step 8." in last[0]
    assert "kimg" not in first[1] + then[1]  # the first process speaks for all
    return workdir


def numbers(tree, path=""):
    """Every leaf of JSON by path."""
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {name: leaf for key, value in items for name, leaf in numbers(value, f"{path}/{key}").items()}
    return {path: tree}


@pytest.mark.slow
def test_a_run_of_several_processes_is_the_run_of_one(alone, joined):
    want, have = read_metrics(alone), read_metrics(joined)
    assert [record["step"] for record in have] == [record["step"] for record in want]
    assert {record["step"] for record in want} == set(range(13))  # 8 has a record of its evaluation too
    timing = {"img_per_second", "ms_per_step", "input_wait"}
    for a, b in zip(want, have, strict=True):
        for name in a.keys() - timing:
            # Evaluation, of few images, has numbers that a pixel's rounding moves.
            tolerance = 1e-3 if name.startswith("evaluation/") else 1e-4
            assert b[name] == pytest.approx(a[name], rel=tolerance, abs=1e-5), (a["step"], name)
    assert {path.name for path in joined.iterdir()} - {"samples"} == {path.name for path in alone.iterdir()}
    assert sorted(path.name for path in (joined / "checkpoints").iterdir()) == ["12", "8", "evaluations.json"]


@pytest.mark.slow
def test_evaluation_is_the_same_to_the_last_digit(joined, tmp_path):
    shutil.copytree(joined.parent / "cache", tmp_path / "cache")
    files = {}
    for count, devices in [(1, 1), (2, 1), (4, 1), (2, 2)]:
        workdir = shutil.copytree(joined, tmp_path / f"{count}x{devices}")
        (workdir / "evaluation.json").unlink()
        run(count, "evaluate", workdir, json.dumps(FIELDS | {"total_kimg": 0.096}), devices=devices)
        evaluation = numbers(json.loads((workdir / "evaluation.json").read_text()))
        files[count, devices] = evaluation, (workdir / "samples.png").read_bytes(), dict(np.load(workdir / "w.npz"))
    evaluation, sheet, w = files.pop((1, 1))
    assert evaluation["/protocol/n_fake"] == 200
    for other, other_sheet, other_w in files.values():
        assert other == evaluation
        assert other_sheet == sheet
        assert all(np.array_equal(other_w[name], w[name]) for name in w)


@pytest.mark.slow
def test_samples_are_the_same(joined):
    fields = json.dumps(FIELDS | {"total_kimg": 0.096})
    picture = joined / "samples" / "step12-untruncated-seed0.png"
    run(1, "sample", joined, fields)
    alone = picture.read_bytes()
    picture.unlink()
    outputs = run(2, "sample", joined, fields)
    assert picture.read_bytes() == alone
    assert all(f"Samples: {picture}" in output for output in outputs)
