"""Batch normalisation, and all around it, takes the whole batch, however many devices share it."""

import json
import os
import subprocess
import sys

import pytest
import tiny_run
from paths import HELPERS
from waiting import TIMEOUT


@pytest.fixture(scope="module")
def report():
    program, helpers = HELPERS / "biggan_networks_program.py", HELPERS
    path = os.pathsep.join(filter(None, [str(helpers), os.environ.get("PYTHONPATH")]))
    environment = {**tiny_run.environment(8), "JAX_ENABLE_X64": "1", "PYTHONPATH": path}
    result = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["plain", "deep"])
def test_eight_devices_agree_with_one(report, kind):
    found = report[kind]
    assert report["devices"] == 8 and found["dtypes"] == ["float64"]
    assert found["largest_gradient"] > 1e-3
    assert set(found["differences"]) == {"loss", "images", "logits", "moved", "gradients"}
    assert max(found["differences"].values()) < 1e-10
