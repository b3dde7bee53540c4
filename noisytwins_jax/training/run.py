"""The resources of a run that its loop and hooks share, and the checkpoint or new state that it starts from."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.pipeline import TrainingBatches, training_batches
from noisytwins_jax.data.source import DataSplits, LabelledImages
from noisytwins_jax.training.checkpoint import Checkpoints
from noisytwins_jax.training.fault_tolerance.collapse_log import count_returns, discard_alarms_after
from noisytwins_jax.training.fault_tolerance.consistency import check_consistency, check_same_data
from noisytwins_jax.training.fault_tolerance.signals import StopSignal
from noisytwins_jax.training.fault_tolerance.watchdog import TRAINING, Watchdog
from noisytwins_jax.training.finetuning.start import start_from_source
from noisytwins_jax.training.interventions import change_after_collapses
from noisytwins_jax.training.monitors import Monitor
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.utils.logging import MetricsWriter, Progress
from noisytwins_jax.utils.multihost import broadcast_from_primary, print_on_primary
from noisytwins_jax.utils.stopwatch import Stopwatch


class Run(NamedTuple):
    """The resources of a run that the loop and its hooks share; all but its state."""

    config: RunConfig
    splits: DataSplits
    workdir: Path
    step: TrainingStep
    abstract_state: TrainState  # shapes, dtypes and shardings of the state
    batches: TrainingBatches
    checkpoints: Checkpoints
    writer: MetricsWriter
    progress: Progress
    stop_signal: StopSignal
    watchdog: Watchdog
    stopwatch: Stopwatch
    monitors: dict[str, Monitor]  # numbers of a state that are logged now and then

    def interval(self, kimg: float) -> int:
        """Convert an interval in kimg to steps, at least one; 0 kimg is never."""
        return interval(self.config, kimg)


class Rewind(Exception):
    """Training is to resume from the newest checkpoint.

    Args:
      message: what is printed when it does, with ``{step}`` for that checkpoint's step; empty for nothing.
      next_index: position in the training data to resume at, with other random inputs; None for the checkpoint's.
    """

    def __init__(self, message: str = "", next_index: int | None = None):
        super().__init__(message)
        self.message, self.next_index = message, next_index


class Stop(Exception):
    """Training ends before its last step; the state of the newest checkpoint is where it resumes."""


def process_batches(config: RunConfig, splits: DataSplits) -> TrainingBatches:
    """Build this process's share of a run's training batches."""
    return training_batches(
        splits.train,
        batch_size=config.batch_size,
        seed=config.seed,
        mirror=config.data.mirror,
        neighbours=None if splits.instances is None else splits.instances.neighbours,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def restore_or_init(run: Run, rewind: Rewind | None = None) -> tuple[TrainState, int]:
    """Restore state and step of the newest checkpoint, and rewind data and log to it; or start a new run.

    Raises:
      UserError: the processes do not see the same checkpoints, none can be read, or they are of other images.
    """
    check_consistency({"the checkpoints that they see in the workdir": str(run.checkpoints.steps())})
    step, layout, abstract = run.step, run.step.layout, run.abstract_state
    restored = run.checkpoints.restore(abstract)
    if restored is None:
        init = jax.jit(step.init, static_argnums=0, out_shardings=layout.state_shardings(abstract))
        state, start, known = init(run.config.seed), 0, 0
        if run.config.finetune.init_from:
            state = start_from_source(run.config, state, run.splits.train.class_names, run.workdir)
        run.batches.restore({"next_index": 0})
    else:
        check_same_data(restored.data, run.splits.train.fingerprint)
        state, start, known = restored.state, restored.step, restored.data.get("returns", 0)
        run.batches.restore(restored.data)
    run.writer.truncate_after(start or -1)  # a run that starts over logs its step 0 again
    returns = count_returns(broadcast_from_primary(lambda: discard_alarms_after(run.workdir, start)))
    if returns > known:  # the checkpoint was saved before these
        state = change_after_collapses(state, run.config.collapse, returns - known)
        rates = " and ".join(f"{float(rate):g} ({name})" for name, rate in state.rates._asdict().items())
        print_on_primary(f"Resuming after a collapse from step {start}, with learning rates times {rates}.")
    if rewind is not None and rewind.next_index is not None:
        run.batches.restore({"next_index": rewind.next_index})
        state = state.replace(key=jax.random.fold_in(state.key, rewind.next_index))  # other random inputs from here on
    if rewind is not None and rewind.message:
        print_on_primary(rewind.message.format(step=start), sys.stderr)
    return state, start


def watched_batches(run: Run) -> Iterator[LabelledImages]:
    """Yield the run's batches; report the waiting to the watchdog and the stopwatch."""
    while True:
        run.watchdog.heartbeat(doing="waiting for input")
        with run.stopwatch.waiting():
            batch = next(run.batches)
        run.watchdog.heartbeat(doing=TRAINING)
        yield batch


def describe(run: Run, start: int) -> str:
    """Return a few lines on what is about to run."""
    config, train = run.config, run.splits.train
    counts, processes = train.class_counts, jax.process_count()
    devices = f"{run.step.layout.num_devices} {jax.devices()[0].platform} device(s)"
    lines = [
        f"{config.name}: {len(train)} training images of {len(counts)} classes "
        f"({counts.max()} to {counts.min()} images each), {config.data.resolution} px, in {run.workdir}",
        f"{config.total_kimg:g} kimg in {config.total_steps} steps of {config.batch_size} images on {devices}"
        + (f" of {processes} processes" if processes > 1 else ""),
    ]
    if start:
        lines.append(f"Resuming from the checkpoint of step {start}.")
    return "\n".join(lines)


def interval(config: RunConfig, kimg: float) -> int:
    """Convert an interval in kimg to steps, at least one; 0 kimg is never."""
    return max(1, round(kimg * 1000 / config.images_per_step)) if kimg > 0 else config.total_steps + 1
