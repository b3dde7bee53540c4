"""One seed, any number of devices: the same gradients, and no communication beyond what the method needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run

DEVICES = 8
METRICS = {
    "generator": {"loss/generator", "loss/generator/noisytwins"},
    "path_length": {"loss/path_length"},
    "discriminator": {"loss/discriminator"},
    "r1": {"loss/r1"},
}


def measure(*names):
    """What `devices_program.py` finds in a process of eight simulated devices, in float64."""
    program = Path(__file__).with_name("devices_program.py")
    environment = {**tiny_run.environment(DEVICES), "JAX_ENABLE_X64": "1"}
    result = subprocess.run(
        [sys.executable, program, *names], env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["devices"] == DEVICES
    return report["programs"]


def check(found, name):
    assert found["dtypes"] == ["float64"]
    assert found["norm"] > 1e-6
    assert found["gradient"] < 1e-10
    assert set(found["metrics"]) >= METRICS[name]
    assert max(found["metrics"].values()) < 1e-10


@pytest.fixture(scope="module")
def main_updates():
    return measure("generator", "discriminator")


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_gradients_agree(main_updates, name):
    check(main_updates[name], name)


def test_w_is_gathered_once(main_updates):
    """W of the whole batch, for the twins' loss; whatever else is communicated are sums over devices."""
    w = [tiny_run.DEVICES_BATCH, tiny_run.DEVICES_W]
    assert main_updates["generator"]["collectives"] == {"all-gather": [w], "all-reduce": []}


def test_real_images_stay_where_they_are(main_updates):
    assert main_updates["discriminator"]["collectives"] == {"all-reduce": []}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["path_length", "r1"])
def test_regularisers(name):
    found = measure(name)[name]
    check(found, name)
    assert found["collectives"] == {"all-reduce": []}
