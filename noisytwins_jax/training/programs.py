"""The compiled programs of a run and the order they run in.

Regularisers that are due only now and then are programs of their own, chosen on the host, rather than branches inside
one: every program is compiled once, and no convolution sits inside control flow, where XLA runs it slowly on CPUs.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.config import RunConfig
from noisytwins_jax.sharding import Layout
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import ClassTable, Metrics, TrainingStep


class Programs:
    """A training step, compiled for a mesh; the state is donated to every program.

    Args:
      step: the updates.
      layout: the mesh.
      table: class table; its values are arguments of the programs, its shape is compiled in.
    """

    def __init__(self, step: TrainingStep, layout: Layout, table: ClassTable):
        self.config, self.layout = step.config, layout
        self.table = jax.device_put(ClassTable(*table), layout.replicated)
        lowered = lower_programs(step, layout, self.table)
        with ThreadPoolExecutor(len(lowered)) as pool:  # compilation leaves the interpreter free
            compiled = pool.map(lambda program: program.compile(), lowered.values())
        self.programs: dict[str, Callable] = dict(zip(lowered, compiled, strict=True))

    def advance(
        self, state: TrainState, step: int, batches: Iterator[dict[str, np.ndarray]]
    ) -> tuple[TrainState, list[Metrics]]:
        """Runs step number `step` (from 0) and returns the new state and every update's metrics, on the device."""
        config, run, table = self.config, self.programs, self.table
        state, metrics = run["generator"](state, table)
        collected = [metrics]
        if "path_length" in run and step % config.path_length.interval == 0 and step >= config.path_length.start_step:
            state, metrics = run["path_length"](state, table)
            collected.append(metrics)
        state = run["average"](state)
        updates = config.optimizer.discriminator_updates
        for update in range(step * updates, (step + 1) * updates):
            batch = self.layout.put_batch(next(batches))
            state, metrics = run["discriminator"](state, batch, table)
            collected.append(metrics)
            if "r1" in run and update % config.r1.interval == 0:
                state, metrics = run["r1"](state, batch, table)
                collected.append(metrics)
        if "adapt" in run and step % config.ada.interval == 0:
            state, metrics = run["adapt"](state)
            collected.append(metrics)
        return state, collected


def check_batch(config: RunConfig, layout: Layout) -> None:
    """Refuses a configuration whose batches a mesh cannot divide, before anything is built.

    Raises:
      UserError: see `Layout.check_batch_size`.
    """
    layout.check_batch_size(
        config.batch_size,
        config.discriminator.mbstd_group_size,
        twins=config.makes_twins,
        path_length_batch=config.path_length_batch if config.path_length.weight > 0 else 0,
    )


def lower_programs(step: TrainingStep, layout: Layout, table: ClassTable) -> dict[str, jax.stages.Lowered]:
    """Traces every program that the configuration needs, by name."""
    state = step.abstract_state(layout.replicated)
    n, split = step.config.batch_size, layout.split
    batch = {
        "image": jax.ShapeDtypeStruct((n, *step.model.image_shape), jnp.uint8, sharding=split),
        "label": jax.ShapeDtypeStruct((n,), jnp.int32, sharding=split),
    }
    arguments = {"generator": (state, table), "average": (state,), "discriminator": (state, batch, table)}
    functions = {
        "generator": step.generator_update,
        "average": step.average,
        "discriminator": step.discriminator_update,
    }
    if step.config.path_length.weight > 0:
        functions["path_length"], arguments["path_length"] = step.path_length_update, (state, table)
    if step.config.r1.gamma > 0:
        functions["r1"], arguments["r1"] = step.r1_update, (state, batch, table)
    if step.ada:
        functions["adapt"], arguments["adapt"] = step.adapt, (state,)
    return {
        name: jax.jit(function, donate_argnums=0, out_shardings=layout.replicated).lower(*arguments[name])
        for name, function in functions.items()
    }
