"""The command that measures an accelerator: its table, and that a part that fails leaves the others alone."""

import importlib.util
import json
import sys
import time

from paths import TESTS


def load_benchmark():
    spec = importlib.util.spec_from_file_location("accelerator", TESTS / "benchmarks" / "accelerator.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


accelerator = load_benchmark()
DEVICE = {"part": "device", "case": "device", "device": "abacus", "platform": "cpu", "jax": "1.2.3"}


def write_lines(out, *lines):
    (out / accelerator.LOGS).mkdir()
    (out / accelerator.RESULTS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_table(tmp_path):
    write_lines(
        tmp_path,
        DEVICE,
        {"part": "sampling", "case": "batch 1", "images_per_second": 1.0},
        {"part": "sampling", "case": "batch 1", "images_per_second": 2.34567, "ms": {"all": 3}},
        {"part": "sampling", "case": "batch 8", "images_per_second": 12345.6, "device": "abacus", "seconds": 4.0},
        {"part": "step", "skipped": "no time"},
        {"part": "run", "error": "lost | found"},
        {"part": "sampling", "error": "too slow"},
    )
    accelerator.write_table(tmp_path)
    text = (tmp_path / accelerator.TABLE).read_text()
    assert text.startswith("# Measurements: abacus, JAX 1.2.3\n")
    assert (
        "| case | images_per_second | ms |\n|---|---|---|\n| batch 1 | 2.346 | all 3 |\n| batch 8 | 12346 |  |\n"
        in text
    )
    assert text.endswith("| sampling | too slow |\n| step | no time |\n| run | lost / found |\n")


def test_parts_that_fail_leave_the_others_alone(tmp_path, monkeypatch):
    write_lines(tmp_path, DEVICE)
    monkeypatch.setattr(accelerator, "SHORTEST", 0.0)
    result = {"part": "run", "case": "small", "images_per_second": 5}
    programs = {
        "step": "import time; time.sleep(60)",
        "golden": "import sys; sys.exit('out of memory')",
        "run": f"print({json.dumps(result)!r}, file=open({str(tmp_path / accelerator.RESULTS)!r}, 'a'))",
    }
    limits = []

    def command(part, seconds):
        limits.append(seconds)
        return [sys.executable, "-c", programs[part]]

    accelerator.run_parts(list(programs), time.monotonic() + 10, tmp_path, command)
    _, slow, crashed, good = accelerator.read_lines(tmp_path)
    assert slow["part"] == "step" and slow["error"] == "not finished in the 2 s left for it"
    assert crashed["part"] == "golden" and crashed["error"] == "status 1: out of memory"
    assert crashed["device"] == "abacus"
    assert good == result
    assert limits[0] < 2 < limits[1] < limits[2] < 8  # what a part leaves over, those after it have


def test_parts_without_time_are_skipped(tmp_path):
    write_lines(tmp_path, DEVICE)
    accelerator.run_parts(["golden", "run"], time.monotonic(), tmp_path, command=None)
    assert [line.get("skipped") for line in accelerator.read_lines(tmp_path)[1:]] == [
        "less than 15 s were left for golden",
        "less than 15 s were left for run",
    ]


def test_every_part_is_measured_and_has_a_title():
    for platform, combinations in (("cpu", 3), ("gpu", 27), ("tpu", 18)):
        parts = accelerator.list_parts(platform, peer=True)
        assert sum(part.startswith("training/") for part in parts) == combinations
        names = {part.split("/")[0] for part in parts}
        assert names == set(accelerator.GROUPS) == set(accelerator.MEASUREMENTS) - {"device"}
