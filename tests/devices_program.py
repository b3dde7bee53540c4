"""Gradients on one and on eight devices, and the communication between the eight; prints JSON. See `test_devices`."""

import json
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny_run

from noisytwins_jax.networks.stylegan2 import Discriminator, Generator
from noisytwins_jax.noisytwins import noisytwins_loss
from noisytwins_jax.randomness import purpose_key
from noisytwins_jax.sharding import Layout
from noisytwins_jax.training.model import StyleGAN2Model
from noisytwins_jax.training.programs import lower_programs
from noisytwins_jax.training.step import ClassTable, TrainingStep, _to_float, class_table

BATCH, W = tiny_run.DEVICES_BATCH, tiny_run.DEVICES_W
CLASSES = 4
CONFIG = tiny_run.tiny_config(**{"batch_size": BATCH, "style_mixing": 0.9, "generator.noise_mode": "random"})


def make_model() -> StyleGAN2Model:
    shared = {"resolution": 8, "channels": 1, "num_classes": CLASSES, "channel_base": 64, "channel_max": 8}
    shared |= {"up_impl": "conv", "dtype": jnp.float64}
    generator = Generator(**shared, z_dim=W, w_dim=W, mapping_layers=2)
    discriminator = Discriminator(**shared, mbstd_group_size=2, mapping_layers=2)
    return StyleGAN2Model(generator, discriminator, "random")


def random_state(step: TrainingStep) -> Any:
    """A state in which no parameter is zero, so that no gradient is zero for want of a path."""
    state = step.init(0)

    def perturb(network: Any, seed: int) -> Any:
        leaves, structure = jax.tree.flatten(network.params)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        noisy = [x + 0.1 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
        return network.replace(params=jax.tree.unflatten(structure, noisy))

    return state.replace(generator=perturb(state.generator, 1), discriminator=perturb(state.discriminator, 2))


def gradients(layout: Layout, table: ClassTable, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Loss and gradient of every update, with the draws that the update makes."""
    step = TrainingStep(CONFIG, make_model(), layout.batch, layout.replicate)

    def everything(state: Any, batch: Any, table: ClassTable) -> dict[str, Any]:
        def key(purpose: str) -> jax.Array:
            return purpose_key(state.key, 0, purpose)

        g, d = state.generator.params, state.discriminator.params
        fakes = step.draw_fakes(key("generator"), table, BATCH, twins=True)
        draws = step.draw_pass(key("pass"), table, fakes.labels)
        images, labels = _to_float(batch)
        real = (images, labels, step.draw_pass(key("real"), table, labels))
        w, conditioning, _ = step.model.map(state.generator.variables, fakes)
        generated = step.model.synthesize(state.generator.variables, conditioning, fakes.key)
        noise = step.batch(jax.random.normal(key("noise"), (BATCH, *step.model.image_shape)))

        def value_and_grad(f: Callable, params: Any, *arguments: Any) -> Any:
            return jax.value_and_grad(lambda p: first(f(p, state, *arguments)))(params)

        return {
            "generator": value_and_grad(step.generator_loss, g, fakes, draws),
            "path_length": value_and_grad(step.path_length_loss, g, fakes, noise),
            "discriminator": value_and_grad(step.discriminator_loss, d, real, (generated, fakes.labels, draws)),
            "r1": value_and_grad(step.r1_loss, d, *real),
            "w": w,
        }

    state = jax.jit(lambda: random_state(step), out_shardings=layout.replicated)()
    return jax.device_get(jax.jit(everything, out_shardings=layout.replicated)(state, layout.put_batch(batch), table))


def first(result: Any) -> jax.Array:
    return result[0] if isinstance(result, tuple) else result


def compare(one: Any, many: Any) -> dict[str, Any]:
    """The largest difference of any tensor's gradient, relative to the tensor's largest entry."""
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max() / (np.abs(a).max() + 1e-300), one[1], many[1])
    leaves = jax.tree.leaves(many[1])
    return {
        "relative_difference": max(jax.tree.leaves(differences)),
        "loss_difference": abs(one[0] / many[0] - 1),
        "norm": float(np.sqrt(sum(np.square(x).sum() for x in leaves))),
        "dtypes": sorted({str(x.dtype) for x in leaves}),
    }


def collectives(hlo: str) -> dict[str, list[list[int]]]:
    """Results' shapes of every operation between devices, by its name; sums have shapes of parameters: only counted."""
    found: dict[str, list] = {}
    names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    for shape, name in re.findall(rf"= (\S.*?) ({names})(?:-start)?\(", hlo):
        shapes = [[int(n) for n in dims.split(",") if n] for dims in re.findall(r"\w+\[([\d,]*)\]", shape)]
        found.setdefault(name, []).extend([] if name == "all-reduce" else shapes)
    return found


def main() -> None:
    assert jax.device_count() == 8
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (BATCH, 8, 8, 1), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, BATCH, dtype=np.int32),
    }
    table = class_table(CONFIG, np.array([50, 20, 10, 5]))
    layouts = Layout(jax.devices()[:1]), Layout(jax.devices())
    one, many = (gradients(layout, table, batch) for layout in layouts)

    half, part = BATCH // 2, BATCH // 2 // 8
    w = one["w"]
    parts = [np.concatenate([w[i : i + part], w[half + i : half + i + part]]) for i in range(0, half, part)]
    twins = [float(noisytwins_loss(x["w"], 0.05)) for x in (one, many)]
    report = {
        "gradients": {loss: compare(one[loss], many[loss]) for loss in one if loss != "w"},
        "noisytwins": {
            "global": twins[0],
            "relative_difference": abs(twins[1] / twins[0] - 1),
            "mean_of_parts": float(np.mean([noisytwins_loss(x, 0.05) for x in parts])),
        },
    }
    lowered = lower_programs(
        TrainingStep(CONFIG, make_model(), layouts[1].batch, layouts[1].replicate),
        layouts[1],
        jax.device_put(table, layouts[1].replicated),
    )
    report["collectives"] = {name: collectives(program.compile().as_text()) for name, program in lowered.items()}
    print(json.dumps(report, default=float))


if __name__ == "__main__":
    main()
