"""A step with instances on one device and on all, in float64; prints JSON. See `test_instances`."""

import json

import instances_run
import jax
import jax.numpy as jnp
import numpy as np
import tiny_biggan
import tiny_run

from noisytwins_jax.models.biggan_model import BigGANModel
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.compiled_step import CompiledStep
from noisytwins_jax.training.random_inputs import class_table
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.utils.sharding import Layout

CONFIG = instances_run.config(
    **{"batch_size": 16, "optimizer.epsilon": 0.01, "augment.diffaugment": "", "noisytwins.weight": 0.05}
)


def run(layout: Layout) -> tuple[dict, dict]:
    """What a step makes of the state, and its metrics."""
    counts, n = instances_run.COUNTS, CONFIG.batch_size
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8),
        "label": rng.integers(0, len(counts), n, dtype=np.int32),
        "instance": rng.integers(0, instances_run.N, n, dtype=np.int32),
    }
    built = build_model(CONFIG, 1, len(counts))
    networks = (network.clone(dtype=jnp.float64) for network in (built.generator, built.discriminator))
    model = BigGANModel(*networks, built.instance_features)
    step = TrainingStep(CONFIG, model, layout)
    programs = CompiledStep(step, class_table(CONFIG, counts, instances_run.table()))

    def start():
        state = step.init(0)
        generator, discriminator = (
            network.replace(params=tiny_biggan.perturbed(network.params, seed))
            for seed, network in enumerate((state.generator, state.discriminator))
        )
        return state.replace(generator=generator, discriminator=discriminator)

    state = jax.jit(start, out_shardings=layout.state_shardings(step.abstract_state(layout.replicated)))()
    before = tiny_run.arrays(state)
    state, reported = programs(state, 0, iter([batch]))
    changes = {name: x - before[name] for name, x in tiny_run.arrays(state).items() if name.endswith("['weight']")}
    return changes, {name: float(x) for update in reported for name, x in update.metrics.items()}


def main() -> None:
    """Compares all devices with one."""
    (one, metrics), (many, metrics_of_many) = (run(Layout(devices)) for devices in (jax.devices()[:1], jax.devices()))
    difference = {name: float(np.abs(many[name] - x).max()) for name, x in one.items()}
    moved = {name: float(np.abs(x).max()) for name, x in one.items()}
    report = {"devices": jax.device_count(), "difference": difference, "moved": moved}
    print(json.dumps(report | {"metrics": [metrics, metrics_of_many]}))


if __name__ == "__main__":
    main()
