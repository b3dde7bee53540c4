"""The compiled programs of a training step: one for each phase, and one of several steps where they are dispatched together."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.config import RunConfig
from noisytwins_jax.training.micro_batches import micro_batch_rows
from noisytwins_jax.training.phases import build_phases, run_steps, step_order
from noisytwins_jax.training.random_inputs import ClassTable
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.training.step_metrics import Reported
from noisytwins_jax.utils.sharding import Layout

SEVERAL = "several_steps"


class CompiledStep:
    """A training step, compiled for its mesh; the state is donated to every program.

    Args:
      step: the updates.
      table: class table; its values are arguments of the programs, its shape is compiled in.
    """

    def __init__(self, step: TrainingStep, table: ClassTable):
        self.config, self.layout = step.config, step.layout
        self.table = jax.device_put(ClassTable(*table), self.layout.replicated)
        self.batches = step.config.optimizer.discriminator_updates  # of a step
        self.order = step_order(build_phases(step), self.batches)
        with ThreadPoolExecutor() as pool:  # compilation leaves the interpreter free to trace the next program
            compiling = {name: pool.submit(lowered.compile) for name, lowered in lower_programs(step, self.table)}
        self.programs: dict[str, Callable] = {name: program.result() for name, program in compiling.items()}

    def __call__(
        self, state: TrainState, step: int, batches: Iterator[dict[str, np.ndarray]], count: int = 1
    ) -> tuple[TrainState, list[Reported]]:
        """Run `count` steps from number `step` (from 0); return the new state and every update's metrics, on the device.

        `count` is 1 or ``config.steps_per_dispatch``.
        """
        return self._run_one(state, step, batches) if count == 1 else self._run_several(state, step, batches)

    def _run_one(
        self, state: TrainState, step: int, batches: Iterator[dict[str, np.ndarray]]
    ) -> tuple[TrainState, list[Reported]]:
        reported, batch, taken = [], {}, 0
        for phase, i in self.order:
            if not phase.due(step, i, self.batches):
                continue
            if (phase.needs_batch or phase.first_batch) and i == taken:
                batch, taken = self.layout.put_batch(next(batches)), taken + 1
            state, metrics = self.programs[phase.name](state, *phase.inputs(batch, self.table))
            reported.append(Reported(step + 1, metrics))
        return state, reported

    def _run_several(
        self, state: TrainState, step: int, batches: Iterator[dict[str, np.ndarray]]
    ) -> tuple[TrainState, list[Reported]]:
        count = self.config.steps_per_dispatch
        some = [next(batches) for _ in range(count * self.batches)]
        stacked = {name: np.stack([batch[name] for batch in some]) for name in some[0]}
        shaped = {name: x.reshape(count, self.batches, *x.shape[1:]) for name, x in stacked.items()}
        state, metrics = self.programs[SEVERAL](
            state, self.layout.put_batch(shaped, batch_axis=2), self.table, np.int32(step)
        )
        ran = [np.array([phase.due(step + k, i, self.batches) for k in range(count)]) for phase, i in self.order]
        return state, [Reported(step + 1, *entry) for entry in zip(metrics, ran, strict=True)]


def check_batch(config: RunConfig, layout: Layout) -> None:
    """Refuse a configuration whose batches a mesh cannot divide, before anything is built.

    Raises:
      UserError: see `Layout.check_batch_size` and `micro_batch_rows`.
    """
    layout.check_batch_size(
        config.batch_size,
        config.discriminator.mbstd_group_size,
        twins=config.makes_twins,
        path_length_batch=config.lazy_batch(config.path_length) if config.path_length.active else 0,
    )
    micro_batch_rows(config, layout)


def lower_programs(step: TrainingStep, table: ClassTable) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Trace the program of every phase, then that of ``config.steps_per_dispatch`` steps if several; yield name and program."""
    config, layout, phases = step.config, step.layout, build_phases(step)
    state, batch = step.abstract_state(layout.state_shardings), _abstract_batch(step)
    results = (layout.state_shardings(state), layout.replicated)

    def lower(update: Callable, *inputs: object) -> jax.stages.Lowered:
        return jax.jit(update, donate_argnums=0, out_shardings=results).lower(state, *inputs)

    for phase in phases:
        yield phase.name, lower(phase.update, *phase.inputs(batch, table))
    if config.steps_per_dispatch > 1:
        batches = _abstract_batch(step, config.steps_per_dispatch, config.optimizer.discriminator_updates)
        yield SEVERAL, lower(functools.partial(run_steps, phases), batches, table, jax.ShapeDtypeStruct((), jnp.int32))


def _abstract_batch(step: TrainingStep, *before: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a batch, with further axes before the batch's."""
    n, sharding = step.config.batch_size, step.layout.split_at(len(before))
    of_each = jax.ShapeDtypeStruct((*before, n), jnp.int32, sharding=sharding)
    return {
        "image": jax.ShapeDtypeStruct((*before, n, *step.model.image_shape), jnp.uint8, sharding=sharding),
        "label": of_each,
        **({"instance": of_each} if step.model.instance_features else {}),
    }
