"""A run under way: what its loop works with, and the checkpoint or the fresh start that it begins from."""

from pathlib import Path
from typing import NamedTuple

import jax

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.pipeline import TrainingBatches, training_batches
from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.training.checkpoint import Checkpoints
from noisytwins_jax.training.fault_tolerance.collapse_log import discard_alarms_after, returns_made
from noisytwins_jax.training.fault_tolerance.consistency import check_consistency, check_same_data
from noisytwins_jax.training.interventions import change_after_collapses
from noisytwins_jax.training.monitors import Monitor
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.utils.logging import MetricsWriter
from noisytwins_jax.utils.multihost import broadcast_from_primary, print_on_primary
from noisytwins_jax.utils.sharding import Layout


class Run(NamedTuple):
    """A run under way: all that the loop works with, but its state."""

    config: RunConfig
    layout: Layout
    splits: DataSplits
    workdir: Path
    step: TrainingStep
    abstract_state: TrainState  # shapes, dtypes and shardings of the state
    batches: TrainingBatches
    checkpoints: Checkpoints
    writer: MetricsWriter
    probes: dict[str, Monitor]  # looks at a state now and then, to be logged


def batches_of_process(config: RunConfig, splits: DataSplits) -> TrainingBatches:
    """This process's share of a run's training batches."""
    return training_batches(
        splits.train,
        batch_size=config.batch_size,
        seed=config.seed,
        mirror=config.data.mirror,
        neighbours=None if splits.instances is None else splits.instances.neighbours,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def restore_or_init(run: Run) -> tuple[TrainState, int]:
    """The newest checkpoint's state and step, with the data and the log where they were then; or a fresh start.

    Raises:
      UserError: the processes do not see the same checkpoints, none can be read, or they are of other images.
    """
    check_consistency({"the checkpoints that they see in the workdir": str(run.checkpoints.steps())})
    step, layout, abstract = run.step, run.layout, run.abstract_state
    restored = run.checkpoints.restore(abstract)
    if restored is None:
        init = jax.jit(step.init, static_argnums=0, out_shardings=layout.state_shardings(abstract))
        state, start, known = init(run.config.seed), 0, 0
        run.batches.restore({"next_index": 0})
    else:
        check_same_data(restored.data, run.splits.train.fingerprint)
        state, start, known = restored.state, restored.step, restored.data.get("returns", 0)
        run.batches.restore(restored.data)
    run.writer.truncate_after(start or -1)  # a run that starts anew logs its step 0 again
    returns = returns_made(broadcast_from_primary(lambda: discard_alarms_after(run.workdir, start)))
    if returns > known:  # the checkpoint is of before these
        state = change_after_collapses(state, run.config.collapse, returns - known)
        rates = " and ".join(f"{float(rate):g} ({name})" for name, rate in state.rates._asdict().items())
        print_on_primary(f"Going on after a collapse from step {start}, with learning rates times {rates}.")
    return state, start


def describe(run: Run, start: int) -> str:
    """A few lines on what is about to run."""
    config, train = run.config, run.splits.train
    counts, processes = train.class_counts, jax.process_count()
    devices = f"{run.layout.num_devices} {jax.devices()[0].platform} device(s)"
    lines = [
        f"{config.name}: {len(train)} training images of {len(counts)} classes "
        f"({counts.max()} to {counts.min()} images each), {config.data.resolution} px, in {run.workdir}",
        f"{config.total_kimg:g} kimg in {config.total_steps} steps of {config.batch_size} images on {devices}"
        + (f" of {processes} processes" if processes > 1 else ""),
    ]
    if start:
        lines.append(f"Going on from the checkpoint of step {start}.")
    return "\n".join(lines)


def interval(config: RunConfig, kimg: float) -> int:
    """An interval in kimg as steps, at least one; 0 kimg is never."""
    return max(1, round(kimg * 1000 / config.images_per_step)) if kimg > 0 else config.total_steps + 1
