"""One seed, any number of devices: the same gradients, and no communication beyond what the method needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run

DEVICES = 8
LOSSES = ("generator", "path_length", "discriminator", "r1")


@pytest.fixture(scope="module")
def measured():
    """What `devices_program.py` found in a process of eight simulated devices, in float64."""
    program = Path(__file__).with_name("devices_program.py")
    environment = {**tiny_run.environment(DEVICES), "JAX_ENABLE_X64": "1"}
    result = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_agree(measured, loss):
    gradients = measured["gradients"][loss]
    assert gradients["dtypes"] == ["float64"]
    assert gradients["norm"] > 1e-6
    assert gradients["relative_difference"] < 1e-10
    assert gradients["loss_difference"] < 1e-10


def test_twins_loss_is_of_the_global_batch(measured):
    """The mean over devices of each one's own twins' loss is another number."""
    assert measured["noisytwins"]["relative_difference"] < 1e-10
    assert abs(measured["noisytwins"]["mean_of_parts"] / measured["noisytwins"]["global"] - 1) > 0.01


def test_w_is_gathered_once(measured):
    w = [tiny_run.DEVICES_BATCH, tiny_run.DEVICES_W]
    assert measured["collectives"]["generator"]["all-gather"] == [w]


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_else_is_moved(measured, loss):
    """Only sums over devices; images, latents and labels stay where they are."""
    collectives = dict(measured["collectives"][loss])
    assert set(collectives) <= {"all-reduce", "all-gather"}
    if loss != "generator":
        assert "all-gather" not in collectives
