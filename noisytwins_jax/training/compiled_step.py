"""The compiled programs of a run.

Regularisers that are due only now and then are programs of their own, chosen on the host, rather than branches inside
one: every program is compiled once, and no convolution sits inside control flow, where XLA runs it slowly on CPUs. With
``config.steps_per_dispatch`` above 1 there is one program more, of several whole steps with such branches, for
accelerators that finish a step of a small network before the host has dispatched the next.
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.config import RunConfig
from noisytwins_jax.training.phases import Reported, due, inputs, order, run_steps, updates
from noisytwins_jax.training.random_inputs import ClassTable
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.utils.sharding import Layout

SEVERAL = "several_steps"


class CompiledStep:
    """A training step, compiled for a mesh; the state is donated to every program.

    Args:
      step: the updates.
      layout: the mesh.
      table: class table; its values are arguments of the programs, its shape is compiled in.
    """

    def __init__(self, step: TrainingStep, layout: Layout, table: ClassTable):
        self.config, self.layout = step.config, layout
        self.table = jax.device_put(ClassTable(*table), layout.replicated)
        self.order = order(step.config, updates(step))
        lowered = lower_programs(step, layout, self.table)
        if step.config.steps_per_dispatch > 1:
            lowered[SEVERAL] = lower_several_steps(step, layout, self.table)
        with ThreadPoolExecutor(len(lowered)) as pool:  # compilation leaves the interpreter free
            compiled = pool.map(lambda program: program.compile(), lowered.values())
        self.programs: dict[str, Callable] = dict(zip(lowered, compiled, strict=True))

    def advance(
        self, state: TrainState, step: int, batches: Iterator[dict[str, np.ndarray]]
    ) -> tuple[TrainState, list[Reported]]:
        """Runs step number `step` (from 0) and returns the new state and every update's metrics, on the device."""
        reported, batch = [], {}
        for name, i in self.order:
            if not due(self.config, name, step, i):
                continue
            if name == "discriminator":
                batch = self.layout.put_batch(next(batches))
            state, metrics = self.programs[name](state, *inputs(name, batch, self.table))
            reported.append(Reported(step + 1, metrics))
        return state, reported

    def advance_several(
        self, state: TrainState, step: int, batches: Iterator[dict[str, np.ndarray]]
    ) -> tuple[TrainState, list[Reported]]:
        """As `advance`, for ``config.steps_per_dispatch`` steps from number `step` in one program."""
        count, per_step = self.config.steps_per_dispatch, self.config.optimizer.discriminator_updates
        some = [next(batches) for _ in range(count * per_step)]
        stacked = {name: np.stack([batch[name] for batch in some]) for name in some[0]}
        shaped = {name: x.reshape(count, per_step, *x.shape[1:]) for name, x in stacked.items()}
        state, metrics = self.programs[SEVERAL](
            state, self.layout.put_batch(shaped, batch_axis=2), self.table, np.int32(step)
        )
        ran = [np.array([due(self.config, name, step + k, i) for k in range(count)]) for name, i in self.order]
        return state, [Reported(step + 1, *entry) for entry in zip(metrics, ran, strict=True)]


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
    state = step.abstract_state(layout.state_shardings)
    batch = _abstract_batch(step, layout)
    results = (layout.state_shardings(state), layout.replicated)
    return {
        name: jax.jit(update, donate_argnums=0, out_shardings=results).lower(state, *inputs(name, batch, table))
        for name, update in updates(step).items()
    }


def lower_several_steps(step: TrainingStep, layout: Layout, table: ClassTable) -> jax.stages.Lowered:
    """Traces the program of ``config.steps_per_dispatch`` steps; see `schedule.run_steps`."""
    config = step.config
    state = step.abstract_state(layout.state_shardings)
    batches = _abstract_batch(step, layout, config.steps_per_dispatch, config.optimizer.discriminator_updates)
    results = (layout.state_shardings(state), layout.replicated)
    program = jax.jit(functools.partial(run_steps, step), donate_argnums=0, out_shardings=results)
    return program.lower(state, batches, table, jax.ShapeDtypeStruct((), jnp.int32))


def _abstract_batch(step: TrainingStep, layout: Layout, *before: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch's shapes, with further axes before the batch's."""
    n, sharding = step.config.batch_size, layout.split_at(len(before))
    of_each = jax.ShapeDtypeStruct((*before, n), jnp.int32, sharding=sharding)
    return {
        "image": jax.ShapeDtypeStruct((*before, n, *step.model.image_shape), jnp.uint8, sharding=sharding),
        "label": of_each,
        **({"instance": of_each} if step.model.instance_features else {}),
    }
