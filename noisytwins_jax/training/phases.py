"""The phases of a training step: which updates it has, in which order, and how often each is due.

Regularisers that are due only now and then are programs of their own, chosen on the host, rather than branches inside
one: every program is compiled once, and no convolution sits inside control flow, where XLA runs it slowly on CPUs. For
accelerators that finish a step of a small network before the host has dispatched the next, `run_steps` is several whole
steps in one program, with such branches.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from noisytwins_jax.training.random_inputs import ClassTable
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import Batch, Metrics, TrainingStep

Array = jax.Array
Update = Callable[..., tuple[TrainState, Metrics]]


class Phase(NamedTuple):
    """One update of a training step.

    Phases with a batch run once for each of a step's batches, ``config.optimizer.discriminator_updates``; the others once
    a step.
    """

    name: str
    update: Update  # (state, table), or with a batch (state, batch, table) → (state, metrics)
    network: Literal["generator", "discriminator", ""] = ""  # that it trains
    interval: int = 1  # steps, or with a batch batches, between two of its runs
    start_step: int = 0
    needs_batch: bool = False
    first_batch: bool = False  # once a step, with its first batch

    def due(self, step: Any, batch: int, batches: int) -> Any:
        """Return whether it runs in step number `step` (from 0; an int, or traced), on batch number `batch` of `batches`."""
        if self.interval == 1 and self.start_step == 0:
            return True
        count = step * batches + batch if self.needs_batch else step
        return (count % self.interval == 0) & (step >= self.start_step)

    def inputs(self, batch: Any, table: Any) -> tuple:
        """Return what the update takes beside the state."""
        return (batch, table) if self.needs_batch or self.first_batch else (table,)


def build_phases(step: TrainingStep) -> list[Phase]:
    """Return the phases that a run's configuration needs, in the order of a step."""
    config = step.config

    def lazy(network: Literal["generator", "discriminator"], regularize: Callable) -> Iterator[Phase]:
        for name, loss in step.losses.items():
            if loss.lazy == network:
                update = functools.partial(regularize, name)
                yield Phase(name, update, network, loss.interval, loss.start_step, network == "discriminator")

    if step.adversarial.pairs:
        generator = Phase("generator", step.update_generator_by_pairs, "generator", first_batch=True)
    else:
        generator = Phase("generator", step.update_generator, "generator")
    phases = [
        generator,
        *lazy("generator", step.regularize_generator),
        Phase("average", step.update_average),
        Phase("discriminator", step.update_discriminator, "discriminator", needs_batch=True),
        *lazy("discriminator", step.regularize_discriminator),
    ]
    if step.augmentation.ada:
        phases.append(Phase("adapt", step.adapt_augmentation, interval=config.ada.interval))
    if config.spectra.interval > 0:
        phases.append(Phase("spectra", step.compute_singular_values, interval=config.spectra.interval))
    return phases


def step_order(phases: list[Phase], batches: int) -> list[tuple[Phase, int]]:
    """Return the phases of a step in the order they run, each with the number of its batch within the step."""
    with_batch = [(phase, i) for i in range(batches) for phase in phases if phase.needs_batch]
    first = next(i for i, phase in enumerate(phases) if phase.needs_batch)
    before = [(phase, 0) for phase in phases[:first]]
    return before + with_batch + [(phase, 0) for phase in phases[first:] if not phase.needs_batch]


def runs_per_step(phases: list[Phase], batches: int) -> dict[str, float]:
    """Return how often a step runs each phase, on average."""
    return {phase.name: (batches if phase.needs_batch else 1) / phase.interval for phase in phases}


def run_steps(
    phases: list[Phase], state: TrainState, batches: Batch, table: ClassTable, first: Array
) -> tuple[TrainState, list[Metrics]]:
    """Run several whole steps one after the other, as one function to be compiled.

    Args:
      phases: of a step.
      state: before them.
      batches: ``[steps, batches of a step, N, …]``.
      table: class table.
      first: int32, number of the first step, from 0.

    Returns:
      The state after them, and the metrics of each entry of `step_order`, ``[steps]`` each; zeros where it was not due.
    """
    count, per_step = jax.tree.leaves(batches)[0].shape[:2]

    def one(state: TrainState, xs: tuple[Array, Batch]) -> tuple[TrainState, list[Metrics]]:
        number, batches = xs
        collected = []
        for phase, i in step_order(phases, per_step):
            update, now = phase.update, phase.due(number, i, per_step)
            if now is not True:
                update = _only_if(now, update)
            state, metrics = update(state, *phase.inputs(jax.tree.map(lambda x, i=i: x[i], batches), table))
            collected.append(metrics)
        return state, collected

    return jax.lax.scan(one, state, (first + jnp.arange(count, dtype=jnp.int32), batches))


def _only_if(now: Array, update: Update) -> Update:
    """Return the same update, which does nothing and has zeros as its metrics unless it is due."""

    def maybe(state: TrainState, *arguments: Any) -> tuple[TrainState, Metrics]:
        shapes = jax.eval_shape(update, state, *arguments)[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.cond(now, update, lambda state, *_: (state, zeros), state, *arguments)

    return maybe
