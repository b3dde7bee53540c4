"""What the training programs cost on a TPU, by the real TPU compiler and without a TPU.

    pip install libtpu
    python tests/benchmarks/tpu_cycles.py --size=inat19_64 --topology=v3:2x2

Compiles the programs of a run ahead of time for a named topology and prints one JSON line: for each program the sum of
the compiler's `estimated_cycles` over the instructions of one core (a static model: no communication, no contention for
memory), temporary and argument memory per core, and the collectives with the size of their results. See README.md.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import time
from collections import Counter, defaultdict
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs: only the compiler is a TPU's

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from workloads import add_workload_arguments, workload

from noisytwins_jax.config import RunConfig
from noisytwins_jax.errors import UserError
from noisytwins_jax.sharding import Layout
from noisytwins_jax.training.model import build_model
from noisytwins_jax.training.programs import check_batch, lower_programs
from noisytwins_jax.training.step import ClassTable, TrainingStep

_COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
# `%name = <shape or tuple of shapes> opcode(operands), …`; asynchronous collectives are counted where they start.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[\w\-]+)\(")
_ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_workload_arguments(parser)
    parser.set_defaults(dtype="bfloat16", up_impl="conv")
    parser.add_argument("--topology", default="v3:2x2", help="as v3:2x2 (8 cores), v4:2x2x1, v5e:2x2, v6e:2x2")
    parser.add_argument("--programs", help="some of generator,discriminator,r1,path_length,average; default all")
    parser.add_argument("--dearest", type=int, default=0, help="also print this many of the dearest instructions")
    parser.add_argument("--hlo_dir", type=Path, help="also write each program's compiled HLO here")
    args = parser.parse_args()
    try:
        config = workload(args.size, args.batch_size, args.up_impl, args.dtype, args.field)
        layout = Layout(tpu_devices(args.topology))
        check_batch(config, layout)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None

    lowered = lower(config, layout)
    names = args.programs.split(",") if args.programs else list(lowered)
    if unknown := sorted(set(names) - set(lowered)):
        raise SystemExit(f"error: this workload has no program {unknown[0]!r}; it has {', '.join(lowered)}.")
    result = {
        "size": args.size,
        "topology": args.topology,
        "cores": layout.num_devices,
        "batch_size": config.batch_size,
        "images_per_core": config.batch_size // layout.num_devices,
        "path_length_batch": config.path_length_batch if config.path_length.weight > 0 else 0,
        "up_impl": config.up_impl,
        "dtype": config.dtype,
        "fields": args.field,
        "jax": jax.__version__,
        "libtpu": importlib.metadata.version("libtpu"),
        "programs": {},
    }
    for name in names:
        began = time.perf_counter()
        compiled = lowered[name].compile()
        seconds = time.perf_counter() - began
        text, memory = compiled.as_text(), compiled.memory_analysis()
        if args.hlo_dir:
            args.hlo_dir.mkdir(parents=True, exist_ok=True)
            (args.hlo_dir / f"{name}.txt").write_text(text)
        result["programs"][name] = read_hlo(text, args.dearest) | {
            "temp_mb": round(memory.temp_size_in_bytes / 1e6, 1),
            "argument_mb": round(memory.argument_size_in_bytes / 1e6, 1),
            "compile_s": round(seconds, 1),
        }
    print(json.dumps(result))


def tpu_devices(topology: str) -> list:
    """The cores of a topology that need not exist.

    Raises:
      SystemExit: without libtpu, or for a name that the compiler does not know.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise SystemExit("error: The TPU compiler is missing; install it with: pip install libtpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no Cloud TPU metadata server to wait for
    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise SystemExit(f"error: The TPU compiler refuses --topology={topology}: {reason}") from None


def lower(config: RunConfig, layout: Layout) -> dict[str, jax.stages.Lowered]:
    """The training programs of a run, traced for a mesh."""
    classes = config.data.options["num_classes"]
    step = TrainingStep(
        config, build_model(config, config.data.options.get("channels", 3), classes), layout.batch, layout.replicate
    )
    column = jax.ShapeDtypeStruct((classes,), jnp.float32, sharding=layout.replicated)
    return lower_programs(step, layout, ClassTable(column, column, column))


def read_hlo(text: str, dearest: int = 0) -> dict:
    """Sums up a compiled program.

    Args:
      text: its HLO, after optimisation.
      dearest: how many of the dearest instructions to list.

    Returns:
      ``mcycles``: millions of estimated cycles per core. ``collectives``: by opcode, how many, and megabytes and (by
      dtype) elements of their results. ``dearest``: cycles in millions, result shape and source of instructions.
    """
    costs: list[tuple[int, str, str]] = []
    counts: Counter[str] = Counter()
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for line in text.splitlines():
        instruction = _INSTRUCTION.match(line)
        if instruction is None:
            continue
        if cycles := _CYCLES.search(line):
            source = _OP_NAME.search(line)
            costs.append((int(cycles[1]), instruction["shape"], source[1] if source else instruction["name"]))
        opcode = instruction["opcode"].removesuffix("-start")
        if opcode in _COLLECTIVES and not instruction["opcode"].endswith("-done"):
            counts[opcode] += 1
            for dtype, shape in _ARRAY.findall(instruction["shape"]):
                elements = 1
                for extent in filter(None, shape.split(",")):
                    elements *= int(extent)
                sizes[opcode][dtype] += elements
    summary: dict = {
        "mcycles": round(sum(cost for cost, _, _ in costs) / 1e6, 2),
        "collectives": {
            opcode: {
                "count": counts[opcode],
                "mb": round(sum(n * _bytes(dtype) for dtype, n in sizes[opcode].items()) / 1e6, 2),
                "elements": dict(sizes[opcode]),
            }
            for opcode in counts
        },
    }
    if dearest:
        top = sorted(costs, reverse=True)[:dearest]
        summary["dearest"] = [[round(cost / 1e6, 3), shape[:80], source[-120:]] for cost, shape, source in top]
    return summary


def _bytes(dtype: str) -> int:
    return 1 if dtype == "pred" else int(re.sub(r"\D", "", dtype)) // 8


if __name__ == "__main__":
    main()
