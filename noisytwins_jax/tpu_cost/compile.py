"""``--mode=compile``: compile every program of a run with the TPU compiler, without a TPU, and print its costs.

The last line on stdout is the result as JSON; before it comes the same as text, and progress goes to stderr. Cycles are the
compiler's estimate for one core, without communication and without waiting for memory or the host (`tpu_cost.hlo`). Nothing
is measured on a TPU.
"""

import dataclasses
import functools
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from noisytwins_jax.config import RunConfig, flatten
from noisytwins_jax.data.instance_table import InstanceTable
from noisytwins_jax.data.registry import classes_and_channels
from noisytwins_jax.generation.sample_programs import sample_program
from noisytwins_jax.metrics.extractors.classifier import Classifier, extract
from noisytwins_jax.metrics.extractors.registry import abstract_extractor
from noisytwins_jax.metrics.protocols import CLASSIFIER, parse_extractors
from noisytwins_jax.models.fir import resolve_up_impl
from noisytwins_jax.models.model import Model
from noisytwins_jax.tpu_cost.chips import Chip, communication_seconds, get_chip
from noisytwins_jax.tpu_cost.comparison import compare_results, read_result
from noisytwins_jax.tpu_cost.hlo import read_program
from noisytwins_jax.tpu_cost.model_flops import count_flops, network_flops, program_flops
from noisytwins_jax.tpu_cost.report import format_result
from noisytwins_jax.tpu_cost.topology import compiler_version, tpu_devices
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.compiled_step import SEVERAL, check_batch, lower_programs
from noisytwins_jax.training.instance_conditioning import abstract_table
from noisytwins_jax.training.phases import build_phases, runs_per_step
from noisytwins_jax.training.random_inputs import ClassTable
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.utils.device_memory import memory_plan
from noisytwins_jax.utils.errors import UserError, did_you_mean, first_line
from noisytwins_jax.utils.sharding import Layout

_PARALLEL_COMPILATIONS = 4  # the compiler needs one to three gigabytes for each of the large programs


def compile_run(
    config: RunConfig, topology: str, programs: list[str] | None = None, compare: str | None = None
) -> dict[str, Any]:
    """Compile the programs of a run, print their costs and return them.

    Programs are those of training (`training.phases`), ``sampler`` and the evaluation's extractors (``classifier``,
    ``inception``, ``clip``, ``dinov2``); the latter take a batch of the run's size, split over the mesh. In the program of
    several steps every branch counts, as if every phase were due in every step. As the data are not read, tables of
    instances (IC-GAN) are compiled for a few images: their memory, 2 bytes × images × features, is not included.

    Args:
      config: the run; its data need not exist here.
      topology: TPU cores, as ``v3:2x2``; see `tpu_cost.topology`.
      programs: names of the programs to compile; all by default.
      compare: file whose last line is an earlier result.

    Returns:
      The content of the JSON line: the run and the topology, ``programs`` (`_costs`), the average ``step``
      (`_average_step`) and ``fields``, the configuration. Megabytes are 10⁶ bytes.

    Raises:
      UserError: no compiler, no such topology or program, a batch that the mesh cannot divide, a file without a result;
        and at the end, after all output, if programs do not compile, for example for lack of memory.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing runs: only the compiler is a TPU's
    config = dataclasses.replace(config, up_impl=resolve_up_impl(config.up_impl, "tpu"))
    earlier = read_result(Path(compare)) if compare else None
    layout = Layout(tpu_devices(topology), fsdp=config.mesh.fsdp)
    check_batch(config, layout)
    classes, channels = classes_and_channels(config.data)
    lowered, flops, rates = _lower(config, layout, channels, classes)
    if unknown := [name for name in programs or [] if name not in lowered]:
        raise UserError(
            f"This run has no program {unknown[0]!r}; {did_you_mean(unknown[0], lowered)} "
            f"(It has {', '.join(lowered)}.)"
        )
    chip = get_chip(topology)
    result = _header(config, layout, topology, chip)
    names = list(dict.fromkeys(programs or lowered))
    print(
        f"Compiling {', '.join(names)} for {topology}: minutes for each, if networks are large.",
        file=sys.stderr,
        flush=True,
    )
    with ThreadPoolExecutor(min(_PARALLEL_COMPILATIONS, os.cpu_count() or 1)) as pool:
        costs = pool.map(lambda name: _compile(name, lowered[name], flops[name], layout.num_devices, chip), names)
        result["programs"] = dict(zip(names, costs, strict=True))
    result["step"] = _average_step(config, rates, result["programs"], chip)
    result["fields"] = flatten(config)

    print(format_result(result))
    if earlier is not None:
        print(f"\n{compare_results(earlier, result)}")
    print(f"\n{json.dumps(result)}", flush=True)
    if failed := {name: costs["error"] for name, costs in result["programs"].items() if "error" in costs}:
        raise UserError(
            f"{', '.join(failed)} cannot be compiled for {topology} ({next(iter(failed.values()))}); if memory is too small, "
            "give --config.accumulation or --config.remat=True, or take more cores or --config.mesh.fsdp."
        )
    return result


def _lower(
    config: RunConfig, layout: Layout, channels: int, classes: int
) -> tuple[dict[str, jax.stages.Lowered], dict[str, float], dict[str, float]]:
    """Trace every program for the mesh; return it and its FLOPs by name, and how often a step runs each of its phases."""
    model = build_model(config, channels, classes)
    step = TrainingStep(config, model, layout)
    column = jax.ShapeDtypeStruct((classes,), jnp.float32, sharding=layout.replicated)
    table = ClassTable(column, column, column, abstract_table(config, classes, layout.replicated))
    lowered = dict(lower_programs(step, table))
    lowered["sampler"] = _lower_sampler(config, model, step, layout, table.instances)
    extractors = _lower_extractors(config, model, layout, classes)
    lowered |= {kind: program for kind, (program, _) in extractors.items()}
    networks = network_flops(config, channels, classes)
    flops = program_flops(config, networks)
    rates = runs_per_step(build_phases(step), config.optimizer.discriminator_updates)
    step_flops = sum(rate * flops[name] for name, rate in rates.items())
    flops |= {SEVERAL: config.steps_per_dispatch * step_flops}
    flops |= {"sampler": config.batch_size * networks["generator"]}
    flops |= {kind: extractor_flops for kind, (_, extractor_flops) in extractors.items()}
    return lowered, {name: flops[name] for name in lowered}, rates


def _lower_sampler(
    config: RunConfig, model: Model, step: TrainingStep, layout: Layout, instances: InstanceTable | None
) -> jax.stages.Lowered:
    program: Any = sample_program(model, config.z)
    variables = step.abstract_state(layout.replicated).ema
    rows = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32, sharding=layout.split)
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=layout.replicated)
    return program.lower(variables, None, seed, rows, rows, instances)


def _lower_extractors(
    config: RunConfig, model: Model, layout: Layout, classes: int
) -> dict[str, tuple[jax.stages.Lowered, float]]:
    """Trace the evaluation's extractors; return their programs and FLOPs, by kind."""
    protocol = config.evaluation.settings.protocol
    images = jax.ShapeDtypeStruct((config.batch_size, *model.image_shape), jnp.uint8, sharding=layout.split)
    lowered = {}
    for kind, network in parse_extractors(protocol, config.evaluation.extractors).items():
        if kind == CLASSIFIER:
            shape = jax.eval_shape(
                lambda: Classifier(classes).init(jax.random.key(0), jnp.zeros((1, *model.image_shape)))
            )
            variables, apply = shape["params"], functools.partial(extract, num_classes=classes)
        else:
            extractor = abstract_extractor(kind, network, protocol)
            variables, apply = extractor.variables, extractor.apply
        on_mesh = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.replicated), variables)
        lowered[kind] = jax.jit(apply).lower(on_mesh, images), count_flops(apply, variables, images)
    return lowered


def _header(config: RunConfig, layout: Layout, topology: str, chip: Chip) -> dict[str, Any]:
    return {
        "config": config.name,
        "topology": topology,
        "cores": layout.num_devices,
        "cores_per_chip": chip.cores,
        "clock_mhz": round(chip.clock_hz / 1e6),
        "peak_tflops": round(chip.peak_flops / 1e12, 1),
        "memory_mb": round(chip.memory / 1e6),
        "batch_size": config.batch_size,
        "images_per_core": config.batch_size / layout.num_devices,
        "path_length_batch": config.lazy_batch(config.path_length) if config.path_length.active else 0,
        "dtype": config.dtype,
        "up_impl": config.up_impl,
        "jax": jax.__version__,
        "libtpu": compiler_version(),
        "programs": {},
    }


# Without it, libtpu 0.0.52 compiles scatters for v6e into programs that jaxlib 0.10.2 cannot read.
_READABLE = "--xla_tpu_enable_offloading_scatter_to_sparsecore=false"


def _compile(name: str, program: jax.stages.Lowered, flops: float, cores: int, chip: Chip) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:
        print(f"{name} cannot be compiled ({time.perf_counter() - began:.0f} s).", file=sys.stderr, flush=True)
        reason = first_line(error).rpartition("CompileTimeHbmOom: ")[2].partition(" HLO module")[0]
        return {"error": reason.rstrip(". ")}
    seconds = time.perf_counter() - began
    print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        print(f"jaxlib cannot read {name} as libtpu compiled it: {first_line(error)}", file=sys.stderr, flush=True)
        return {"error": "jaxlib cannot read the compiled program; LIBTPU_INIT_ARGS=" + _READABLE + " may help"}
    return _costs(compiled, text, flops, cores, chip) | {"compile_s": round(seconds, 1)}


def _costs(compiled: jax.stages.Compiled, text: str, flops: float, cores: int, chip: Chip) -> dict[str, Any]:
    """Collect the costs of one run of a program on one core: cycles, FLOPs, memory and communication."""
    summary = read_program(text, cores)
    memory = memory_plan(compiled)
    cycles = summary.pop("cycles")
    sent = sum(entry["sent_bytes"] for entry in summary["collectives"].values())
    return {
        "mcycles": cycles / 1e6,
        "ms": 1e3 * cycles / chip.clock_hz,
        "mfu": flops / cores / max(cycles * chip.flops_per_cycle, 1),
        "compiler_gflop": compiled.cost_analysis().get("flops", 0.0) / 1e9,
        "model_gflop": flops / cores / 1e9,
        "memory_mb": {part: round(size / 1e6, 2) for part, size in memory.items()},
        "fits": memory["all"] <= chip.memory,
        "sent_mb": sent / 1e6,
        "communication_ms": 1e3 * communication_seconds(sent, chip),
        **summary,
    }


def _average_step(
    config: RunConfig, rates: dict[str, float], programs: dict[str, dict[str, Any]], chip: Chip
) -> dict[str, Any] | None:
    """Compute the costs of an average step from the compiled programs, weighted by their intervals; ``None`` without any.

    ``images_per_s`` counts real images of the discriminator, on the whole mesh, if cycles took all of the time;
    ``images_per_s_waiting`` if the cores also waited for all communication. Both and ``mfu`` are ``None`` if programs are
    missing.
    """
    compiled = {
        name: rate for name, rate in rates.items() if "error" not in programs.get(name, {"error": "not compiled"})
    }
    if not compiled:
        return None

    def total(field: str) -> float:
        return sum(rate * programs[name][field] for name, rate in compiled.items())

    ms, communication, missing = total("ms"), total("communication_ms"), sorted(rates.keys() - compiled.keys())
    return {
        "runs": compiled,
        "missing": missing,
        "mcycles": total("mcycles"),
        "ms": ms,
        "images_per_s": None if missing else config.images_per_step / (ms / 1e3),
        "mfu": None if missing else total("model_gflop") * 1e9 / (chip.peak_flops * ms / 1e3),
        "sent_mb": total("sent_mb"),
        "communication_ms": communication,
        "images_per_s_waiting": None if missing else config.images_per_step / ((ms + communication) / 1e3),
    }
