"""One seed, any number of devices: the same gradients, and no communication beyond what the method needs."""

import json
import subprocess
import sys

import jax
import pytest
import tiny_run
from paths import HELPERS
from waiting import TIMEOUT

from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.sharding import Layout, split_axis

DEVICES = 8
METRICS = {
    "generator": {"loss/generator", "loss/generator/noisytwins"},
    "path_length": {"loss/path_length"},
    "discriminator": {"loss/discriminator"},
    "r1": {"loss/r1"},
}
W = [tiny_run.DEVICES_BATCH, tiny_run.DEVICES_W]  # of the whole batch


def measure(*arguments, devices=DEVICES):
    """What `devices_program.py` finds in a process of simulated devices, in float64."""
    program = HELPERS / "devices_program.py"
    environment = {**tiny_run.environment(devices), "JAX_ENABLE_X64": "1"}
    result = subprocess.run(
        [sys.executable, program, *arguments], env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["devices"] == devices
    return report["found"]


def check(found, name):
    assert found["dtypes"] == ["float64"]
    assert found["norm"] > 1e-6
    assert found["gradient"] < 1e-10
    assert set(found["metrics"]) >= METRICS[name]
    assert max(found["metrics"].values()) < 1e-10


def check_split(found, whole, fsdp):
    """Sizes and communication of a program whose state is shared by `fsdp` devices, against those of a whole one's."""
    sizes, (complete,) = set(found["state_bytes"]), set(whole["state_bytes"])
    assert len(found["state_bytes"]) == DEVICES and len(sizes) == 1
    small = 0.1  # share of the state in arrays that are too small, or have no axis that divides
    assert complete / fsdp <= sizes.pop() < complete * (1 / fsdp + small)
    assert found["argument_bytes"] < whole["argument_bytes"] * (1 / fsdp + small)
    gathers, whole_gathers = (x["collectives"].get("all-gather", []) for x in (found, whole))
    assert set(found["collectives"]) <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert not whole["split"]
    assert all(".params" in name or "opt_state" in name or ".ema['params']" in name for name in found["split"])
    # Parameters, each once, beside what is gathered anyway: no activation is.
    assert [shape for shape in gathers if shape == W] == whole_gathers
    assert len(gathers) > 10 and all(shape == W or tiny_run.DEVICES_BATCH not in shape for shape in gathers)


@pytest.fixture(scope="module")
def main_updates():
    return measure("compare", "1:generator,discriminator", "4:generator")


@pytest.mark.parametrize(("fsdp", "name"), [("1", "generator"), ("1", "discriminator"), ("4", "generator")])
def test_gradients_agree(main_updates, fsdp, name):
    check(main_updates[fsdp][name], name)


def test_w_is_gathered_once(main_updates):
    """For the twins' loss; whatever else is communicated are sums over devices."""
    assert main_updates["1"]["generator"]["collectives"] == {"all-gather": [W], "all-reduce": []}


def test_real_images_stay_where_they_are(main_updates):
    assert main_updates["1"]["discriminator"]["collectives"] == {"all-reduce": []}


def test_a_shared_state_takes_its_share_of_memory(main_updates):
    check_split(main_updates["4"]["generator"], main_updates["1"]["generator"], 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["path_length", "r1"])
def test_regularisers(name):
    found = measure("compare", f"1:{name}", f"2:{name}", f"8:{name}")
    for fsdp in found:
        check(found[fsdp][name], name)
    assert found["1"][name]["collectives"] == {"all-reduce": []}
    check_split(found["8"][name], found["1"][name], 8)


@pytest.mark.slow
def test_other_shares():
    found = measure("compare", "1:generator,discriminator", "2:discriminator", "8:generator,discriminator")
    for fsdp in ("2", "8"):
        for name in found[fsdp]:
            check(found[fsdp][name], name)
            check_split(found[fsdp][name], found["1"][name], int(fsdp))


@pytest.mark.slow
def test_twice_the_devices_communicate_as_often():
    found = measure("count", "generator", "discriminator", devices=2 * DEVICES)
    few, many = found[str(DEVICES)], found[str(2 * DEVICES)]
    assert few == many
    assert few["generator"]["all-gather"] == 1 and few["generator"]["all-reduce"] > 0
    assert set(few["discriminator"]) == {"all-reduce"}


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((3, 3, 16, 8), 2),  # the largest axis that divides
        ((8, 8), 0),  # the first of the largest
        ((9, 16), 1),
        ((15, 15), None),  # none divides
        ((56,), None),  # too small
        ((), None),
    ],
)
def test_split_axis(shape, axis):
    assert split_axis(shape, 8, 64) == axis
    assert split_axis(shape, 1, 1) is None


def test_fsdp_must_divide_the_devices():
    with pytest.raises(UserError, match=r"mesh\.fsdp=3 does not divide the 1 device\(s\) of the run; give one of 1\."):
        Layout(jax.devices()[:1], fsdp=3)


@pytest.mark.parametrize(("told", "devices"), [({}, "cores"), ({"JAX_NUM_CPU_DEVICES": "3"}, 3)])
def test_evaluation_takes_a_device_for_each_core(told, devices):
    program = (
        "import os, jax; from noisytwins_jax.utils.sharding import use_all_cores, MAX_CPU_DEVICES; use_all_cores();"
        "print(jax.device_count(), min(len(os.sched_getaffinity(0)), MAX_CPU_DEVICES)); use_all_cores()"
    )
    environment = tiny_run.environment(1)
    del environment["JAX_NUM_CPU_DEVICES"]
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | told,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    counted, cores = map(int, result.stdout.split()[-2:])
    assert counted == (cores if devices == "cores" else devices)
