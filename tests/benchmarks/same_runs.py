"""Check that a change leaves training bit-identical: compare runs of the digits before and after it.

python tests/benchmarks/same_runs.py record before.json   # in a checkout of the old code
python tests/benchmarks/same_runs.py record after.json    # in a checkout of the new code, on the same machine
python tests/benchmarks/same_runs.py compare before.json after.json

Each run is `STEPS` steps of the public command in a process of its own. Recorded are a SHA-256 of every array of its last
checkpoint by path, every line of metrics.jsonl without speeds, and the numbers of its evaluation. Arrays are compared as a
collection, so that a renamed field of the state is reported but is not a difference.
"""

import argparse
import collections
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

METHODS = ("baseline", "noisytwins", "transitional", "biggan")
DEVICES = (1, 4)
STEPS, BATCH = 500, 32
# No longer stored in runs without path-length regularisation, where it stays 0.
DROPPED = "['path_length_mean']"
SPEED = ("img_per_second", "ms_per_step", "input_wait", "device_memory_gb")
OVERRIDES = (
    f"--config.total_kimg={STEPS * BATCH / 1000}",
    "--config.log_interval_kimg=0.32",
    "--config.evaluation.samples_per_class=32",
    "--config.evaluation.memorisation=False",
)


def train(method: str, devices: int, workdir: Path) -> None:
    """Train one run in a process of its own."""
    groups = [] if method == "biggan" else ["--config.discriminator.mbstd_group_size=8"]  # groups divide among devices
    command = [sys.executable, "-m", "noisytwins_jax.main", f"--config=configs/digits_lt.py:{method}", *OVERRIDES]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    subprocess.run([*command, *groups, f"--workdir={workdir}"], env=env, check=True, stdout=subprocess.DEVNULL)


def read_checkpoint(directory: Path) -> dict[str, str]:
    """Return a digest of every array of a checkpoint, by path."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler()
    metadata = handler.metadata(directory / "state").tree
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
    with ocp.Checkpointer(handler) as checkpointer:
        tree = checkpointer.restore(directory / "state", restore_args=on_host)
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    digests = {}
    for path, leaf in leaves:
        is_key = hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        x = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        content = f"{x.dtype} {x.shape} ".encode() + np.ascontiguousarray(x).tobytes()
        digests[jax.tree_util.keystr(path)] = hashlib.sha256(content).hexdigest()
    return digests


def read_run(workdir: Path) -> dict[str, Any]:
    """Return the compared content of a finished run."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    return {
        "state": read_checkpoint(workdir / "checkpoints" / str(STEPS)),
        "metrics": [{name: x for name, x in line.items() if name not in SPEED} for line in lines],
        "evaluation": evaluation["metrics"],
    }


def record(path: Path) -> None:
    """Train and record every run."""
    runs = {}
    with tempfile.TemporaryDirectory() as scratch:
        for method in METHODS:
            for devices in DEVICES:
                name = f"{method}, {devices} device(s)"
                print(name, flush=True)
                workdir = Path(scratch) / f"devices{devices}" / method
                train(method, devices, workdir)
                runs[name] = read_run(workdir)
                path.write_text(json.dumps(runs) + "\n")


def compare(before: Path, after: Path) -> bool:
    """Print the differences, one line per run; return whether there are none."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    same = old.keys() == new.keys()
    for name in old.keys() & new.keys():
        a, b = old[name], new[name]
        if DROPPED not in b["state"]:
            a["state"].pop(DROPPED, None)
        arrays = [collections.Counter(run["state"].values()) for run in (a, b)]
        changed = sum((arrays[0] - arrays[1]).values())
        renamed = len(a["state"].keys() - b["state"].keys())
        logged = sum(x != y for x, y in zip(a["metrics"], b["metrics"], strict=False))
        logged += abs(len(a["metrics"]) - len(b["metrics"]))
        evaluated = [key for key in a["evaluation"] if a["evaluation"][key] != b["evaluation"].get(key)]
        same &= not changed and not logged and not evaluated and arrays[0] == arrays[1]
        print(
            f"{name}: of {len(a['state'])} arrays {changed} differ ({renamed} renamed); of {len(a['metrics'])} lines of "
            f"metrics.jsonl {logged} differ; of {len(a['evaluation'])} numbers of the evaluation {len(evaluated)} differ"
        )
    return same


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("files", nargs="+", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "record":
        record(arguments.files[0])
    elif not compare(*arguments.files):
        sys.exit("The runs differ.")


if __name__ == "__main__":
    main()
