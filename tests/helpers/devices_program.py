"""Gradients on one device and on all, and the communication between these; prints JSON. See `test_devices`.

python tests/devices_program.py compare FSDP:PROGRAM,... ...
python tests/devices_program.py count PROGRAM ...
python tests/devices_program.py micro PROGRAM FIELD=VALUE,... ...

`compare` runs programs (generator, path_length, discriminator, r1) with a state that FSDP devices share. `count` only
compiles them, for half of the devices and for all. `micro` runs a program with other values of `accumulation` and `remat`,
on all devices, against one that runs in one piece on one.
"""

import dataclasses
import functools
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny_run

from noisytwins_jax.config import RunConfig
from noisytwins_jax.models.stylegan2 import Discriminator, Generator
from noisytwins_jax.models.stylegan2_model import StyleGAN2Model
from noisytwins_jax.training.compiled_step import lower_programs
from noisytwins_jax.training.random_inputs import ClassTable, class_table
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.utils.sharding import Layout

SPLIT_FROM = 32  # elements: most parameters of the small networks are split
BATCH, W = tiny_run.DEVICES_BATCH, tiny_run.DEVICES_W
COUNTS = np.array([50, 20, 10, 5])  # images a class
NETWORKS = {
    "generator": "generator",
    "path_length": "generator",
    "discriminator": "discriminator",
    "r1": "discriminator",
}
GROUP = 2  # of minibatch standard deviation
CONFIG = tiny_run.tiny_config(
    **{"batch_size": BATCH, "style_mixing": 0.9, "lecam.weight": 0.3, "discriminator.mbstd_group_size": GROUP}
)


def make_step(layout: Layout, config: RunConfig = CONFIG) -> TrainingStep:
    """The updates with networks in float64, and an optimiser that keeps the gradient and changes nothing."""
    shared = {"resolution": 8, "channels": 1, "num_classes": len(COUNTS), "channel_base": 64, "channel_max": 8}
    shared |= {"up_impl": "conv", "dtype": jnp.float64, "remat": config.remat}
    generator = Generator(**shared, z_dim=W, w_dim=W, mapping_layers=2)
    discriminator = Discriminator(**shared, mbstd_group_size=GROUP, mapping_layers=2)
    step = TrainingStep(config, StyleGAN2Model(generator, discriminator), layout)

    def zeros(tree: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, tree)

    def keep(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return zeros(gradients), jax.tree.map(lambda x: 1 * x, gradients)  # a result may not be a constrained layout

    record = optax.GradientTransformation(zeros, keep)
    step.generator_optimizer = step.discriminator_optimizer = record
    return step


def make_state(step: TrainingStep) -> TrainState:
    """A state in which no parameter is zero, so that no gradient is zero for want of a path."""

    def perturb(network: Any, seed: int) -> Any:
        leaves, structure = jax.tree.flatten(network.params)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        noisy = [x + 0.1 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
        return network.replace(params=jax.tree.unflatten(structure, noisy))

    state = step.init(0)
    return state.replace(generator=perturb(state.generator, 1), discriminator=perturb(state.discriminator, 2))


@functools.cache
def initial_state() -> TrainState:
    """The state that all start from; on the host, because programs keep what they are given. `key` is its data."""
    state = jax.jit(lambda: make_state(make_step(Layout(jax.local_devices()[:1]))))()
    return jax.tree.map(np.asarray, state.replace(key=jax.random.key_data(state.key)))


class Result(NamedTuple):
    """What a program did."""

    gradient: dict
    metrics: dict
    hlo: str
    argument_bytes: int  # on each device
    state_bytes: list[int]  # of the state after it, on each of this process's devices
    split: list[str]  # leaves of that state which are not whole on every device


def lower(layout: Layout, config: RunConfig = CONFIG) -> tuple[TrainingStep, ClassTable, dict[str, jax.stages.Lowered]]:
    """The updates, their class table, and every program."""
    step = make_step(layout, config)
    table = jax.device_put(class_table(config, COUNTS), layout.replicated)
    return step, table, dict(lower_programs(step, table))


def run(
    names: list[str], layout: Layout, batch: dict[str, np.ndarray], config: RunConfig = CONFIG
) -> dict[str, Result]:
    """Runs programs, each from the same state; `batch` is this process's rows."""
    step, table, lowered = lower(layout, config)
    shardings = layout.state_shardings(step.abstract_state(layout.replicated))
    place = jax.jit(lambda x: x.replace(key=jax.random.wrap_key_data(x.key)), out_shardings=shardings)
    with ThreadPoolExecutor(len(names)) as pool:
        programs = list(pool.map(lambda name: lowered[name].compile(), names))
    found = {}
    for name, program in zip(names, programs, strict=True):
        network = NETWORKS[name]
        images = (layout.put_batch(batch),) if network == "discriminator" else ()
        state, metrics = program(place(initial_state()), *images, table)
        gradient = jax.device_get(
            jax.jit(lambda x: x, out_shardings=layout.replicated)(getattr(state, network).opt_state)
        )
        arguments = program.memory_analysis().argument_size_in_bytes
        leaves = jax.tree_util.tree_flatten_with_path(state)[0]
        split = [jax.tree_util.keystr(path) for path, x in leaves if not x.is_fully_replicated]
        used = arguments, local_bytes(state), split
        found[name] = Result(gradient, jax.device_get(metrics), program.as_text(), *used)
    return found


def local_bytes(tree: Any) -> list[int]:
    """Bytes on each of this process's devices."""
    sizes: dict[jax.Device, int] = {}
    for leaf in jax.tree.leaves(tree):
        leaf = jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for shard in leaf.addressable_shards:
            sizes[shard.device] = sizes.get(shard.device, 0) + shard.data.nbytes
    return list(sizes.values())


def compare(one: Result, many: Result) -> dict[str, Any]:
    """Differences relative to the largest entry of a gradient's tensor, and to each metric; and what `many` used."""
    relative = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(np.abs(a).max(), 1e-300), one[:2], many[:2])
    leaves = jax.tree.leaves(many.gradient)
    return {
        "gradient": max(jax.tree.leaves(relative[0])),
        "metrics": relative[1],
        "norm": np.sqrt(sum(np.square(x).sum() for x in leaves)),
        "dtypes": sorted({str(x.dtype) for x in jax.tree.leaves(many[:2])}),
        "collectives": collectives(many.hlo),
        "argument_bytes": many.argument_bytes,
        "state_bytes": many.state_bytes,
        "split": many.split,
    }


def collectives(hlo: str, count: bool = False) -> dict[str, Any]:
    """Shapes of the results of every operation between devices, by its name, none for sums; or how many there are."""
    found: dict[str, list] = {}
    names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    for shape, name in re.findall(rf"= (\S.*?) ({names})(?:-start)?\(", hlo):
        shapes = [[int(n) for n in dims.split(",") if n] for dims in re.findall(r"\w+\[([\d,]*)\]", shape)]
        found.setdefault(name, []).extend([] if name == "all-reduce" and not count else shapes)
    return {name: len(shapes) for name, shapes in found.items()} if count else found


def make_batch() -> dict[str, np.ndarray]:
    """A global batch of random images."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (BATCH, 8, 8, 1), dtype=np.uint8),
        "label": rng.integers(0, len(COUNTS), BATCH, dtype=np.int32),
    }


def main(what: str, *arguments: str) -> None:
    """Compares or counts."""
    devices, report = jax.devices(), {}
    if what == "count":
        for some in (devices[: len(devices) // 2], devices):
            lowered = lower(Layout(some))[2]
            found = {name: collectives(lowered[name].compile().as_text(), count=True) for name in arguments}
            report[len(some)] = found
    elif what == "micro":
        program, *variants = arguments
        one = run([program], Layout(devices[:1]), make_batch())[program]
        for variant in variants:
            fields = {name: int(value) for name, _, value in (part.partition("=") for part in variant.split(","))}
            other = run([program], Layout(devices), make_batch(), dataclasses.replace(CONFIG, **fields))[program]
            report[variant] = compare(one, other)
    else:
        wanted = {int(n): names.split(",") for n, _, names in (argument.partition(":") for argument in arguments)}
        one = run(sorted({name for names in wanted.values() for name in names}), Layout(devices[:1]), make_batch())
        for n, names in wanted.items():
            many = run(names, Layout(devices, n, split_from=SPLIT_FROM), make_batch())
            report[n] = {name: compare(one[name], many[name]) for name in names}
    print(json.dumps({"devices": len(devices), "found": report}, default=float))


if __name__ == "__main__":
    main(*sys.argv[1:])
