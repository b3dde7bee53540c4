"""Costs of ADA on a TPU relative to the discriminator, estimated by the TPU compiler without a TPU.

    pip install libtpu
    python tests/benchmarks/ada_cycles.py --resolutions=64,128 --topologies=v3:2x2,v4:2x2x1
    python tests/benchmarks/ada_cycles.py --resolutions=64 --topologies=v3:2x2 --discriminator --impls=

From 96 px on "matmul" samples from windows, or without them if they are too small for a batch; only the usual case, with
windows, is measured.

One row for each formulation of the geometric operations: millions of `estimated_cycles` of one core (see README.md) for
the augmentation of 16 float32 images ("forward"), with their gradient ("+ gradient"), and with the gradient's gradient
as in R1 ("+ R1"), all of the pipeline `bgc`; and the temporary memory of the second. `uncounted` are gathers, scatters and
loops in it, whose time is missing or counted once in the estimate; `collectives` must be 0. The discriminator is that of
`inat19_64` (bfloat16), forward and gradients with respect to its parameters and to its images (for the augmentation); it
takes four to six minutes to compile for each row.
ada_cycles.txt holds the results.
"""

import argparse
import os
from collections.abc import Callable
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs: only the compiler is that of a TPU

import jax
import jax.numpy as jnp
from workloads import build_workload

from noisytwins_jax.models.model import DiscriminatorInputs
from noisytwins_jax.tpu_cost.hlo import read_program
from noisytwins_jax.tpu_cost.topology import tpu_devices
from noisytwins_jax.training.augment import ada
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.sharding import Layout

_IMAGES = 16  # on every core
_UNCOUNTED = ("gather", "scatter", "while")
_HEADER = ("topology", "px", "what", "forward", "+ gradient", "+ R1", "MB", "uncounted", "collectives")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", default="v3:2x2,v4:2x2x1")
    parser.add_argument("--resolutions", default="64,128")
    parser.add_argument("--impls", default="matmul,gather", help="formulations of the geometric operations")
    parser.add_argument("--precisions", default="float32,bfloat16", help="of the products of matmul")
    parser.add_argument("--operations", default="bgc")
    parser.add_argument("--discriminator", action="store_true", help="also the discriminator, slow to compile")
    args = parser.parse_args()
    operations = ada.parse_operations(args.operations)
    print(_row(*_HEADER), flush=True)
    for topology in args.topologies.split(","):
        try:
            layout = Layout(tpu_devices(topology))
        except UserError as error:
            raise SystemExit(f"error: {error}") from None
        for resolution in map(int, args.resolutions.split(",")):
            for impl in filter(None, args.impls.split(",")):
                for precision in args.precisions.split(",") if impl == "matmul" else ["float32"]:
                    programs = _augmentation(layout, resolution, operations, impl, precision)
                    _print_row(topology, resolution, f"{impl} {precision}", programs)
            if args.discriminator:
                programs = [_discriminator(Layout(layout.mesh.devices.flat[:1]), resolution)]
                _print_row(topology, resolution, "D", [None, *programs])


def _augmentation(
    layout: Layout, resolution: int, operations: tuple[str, ...], impl: ada.WarpImpl, precision: ada.Precision
) -> list:
    shape = (_IMAGES * layout.num_devices, resolution, resolution, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=layout.split)
    inputs = jax.eval_shape(lambda: ada.sample_inputs(jax.random.key(0), shape, operations))
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.split), inputs)
    p = jax.ShapeDtypeStruct((), jnp.float32, sharding=layout.replicated)

    def forward(x, inputs, p):
        with mock.patch.object(jax.lax, "cond", lambda fit, windows, whole, x: windows(x)):
            return ada.apply(x, inputs, operations, p, impl, precision)

    def gradient(x, inputs, p, cotangent):
        y, transpose = jax.vjp(lambda x: forward(x, inputs, p), x)
        return y, transpose(cotangent)[0]

    def r1(x, inputs, p, cotangent):
        y, transpose = jax.vjp(lambda x: forward(x, inputs, p), x)
        penalty, second = jax.value_and_grad(lambda g: jnp.square(transpose(g)[0]).sum())(cotangent)
        return y, penalty, second

    def lower(f: Callable, *args):
        return jax.jit(f).lower(*args)

    return [
        lower(forward, images, inputs, p),
        lower(gradient, images, inputs, p, images),
        lower(lambda *a: r1(*a)[::2], images, inputs, p, images),
    ]


def _discriminator(layout: Layout, resolution: int) -> jax.stages.Lowered:
    config = build_workload("inat19_64", None, "conv", "bfloat16", [f"data.resolution={resolution}"])
    model = build_model(config, 3, 1010)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0)))[1]

    def loss(params, images, labels, noise):
        output, _ = model.discriminate({**variables, "params": params}, DiscriminatorInputs(images, labels, noise))
        return jax.nn.softplus(output.logits).mean()

    def struct(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.replicated)

    params = jax.tree.map(lambda x: struct(x.shape, x.dtype), variables["params"])
    images = struct((_IMAGES, resolution, resolution, 3), jnp.float32)
    labels, noise = struct((_IMAGES,), jnp.int32), struct((_IMAGES, model.class_noise_dims[1]), jnp.float32)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params, images, labels, noise)


def _print_row(topology: str, resolution: int, what: str, programs: list) -> None:
    cycles, memory, uncounted, collectives = [], "", "", ""
    for index, lowered in enumerate(programs):
        if lowered is None:
            cycles.append("")
            continue
        compiled = lowered.compile()
        summary = read_program(compiled.as_text(), num_devices=1)
        cycles.append(f"{summary['cycles'] / 1e6:.2f}")
        if index == 1:
            memory = round(compiled.memory_analysis().temp_size_in_bytes / 1e6)
            uncounted = sum(summary["uncounted"].get(kind, 0) for kind in _UNCOUNTED)
            collectives = sum(kind["count"] for kind in summary["collectives"].values())
    cycles += [""] * (3 - len(cycles))
    print(_row(topology, resolution, what, *cycles, memory, uncounted, collectives), flush=True)


def _row(*cells) -> str:
    widths = (10, 4, 12, 8, 11, 7, 6, 10, 11)
    return " ".join(str(cell).rjust(width) for cell, width in zip(cells, widths, strict=True))


if __name__ == "__main__":
    main()
