"""How fast training runs on this machine's devices, and what memory it takes.

    python tests/benchmarks/training.py --size=digits

Trains on synthetic images through the real input pipeline, programs and layout, and prints one JSON line. Throughput is
measured over whole steps, as many as it takes for every lazy regulariser to run in its due proportion; with --steps=0
(the default for the large sizes on a CPU, where such a window takes many minutes) it is put together from the times of
the single programs instead. README.md explains the fields.

On a CPU the defaults are the CPU's form of the convolutions (--up_impl=shift) and, for the large sizes, 8 images.
"""

import argparse
import dataclasses
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from workloads import add_workload_arguments, workload

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.registry import load_data
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.compiled_step import SEVERAL, CompiledStep
from noisytwins_jax.training.phases import inputs, runs_per_step
from noisytwins_jax.training.random_inputs import class_table
from noisytwins_jax.training.run import batches_of_process
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.sharding import Layout

Batches = Iterator[dict[str, np.ndarray]]

_CPU_BATCH = 8  # of the large sizes


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_workload_arguments(parser)
    parser.add_argument("--steps", type=int, help="steps to measure, rounded up to whole windows; 0 for none")
    parser.add_argument("--repeats", type=int, help="calls of each program, after one to warm up; their median counts")
    args = parser.parse_args()
    cpu = jax.default_backend() == "cpu"
    large_on_cpu = cpu and args.size != "digits"
    try:
        config = workload(
            args.size,
            args.batch_size or (_CPU_BATCH if large_on_cpu else None),
            args.up_impl or ("shift" if cpu else None),
            args.dtype or ("float32" if cpu else None),
            args.field,
        )
        steps = args.steps if args.steps is not None else (0 if large_on_cpu else 1)
        repeats = args.repeats or (1 if large_on_cpu else 10)
        print(json.dumps({"size": args.size} | measure(config, steps, repeats) | {"fields": args.field}))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def measure(config: RunConfig, steps: int, repeats: int) -> dict[str, Any]:
    """Compiles, warms up and measures a configuration; README.md explains the fields."""
    layout = Layout(fsdp=config.mesh.fsdp)
    # A batch smaller than the published one may not fill a group on every device: take the groups that it fills.
    group = min(config.discriminator.mbstd_group_size, max(1, config.batch_size // layout.num_devices))
    config = dataclasses.replace(
        config, discriminator=dataclasses.replace(config.discriminator, mbstd_group_size=group)
    )
    with_path_length = config.path_length.weight > 0
    layout.check_batch_size(
        config.batch_size, group, config.makes_twins, config.path_length_batch if with_path_length else 0
    )
    splits = load_data(config.data)
    model = build_model(config, splits.train.channels, splits.train.num_classes)
    step = TrainingStep(config, model, layout.batch, layout.replicate, layout.gather, layout.scatter)
    shardings = layout.state_shardings(step.abstract_state(layout.state_shardings))
    state = jax.jit(step.init, static_argnums=0, out_shardings=shardings)(config.seed)
    began = time.perf_counter()
    programs = CompiledStep(step, layout, class_table(config, splits.train.class_counts))
    compile_seconds = time.perf_counter() - began

    rates = runs_per_step(config)
    every = {name: 1 / rates[name] for name in programs.programs if name != SEVERAL}
    with batches_of_process(config, splits) as batches:
        state, times = time_programs(state, programs, batches, repeats)
        steps = math.ceil(steps / window(config)) * window(config)
        if steps:
            seconds_per_step = time_steps(state, programs, batches, steps) / steps
        else:
            seconds_per_step = sum(times[name] / every[name] for name in times)
    return {
        "images_per_second": round(config.images_per_step / seconds_per_step, 2),
        "measured": f"{steps} whole steps" if steps else "single programs, weighted by how often they run",
        "ms_per_step": round(1e3 * seconds_per_step, 2),
        "ms_per_program": {name: round(1e3 * seconds, 2) for name, seconds in times.items()},
        "steps_per_program": every,
        "batch_size": config.batch_size,
        "mbstd_group_size": group,
        "path_length_batch": config.path_length_batch if with_path_length else 0,
        "up_impl": config.up_impl,
        "dtype": config.dtype,
        "compile_s": round(compile_seconds, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / rss_units_per_mb()),
        "device_peak_mb": device_peak_mb(),
        "memory_mb": {name: program_memory(program) for name, program in programs.programs.items()},
        "device": jax.devices()[0].device_kind,
        "devices": layout.num_devices,
        "jax": jax.__version__,
    }


def window(config: RunConfig) -> int:
    """Steps after which every program has run in its due proportion, in whole dispatches."""
    path_length = config.path_length.interval if config.path_length.weight > 0 else 1
    r1 = config.r1.interval if config.r1.gamma > 0 else 1
    ada = config.ada.interval if config.ada.operations else 1
    return math.lcm(
        config.steps_per_dispatch, path_length, ada, r1 // math.gcd(r1, config.optimizer.discriminator_updates)
    )


def time_programs(
    state: TrainState, programs: CompiledStep, batches: Batches, repeats: int
) -> tuple[TrainState, dict[str, float]]:
    """Calls each program on its own and waits for it: the state after, and the median seconds of each."""
    batch = programs.layout.put_batch(next(batches))
    times = {}
    for name, program in programs.programs.items():
        if name == SEVERAL:
            continue
        to_scalars = []
        for _ in range(1 + repeats):
            began = time.perf_counter()
            state = jax.block_until_ready(program(state, *inputs(name, batch, programs.table))[0])
            to_scalars.append(time.perf_counter() - began)
        times[name] = statistics.median(to_scalars[1:])
    return state, times


def time_steps(state: TrainState, programs: CompiledStep, batches: Batches, steps: int) -> float:
    """Seconds of whole steps as training runs them, without waiting in between; `time_programs` has warmed up."""
    at_once = programs.config.steps_per_dispatch
    advance = programs.advance_several if at_once > 1 else programs.advance
    began = time.perf_counter()
    for i in range(0, steps, at_once):
        state, _ = advance(state, i, batches)
    jax.block_until_ready(state)
    return time.perf_counter() - began


def program_memory(program: Callable) -> dict[str, float] | None:
    """Megabytes on a device that the compiler plans for a program, by kind, or ``None`` where it does not say.

    Donated arguments come back as outputs and are counted in both; ``aliased`` is how much that is.
    """
    memory = program.memory_analysis()
    if memory is None:
        return None
    kinds = {"argument": "argument", "temp": "temp", "output": "output", "aliased": "alias"}
    return {name: round(getattr(memory, f"{kind}_size_in_bytes") / 1e6, 2) for name, kind in kinds.items()}


def device_peak_mb() -> float | None:
    """The most memory the first device has held, in megabytes, or ``None`` where it does not count (CPUs)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else round(peak / 1e6, 1)


def rss_units_per_mb() -> float:
    """``ru_maxrss`` is in kilobytes on Linux, in bytes on macOS."""
    return 1e6 if sys.platform == "darwin" else 1e6 / 1024


if __name__ == "__main__":
    main()
