"""Speed and memory of training on this machine's devices.

    python tests/benchmarks/training.py --size=digits

Trains on synthetic images through the real input pipeline, programs and layout, and prints one JSON line. Throughput is
measured over whole steps, as many as every lazy regulariser needs to run in its due proportion; with --steps=0 (the
default for the large sizes on a CPU, where such a window takes many minutes) it is computed from the times of the single
programs instead. README.md explains the fields.

On a CPU the defaults are float32 and, for the large sizes, 8 images.
"""

import argparse
import dataclasses
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from workloads import add_workload_arguments, build_workload

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.registry import load_data
from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.models.fir import resolve_up_impl
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.compiled_step import CompiledStep, check_batch
from noisytwins_jax.training.phases import Phase, build_phases, runs_per_step
from noisytwins_jax.training.random_inputs import class_table
from noisytwins_jax.training.run import process_batches
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.utils.device_memory import memory_plan
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.sharding import Layout

Batches = Iterator[dict[str, np.ndarray]]

_CPU_BATCH = 8  # of the large sizes


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_workload_arguments(parser)
    parser.add_argument("--steps", type=int, help="steps to measure, rounded up to whole windows; 0 for none")
    parser.add_argument(
        "--repeats", type=int, help="timed calls of each program, after a warm-up call; the median counts"
    )
    args = parser.parse_args()
    cpu = jax.default_backend() == "cpu"
    large_on_cpu = cpu and args.size != "digits"
    try:
        config = build_workload(
            args.size,
            args.batch_size or (_CPU_BATCH if large_on_cpu else None),
            args.up_impl,
            args.dtype or ("float32" if cpu else None),
            args.field,
        )
        steps = args.steps if args.steps is not None else (0 if large_on_cpu else 1)
        repeats = args.repeats or (1 if large_on_cpu else 10)
        print(json.dumps({"size": args.size} | measure(config, steps, repeats) | {"fields": args.field}))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


class Prepared(NamedTuple):
    """A configuration that is ready to train."""

    config: RunConfig  # its groups of the minibatch standard deviation fit the batch
    splits: DataSplits
    phases: list[Phase]
    compiled: CompiledStep
    state: TrainState
    compile_seconds: float


def prepare(config: RunConfig, devices: Sequence[jax.Device] | None = None) -> Prepared:
    """Load the data of a configuration, initialise its state and compile its programs; by default on all devices."""
    layout = Layout(devices, fsdp=config.mesh.fsdp)
    # A batch smaller than the published one may not fill a group on every device: use smaller groups.
    group = min(config.discriminator.mbstd_group_size, max(1, config.batch_size // layout.num_devices))
    config = dataclasses.replace(
        config, discriminator=dataclasses.replace(config.discriminator, mbstd_group_size=group)
    )
    check_batch(config, layout)
    splits = load_data(config.data)
    model = build_model(config, splits.train.channels, splits.train.num_classes)
    step = TrainingStep(config, model, layout)
    shardings = layout.state_shardings(step.abstract_state(layout.state_shardings))
    state = jax.jit(step.init, static_argnums=0, out_shardings=shardings)(config.seed)
    began = time.perf_counter()
    compiled = CompiledStep(step, class_table(config, splits.train.class_counts))
    return Prepared(config, splits, build_phases(step), compiled, state, time.perf_counter() - began)


def measure(config: RunConfig, steps: int, repeats: int) -> dict[str, Any]:
    """Compile, warm up and measure a configuration; README.md explains the fields."""
    config, splits, phases, compiled, state, compile_seconds = prepare(config)
    rates = runs_per_step(phases, compiled.batches)
    with process_batches(config, splits) as batches:
        state, times = time_programs(state, compiled, phases, batches, repeats)
        window = steps_in_window(config, phases)
        steps = math.ceil(steps / window) * window
        if steps:
            seconds_per_step = time_steps(state, compiled, batches, steps) / steps
        else:
            seconds_per_step = sum(seconds * rates[name] for name, seconds in times.items())
    return {
        "images_per_second": round(config.images_per_step / seconds_per_step, 2),
        "measured": f"{steps} whole steps" if steps else "single programs, weighted by their intervals",
        "ms_per_step": round(1e3 * seconds_per_step, 2),
        "ms_per_program": {name: round(1e3 * seconds, 2) for name, seconds in times.items()},
        "steps_per_program": {name: 1 / rate for name, rate in rates.items()},
        "batch_size": config.batch_size,
        "mbstd_group_size": config.discriminator.mbstd_group_size,
        "path_length_batch": config.lazy_batch(config.path_length) if config.path_length.active else 0,
        "up_impl": resolve_up_impl(config.up_impl),
        "dtype": config.dtype,
        "compile_s": round(compile_seconds, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / rss_units_per_mb()),
        "device_peak_mb": device_peak_mb(),
        "memory_mb": {
            name: {kind: round(size / 1e6, 2) for kind, size in memory_plan(program).items()}
            for name, program in compiled.programs.items()
        },
        "device": jax.devices()[0].device_kind,
        "devices": compiled.layout.num_devices,
        "jax": jax.__version__,
    }


def steps_in_window(config: RunConfig, phases: list[Phase]) -> int:
    """Return the number of steps after which every phase has run in its due proportion, in whole dispatches."""
    updates = config.optimizer.discriminator_updates
    steps = (p.interval // math.gcd(p.interval, updates) if p.needs_batch else p.interval for p in phases)
    return math.lcm(config.steps_per_dispatch, *steps)


def time_programs(
    state: TrainState, compiled: CompiledStep, phases: list[Phase], batches: Batches, repeats: int
) -> tuple[TrainState, dict[str, float]]:
    """Call the program of each phase, waiting for its result; return the state after and median seconds by name."""
    batch = compiled.layout.put_batch(next(batches))
    times = {}
    for phase in phases:
        seconds = []
        for _ in range(1 + repeats):
            began = time.perf_counter()
            state, _ = compiled.programs[phase.name](state, *phase.inputs(batch, compiled.table))
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - began)
        times[phase.name] = statistics.median(seconds[1:])
    return state, times


def time_steps(state: TrainState, compiled: CompiledStep, batches: Batches, steps: int) -> float:
    """Return the seconds of whole steps as training runs them, without waiting in between, after `time_programs`."""
    count = compiled.config.steps_per_dispatch
    began = time.perf_counter()
    for i in range(0, steps, count):
        state, _ = compiled(state, i, batches, count)
    jax.block_until_ready(state)
    return time.perf_counter() - began


def device_peak_mb() -> float | None:
    """Return the peak memory of the first device in megabytes, or ``None`` where it is not counted (CPUs)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else round(peak / 1e6, 1)


def rss_units_per_mb() -> float:
    """Return the units of ``ru_maxrss`` in a megabyte: it is in kilobytes on Linux, in bytes on macOS."""
    return 1e6 if sys.platform == "darwin" else 1e6 / 1024


if __name__ == "__main__":
    main()
