"""A run small enough for tests: 8 px, 8 channels. As a program, trains it in a process of its own, to be killed.

python tests/tiny_run.py WORKDIR [field=value ...]
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from waiting import TIMEOUT

from noisytwins_jax.config import RunConfig, default_config, parse_config
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.logging import read_metrics
from noisytwins_jax.utils.stopwatch import SPEED_METRICS

STEPS, BATCH = 120, 8
DEVICES_BATCH, DEVICES_W = 32, 8  # of the runs on eight devices


def tiny_config(**changes: Any) -> RunConfig:
    """A configuration that uses every part of the state; `changes` are fields by dotted path."""
    config = default_config()
    config.update(name="tiny", batch_size=BATCH, total_kimg=STEPS * BATCH / 1000, up_impl="shift")
    config.update(log_interval_kimg=BATCH / 1000, checkpoint_interval_kimg=10 * BATCH / 1000)
    config.w_ratio_interval_kimg = 5 * BATCH / 1000
    config.data.update(name="synthetic", resolution=8)
    config.data.options = {"num_classes": 4, "num_images": 100, "channels": 1}
    config.generator.update(z_dim=8, w_dim=8, mapping_layers=1, channel_base=64, channel_max=8)
    config.discriminator.update(channel_base=64, channel_max=8, mapping_layers=1, mbstd_group_size=1)
    config.noisytwins.sigma = 0.1
    config.noisytwins.weight = 0.05
    config.path_length.update(weight=2.0, batch_fraction=1.0)
    config.r1.interval = 4
    config.ema.update(kimg=0.2, rampup=0.05)
    config.augment.diffaugment = "color,translation,cutout"
    config.evaluation.samples_per_class = 8
    config.update_from_flattened_dict(changes)
    return parse_config(config)


def environment(devices: int) -> dict[str, str]:
    """Variables for a process with simulated devices, whose programs compile fast and run slowly."""
    fast = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    # Devices wait for each other for 40 s by default, which a busy machine can take.
    patient = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_collective_call_terminate_timeout_seconds={TIMEOUT:.0f}"
    platform = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return {**os.environ, **fast, "XLA_FLAGS": patient.strip(), **platform}


def start(workdir: Path, devices: int = 1, **changes: Any) -> subprocess.Popen:
    """Trains in a new process; the same command resumes."""
    fields = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    return subprocess.Popen(
        [sys.executable, __file__, str(workdir), *fields],
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """What a process printed, once it has ended well."""
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    return output


def arrays(tree: Any) -> dict[str, np.ndarray]:
    """Every leaf by path, on the host; PRNG keys as their data."""

    def fetch(x: Any) -> np.ndarray:
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(x) if is_key else x)

    return {jax.tree_util.keystr(path): fetch(x) for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def final_checkpoint(workdir: Path, **changes: Any) -> dict[str, np.ndarray]:
    """Every leaf of a workdir's newest checkpoint, with its step and the position of its data.

    `changes` are the run's, as for `tiny_config`.
    """
    from noisytwins_jax.training.build_model import build_model
    from noisytwins_jax.training.checkpoint import Checkpoints
    from noisytwins_jax.training.step import TrainingStep
    from noisytwins_jax.utils.sharding import Layout

    config = tiny_config(**changes)
    step = TrainingStep(config, build_model(config, 1, config.data.options["num_classes"]))
    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore(step.abstract_state(Layout(jax.devices()[:1]).replicated))
    position = {"step": np.array(restored.step), "next_index": np.array(restored.data["next_index"])}
    return arrays(restored.state) | position


def curves(workdir: Path) -> list[dict]:
    """What was logged, without how fast it was."""
    return [{k: v for k, v in record.items() if k not in SPEED_METRICS} for record in read_metrics(workdir)]


if __name__ == "__main__":
    from noisytwins_jax.train import train_to_end
    from noisytwins_jax.utils.logging import quiet_libraries

    quiet_libraries()
    values = {name: json.loads(text) for name, _, text in (field.partition("=") for field in sys.argv[2:])}
    try:
        train_to_end(tiny_config(**values), sys.argv[1])
    except UserError as error:
        sys.exit(f"Error: {error}")
