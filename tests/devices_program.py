"""Gradients on one and on eight devices, and the communication between the eight; prints JSON. See `test_devices`.

python tests/devices_program.py generator|path_length|discriminator|r1 ...
"""

import json
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny_run

from noisytwins_jax.networks.stylegan2 import Discriminator, Generator
from noisytwins_jax.sharding import Layout
from noisytwins_jax.training.model import StyleGAN2Model
from noisytwins_jax.training.programs import lower_programs
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import TrainingStep, class_table

BATCH, W = tiny_run.DEVICES_BATCH, tiny_run.DEVICES_W
COUNTS = np.array([50, 20, 10, 5])  # images a class
NETWORKS = {
    "generator": "generator",
    "path_length": "generator",
    "discriminator": "discriminator",
    "r1": "discriminator",
}
CONFIG = tiny_run.tiny_config(**{"batch_size": BATCH, "style_mixing": 0.9})


def make_step(layout: Layout) -> TrainingStep:
    """The updates with networks in float64, and an optimiser that keeps the gradient and changes nothing."""
    shared = {"resolution": 8, "channels": 1, "num_classes": len(COUNTS), "channel_base": 64, "channel_max": 8}
    shared |= {"up_impl": "conv", "dtype": jnp.float64}
    generator = Generator(**shared, z_dim=W, w_dim=W, mapping_layers=2)
    discriminator = Discriminator(**shared, mbstd_group_size=2, mapping_layers=2)
    step = TrainingStep(CONFIG, StyleGAN2Model(generator, discriminator), layout.batch, layout.replicate)

    def zeros(tree: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, tree)

    record = optax.GradientTransformation(zeros, lambda gradients, state, params: (zeros(gradients), gradients))
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


def run(names: list[str], layout: Layout, batch: dict[str, np.ndarray]) -> dict[str, tuple[dict, dict, str]]:
    """Each program's gradient, metrics and compiled text."""
    step = make_step(layout)
    table = jax.device_put(class_table(CONFIG, COUNTS), layout.replicated)
    lowered = lower_programs(step, layout, table)
    create = jax.jit(lambda: make_state(step), out_shardings=layout.replicated)
    found = {}
    for name in names:
        network = NETWORKS[name]
        program = lowered[name].compile()
        images = (layout.put_batch(batch),) if network == "discriminator" else ()
        state, metrics = program(create(), *images, table)
        found[name] = (*jax.device_get((getattr(state, network).opt_state, metrics)), program.as_text())
    return found


def compare(one: tuple[dict, dict, str], many: tuple[dict, dict, str]) -> dict[str, Any]:
    """Differences relative to the largest entry of a gradient's tensor, and to each metric."""
    relative = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(np.abs(a).max(), 1e-300), one[:2], many[:2])
    leaves = jax.tree.leaves(many[0])
    return {
        "gradient": max(jax.tree.leaves(relative[0])),
        "metrics": relative[1],
        "norm": np.sqrt(sum(np.square(x).sum() for x in leaves)),
        "dtypes": sorted({str(x.dtype) for x in jax.tree.leaves(many[:2])}),
    }


def collectives(hlo: str) -> dict[str, list[list[int]]]:
    """Shapes of the results of every operation between devices, by its name; none for sums."""
    found: dict[str, list] = {}
    names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    for shape, name in re.findall(rf"= (\S.*?) ({names})(?:-start)?\(", hlo):
        shapes = [[int(n) for n in dims.split(",") if n] for dims in re.findall(r"\w+\[([\d,]*)\]", shape)]
        found.setdefault(name, []).extend([] if name == "all-reduce" else shapes)
    return found


def main(names: list[str]) -> None:
    """Runs these programs."""
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (BATCH, 8, 8, 1), dtype=np.uint8),
        "label": rng.integers(0, len(COUNTS), BATCH, dtype=np.int32),
    }
    layouts = Layout(jax.devices()[:1]), Layout(jax.devices())
    one, many = (run(names, layout, batch) for layout in layouts)
    report = {name: compare(one[name], many[name]) | {"collectives": collectives(many[name][2])} for name in names}
    print(json.dumps({"devices": layouts[1].num_devices, "programs": report}, default=float))


if __name__ == "__main__":
    main(sys.argv[1:])
