"""A whole BigGAN step on one device and on all, in float64; prints JSON. See `test_biggan_step`.

python tests/training/biggan_devices_program.py (plain | everything) FSDP ...

`everything` is with attention and looks at the spectra. The state on all devices is one that FSDP of them share.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import tiny_biggan
import tiny_run

from noisytwins_jax.models.biggan import Discriminator, Generator
from noisytwins_jax.models.biggan_model import BigGANModel
from noisytwins_jax.training.compiled_step import CompiledStep
from noisytwins_jax.training.random_inputs import class_table
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.utils.sharding import Layout

SPLIT_FROM = 32  # elements: most parameters of the small networks are split
COUNTS = np.array([50, 20, 10, 5])  # images a class
PLAIN = {
    "batch_size": 16,
    "optimizer.generator_lr": 0.1,
    "optimizer.discriminator_lr": 0.1,
    "optimizer.epsilon": 0.01,  # rounding of a gradient near zero must not become a whole step
    "biggan.dropout": 0.2,
    "orthogonal.weight": 1e-3,
}
EVERYTHING = PLAIN | {"biggan.attention": "8", "spectra.interval": 1, "spectra.clamp": 1.2}
CONFIG = tiny_biggan.tiny_config(**(EVERYTHING if sys.argv[1] == "everything" else PLAIN))
PARTS = (
    *("generator.params", "generator.stats['spectral']", "generator.stats['batch_stats']", "generator.opt_state"),
    *("discriminator.params", "discriminator.stats['spectral']", "discriminator.opt_state", ".ema"),
)


def make_step(layout: Layout) -> TrainingStep:
    """The updates, with networks in float64."""
    shared = {"resolution": 8, "channels": 1, "num_classes": len(COUNTS), "width": 4, "dtype": jnp.float64}
    shared["attention"] = CONFIG.biggan.attention_resolutions
    generator = Generator(**shared, z_dim=CONFIG.generator.z_dim, embedding_dim=8)
    model = BigGANModel(generator, Discriminator(**shared, dropout=CONFIG.biggan.dropout))
    return TrainingStep(CONFIG, model, layout)


def make_state(step: TrainingStep) -> TrainState:
    """A state that is not the start's, of which the key is kept as its data."""
    state = step.init(0)
    generator, discriminator = (
        network.replace(params=tiny_biggan.perturbed(network.params, seed))
        for seed, network in enumerate((state.generator, state.discriminator))
    )
    return state.replace(key=jax.random.key_data(state.key), generator=generator, discriminator=discriminator)


@functools.cache
def initial_state() -> TrainState:
    """The state that all start from, on the host."""
    return jax.tree.map(np.asarray, jax.jit(lambda: make_state(make_step(Layout(jax.devices()[:1]))))())


def run(layout: Layout) -> dict:
    """What a step changes, and its metrics."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (CONFIG.batch_size, 8, 8, 1), dtype=np.uint8)
    batch = {"image": images, "label": rng.integers(0, len(COUNTS), CONFIG.batch_size, dtype=np.int32)}
    step = make_step(layout)
    programs = CompiledStep(step, class_table(CONFIG, COUNTS))
    shardings = layout.state_shardings(step.abstract_state(layout.replicated))
    place = jax.jit(lambda x: x.replace(key=jax.random.wrap_key_data(x.key)), out_shardings=shardings)
    state, reported = programs(place(initial_state()), 0, iter([batch]))
    split = sum(not x.is_fully_replicated for x in jax.tree.leaves(state))
    whole = jax.jit(lambda x: x.replace(key=jax.random.key_data(x.key)), out_shardings=layout.replicated)(state)
    metrics = {name: x for update in jax.device_get(reported) for name, x in update.metrics.items()}
    return {"state": tiny_run.arrays(whole), "metrics": metrics, "split": split}


def differences(one: dict, many: dict, before: dict) -> dict[str, float]:
    """The largest difference of each part of the state, in what the step changed of each array, relative to that."""
    found: dict[str, float] = {}
    for name, start in before.items():
        a, b = (run["state"][name] - start.astype(float) for run in (one, many))
        # A bias before batch normalisation has a gradient of zero, of which only rounding is seen: hence the floor.
        difference = np.abs(a - b).max() / max(np.abs(a).max(), 1e-3) if a.size else 0.0
        part = next((p for p in PARTS if p in name), "other")
        found[part] = max(found.get(part, 0.0), float(difference))
    return found


def main() -> None:
    """Compares states on all devices with one device's."""
    devices, before = jax.devices(), tiny_run.arrays(initial_state())
    one, report = run(Layout(devices[:1])), {}
    for fsdp in map(int, sys.argv[2:]):
        many = run(Layout(devices, fsdp, split_from=SPLIT_FROM))
        metrics = {name: abs(many["metrics"][name] - x) / max(abs(x), 1e-6) for name, x in one["metrics"].items()}
        dtypes = {str(x.dtype) for name, x in many["state"].items() if "params" in name or "batch_stats" in name}
        report[fsdp] = {
            "differences": differences(one, many, before),
            "metrics": metrics,
            "split": many["split"],
            "dtypes": sorted(dtypes),
        }
    moved = {p: max(float(np.abs(one["state"][n] - x).max()) for n, x in before.items() if p in n) for p in PARTS}
    print(json.dumps({"devices": len(devices), "found": report, "moved": moved}, default=float))


if __name__ == "__main__":
    main()
