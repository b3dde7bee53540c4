"""Take two training steps of every row named, on all devices; print a line of JSON for each. See `test_presets`.

python tests/helpers/methods_program.py [--resolution=8] inat19:noisytwins,smoke digits_lt:gsr,smoke ...
"""

import importlib.util
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import tiny_run
from paths import ROOT

from noisytwins_jax.config import RunConfig, parse_config
from noisytwins_jax.data.registry import load_data
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.compiled_step import CompiledStep, check_batch
from noisytwins_jax.training.instance_conditioning import with_instances
from noisytwins_jax.training.random_inputs import class_table
from noisytwins_jax.training.run import process_batches
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.training.step_metrics import fetch_in_order, mean_metrics
from noisytwins_jax.utils.sharding import Layout

CONFIGS = ROOT / "configs"
STEPS = 2


def config_file(dataset: str) -> ModuleType:
    """The module ``configs/<dataset>.py``."""
    spec = importlib.util.spec_from_file_location(dataset, CONFIGS / f"{dataset}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_config(row: str, resolution: int | None = None) -> RunConfig:
    """Return the configuration of ``<dataset>:<words>``, at its own resolution or another one."""
    dataset, _, words = row.partition(":")
    config = config_file(dataset).get_config(words)
    if resolution:
        config.data.resolution = resolution
        config.utlo.resolution = min(config.utlo.resolution, resolution // 2)
    return parse_config(config)


def take_steps(config: RunConfig) -> dict[str, Any]:
    """Takes the steps; what was logged, and which parameters stayed as they were or are not finite."""
    layout = Layout()
    check_batch(config, layout)
    with tempfile.TemporaryDirectory() as cache:
        splits = with_instances(config, load_data(config.data), Path(cache))
    model = build_model(config, splits.train.channels, splits.train.num_classes)
    step = TrainingStep(config, model, layout)
    state = jax.jit(step.init, static_argnums=0, out_shardings=layout.replicated)(config.seed)
    programs = CompiledStep(step, class_table(config, splits.train.class_counts, splits.instances))

    before, metrics = parameters(state), []
    with process_batches(config, splits) as batches:
        for i in range(STEPS):
            state, reported = programs(state, i, batches)
            metrics.append([numbers for _, numbers in fetch_in_order(reported)])
    after = parameters(state)
    return {
        "name": config.name,
        "devices": layout.num_devices,
        "classes": splits.train.num_classes,
        "first": mean_metrics(metrics[0]),
        "metrics": mean_metrics([update for updates in metrics for update in updates]),
        "not_finite": [path for path, x in tiny_run.arrays(state).items() if not np.isfinite(x).all()],
        "still": [path for path in before if np.array_equal(before[path], after[path])],
    }


def parameters(state: Any) -> dict[str, np.ndarray]:
    """Every trained array by path, on the host."""
    return tiny_run.arrays({"generator": state.generator.params, "discriminator": state.discriminator.params})


if __name__ == "__main__":
    resolutions = [int(word.partition("=")[2]) for word in sys.argv[1:] if word.startswith("--resolution=")]
    for row in sys.argv[1 + len(resolutions) :]:
        began = time.perf_counter()
        try:
            report = take_steps(run_config(row, *resolutions))
        except Exception:  # the other rows are still worth knowing
            report = {"error": traceback.format_exc()}
        print(json.dumps({"row": row, **report, "seconds": round(time.perf_counter() - began, 1)}), flush=True)
        jax.clear_caches()
