"""Which updates make a step, in which order and how often: for the host, a program each, and for several steps in one."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.config import RunConfig
from noisytwins_jax.training.random_inputs import ClassTable
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import Batch, Metrics, TrainingStep

Array = jax.Array
Update = Callable[..., tuple[TrainState, Metrics]]


def updates(step: TrainingStep) -> dict[str, Update]:
    """The functions that a run's configuration needs, by name: ``(state, *inputs) → (state, metrics)``."""
    config = step.config
    needed: dict[str, Update] = {"generator": step.generator_update}
    if config.path_length.weight > 0:
        needed["path_length"] = step.path_length_update
    needed |= {"average": step.average, "discriminator": step.discriminator_update}
    if config.r1.gamma > 0:
        needed["r1"] = step.r1_update
    if step.augmentation.ada:
        needed["adapt"] = step.adapt
    if config.spectra.interval > 0:
        needed["spectra"] = step.look_at_spectra
    return needed


def inputs(name: str, batch: Any, table: Any) -> tuple:
    """What an update takes beside the state."""
    return {"discriminator": (batch, table), "r1": (batch, table), "average": (), "adapt": (), "spectra": ()}.get(
        name, (table,)
    )


def order(config: RunConfig, names: Iterable[str]) -> list[tuple[str, int]]:
    """The updates of a step in their order, each with the number of its batch within the step."""
    once = [name for name in names if name not in ("discriminator", "r1")]
    batches = range(config.optimizer.discriminator_updates)
    of_batches = [(name, i) for i in batches for name in names if name in ("discriminator", "r1")]
    last = ("adapt", "spectra")
    before = [(name, 0) for name in once if name not in last]
    return before + of_batches + [(name, 0) for name in once if name in last]


def due(config: RunConfig, name: str, step: Any, batch: int) -> Any:
    """Whether an update runs in step number `step` (from 0; an int, or traced) on its batch number `batch`."""
    if name == "path_length":
        return (step % config.path_length.interval == 0) & (step >= config.path_length.start_step)
    if name == "r1":
        return (step * config.optimizer.discriminator_updates + batch) % config.r1.interval == 0
    if name == "adapt":
        return step % config.ada.interval == 0
    if name == "spectra":
        return step % config.spectra.interval == 0
    return True


def runs_per_step(config: RunConfig) -> dict[str, float]:
    """How often a step runs each update, on average, where the configuration has it."""
    updates = config.optimizer.discriminator_updates
    return {
        "generator": 1.0,
        "path_length": 1 / config.path_length.interval,
        "average": 1.0,
        "discriminator": float(updates),
        "r1": updates / config.r1.interval,
        "adapt": 1 / config.ada.interval,
        "spectra": 1 / max(1, config.spectra.interval),
    }


def run_steps(
    step: TrainingStep, state: TrainState, batches: Batch, table: ClassTable, first: Array
) -> tuple[TrainState, list[Metrics]]:
    """Several whole steps one after the other, as one function to be compiled.

    Args:
      step: the updates.
      state: before them.
      batches: ``[steps, discriminator_updates, N, …]``.
      table: class table.
      first: int32, number of the first step, from 0.

    Returns:
      The state after them, and the metrics of each entry of `order`, ``[steps]`` each; zeros where it was not due.
    """
    functions = updates(step)

    def one(state: TrainState, xs: tuple[Array, Batch]) -> tuple[TrainState, list[Metrics]]:
        number, batches = xs
        collected = []
        for name, i in order(step.config, functions):
            arguments = inputs(name, jax.tree.map(lambda x, i=i: x[i], batches), table)
            update, now = functions[name], due(step.config, name, number, i)
            if now is not True:
                update = _only_if(now, update)
            state, metrics = update(state, *arguments)
            collected.append(metrics)
        return state, collected

    count = jax.tree.leaves(batches)[0].shape[0]
    return jax.lax.scan(one, state, (first + jnp.arange(count, dtype=jnp.int32), batches))


def _only_if(now: Array, update: Update) -> Update:
    """The same update, or nothing and zeros for its metrics."""

    def maybe(state: TrainState, *arguments: Any) -> tuple[TrainState, Metrics]:
        shapes = jax.eval_shape(update, state, *arguments)[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.cond(now, update, lambda state, *_: (state, zeros), state, *arguments)

    return maybe


class Reported(NamedTuple):
    """Metrics of one update; or, of steps that ran together, of all updates of one entry of `order`."""

    step: int  # number of the step, from 1; of several the first
    metrics: Metrics  # scalars, or [steps]
    ran: np.ndarray | None = None  # bool [steps]: in which of them it was due; None for scalars


def in_order(reported: Iterable[Reported]) -> list[tuple[int, dict[str, float]]]:
    """Step and numbers of every update, in the order they ran; fetched from the device here."""
    found: list[tuple[int, int, dict[str, float]]] = []
    for place, (step, metrics, ran) in enumerate(jax.device_get(list(reported))):
        if ran is None:
            found.append((step, place, {name: float(x) for name, x in metrics.items()}))
        else:
            rows = np.flatnonzero(ran)
            found += [(step + int(i), place, {name: float(x[i]) for name, x in metrics.items()}) for i in rows]
    return [(step, metrics) for step, _, metrics in sorted(found, key=lambda entry: entry[:2])]


def mean_metrics(updates: list[dict[str, float]]) -> dict[str, float]:
    """Means of each number over the updates that reported it."""
    values: dict[str, list[float]] = {}
    for metrics in updates:
        for name, value in metrics.items():
            values.setdefault(name, []).append(value)
    return {name: float(np.mean(numbers)) for name, numbers in values.items()}
