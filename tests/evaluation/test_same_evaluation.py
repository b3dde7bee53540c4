"""One evaluation is the same on any number of devices, in any batches, and after any interruption."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
import tiny_run
from paths import HELPERS
from waiting import TIMEOUT

PROGRAM = HELPERS / "evaluation_program.py"


def start(folder, devices, batch_size, stop_after=0, network="classifier"):
    command = [sys.executable, PROGRAM, folder, str(batch_size), str(stop_after), network]
    return subprocess.Popen(
        list(map(str, command)),
        env=tiny_run.environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def numbers(tree, path=""):
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in numbers(value, f"{path}/{key}").items()}
    if isinstance(tree, list):
        return {k: v for i, value in enumerate(tree) for k, v in numbers(value, f"{path}/{i}").items()}
    return {path: tree}


def check_same(one, other):
    one, other = numbers(one), numbers(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        if isinstance(value, float):
            assert other[path] == pytest.approx(value, rel=1e-9, abs=1e-9), path
        else:
            assert other[path] == value, path


def forget_features(tmp_path):
    """Those of real images are computed again; the classifier stays, which every machine trains for itself."""
    shutil.rmtree(tmp_path / "cache" / "features")


def compare(tmp_path, network, stop_after):
    first = finish(start(tmp_path / "one", 1, 16, network=network))
    assert first["devices"] == 1 and first["written"] > stop_after + 1 and not first["left"]
    forget_features(tmp_path)
    second = finish(start(tmp_path / "eight", 8, 100, network=network))
    assert second["devices"] == 8
    check_same(first["result"], second["result"])
    forget_features(tmp_path)

    killed = start(tmp_path / "killed", 8, 16, stop_after, network)
    assert killed.wait(timeout=TIMEOUT) == -signal.SIGKILL
    again = finish(start(tmp_path / "killed", 1, 100, network=network))
    assert again["written"] == first["written"] - stop_after and not again["left"]
    check_same(first["result"], again["result"])


def test_with_the_classifier(tmp_path):
    compare(tmp_path, "classifier", stop_after=5)


@pytest.mark.slow
def test_with_inception_and_clip(tmp_path):
    compare(tmp_path, "inception", stop_after=7)
