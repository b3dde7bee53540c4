"""The training loop. One screenful a stage: data, networks, state, programs, loop."""

import signal
import time
from pathlib import Path

import jax
import numpy as np

from noisytwins_jax.checkpoint import Checkpoints
from noisytwins_jax.config import RunConfig, flatten
from noisytwins_jax.data import load_splits
from noisytwins_jax.data.pipeline import TrainingBatches, training_batches
from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.errors import UserError
from noisytwins_jax.evaluate import evaluate_variables, write_results
from noisytwins_jax.logs import MetricsWriter, Progress
from noisytwins_jax.sharding import Layout
from noisytwins_jax.training.model import build_model
from noisytwins_jax.training.programs import Programs
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import TrainingStep, class_table
from noisytwins_jax.workdir import open_workdir

def train(config: RunConfig, workdir: str | Path) -> Path:
    """Trains to the end (from the newest checkpoint, if there is one), evaluates and writes the report.

    Returns:
      The report's path.

    Raises:
      UserError: bad configuration, workdir or data, before any long work starts; or training that diverged.
      SystemExit: after SIGTERM, when the state is saved; the message says how to go on.
    """
    # --- checks and data ---------------------------------------------------------------------------------------------
    layout = Layout()
    layout.check_batch_size(config.batch_size, config.discriminator.mbstd_group_size, config.noisytwins.weight > 0)
    splits = load_splits(config.data.name, resolution=config.data.resolution, **config.data.options)
    workdir = open_workdir(workdir, config)
    batches = training_batches(
        splits.train,
        batch_size=config.batch_size,
        seed=config.seed,
        mirror=config.data.mirror,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

    # --- networks and state ------------------------------------------------------------------------------------------
    model = build_model(config, splits.train.channels, splits.train.num_classes)
    step = TrainingStep(config, model, layout.batch, layout.replicate)
    checkpoints = Checkpoints(workdir)
    restored = checkpoints.restore(step.abstract_state(layout.replicated))
    if restored is None:
        state, start = jax.jit(step.init, static_argnums=0, out_shardings=layout.replicated)(config.seed), 0
    else:
        state, start = restored.state, restored.step
        batches.restore(restored.data)
    writer = MetricsWriter(workdir, disable=jax.process_index() > 0)
    writer.truncate_after(start)
    say(describe(config, splits, layout, start, workdir))

    # --- loop --------------------------------------------------------------------------------------------------------
    if start < config.total_steps:
        say("Compiling the training programs.")
        began = time.perf_counter()
        programs = Programs(step, layout, class_table(config, splits.train.class_counts))
        say(f"Compiled in {time.perf_counter() - began:.0f} s.")
        state = run_loop(config, state, start, programs, batches, checkpoints, writer, splits, workdir)
    batches.close()
    checkpoints.close()
    writer.close()

    # --- results -----------------------------------------------------------------------------------------------------
    say("Evaluating the averaged generator.")
    return write_results(config, state.ema, config.total_steps, splits, workdir)


def run_loop(
    config: RunConfig,
    state: TrainState,
    start: int,
    programs: Programs,
    batches: TrainingBatches,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    splits: DataSplits,
    workdir: Path,
) -> TrainState:
    """Steps from `start` to the end, logging, saving and evaluating on the way."""
    flat_config = flatten(config)
    every = {
        "log": interval(config, config.log_interval_kimg),
        "save": interval(config, config.checkpoint_interval_kimg),
        "evaluate": interval(config, config.evaluation.interval_kimg),
    }
    progress = Progress(
        config.total_kimg, start * config.images_per_step / 1000, disable=jax.process_index() > 0 or None
    )
    pending: list[dict] = []
    logged_at, logged_step = time.perf_counter(), start
    with StopSignal() as stop:
        for i in range(start, config.total_steps):
            state, metrics = programs.advance(state, i, batches)
            pending += metrics
            done = i + 1
            last = done == config.total_steps
            if done % every["log"] == 0 or last or stop.requested:
                numbers = mean_metrics(pending)
                now = time.perf_counter()
                speed = (done - logged_step) * config.images_per_step / (now - logged_at)
                pending, logged_at, logged_step = [], now, done
                kimg = done * config.images_per_step / 1000
                writer.write_scalars(done, {**numbers, "kimg": kimg, "img_per_second": speed})
                progress.update(kimg, G=numbers["loss/generator"], D=numbers["loss/discriminator"])
                check_finite(numbers, done, workdir)
            best_metrics = None
            if done % every["evaluate"] == 0 and not last:
                result = evaluate_variables(config, state.ema, splits, workdir)
                best_metrics = {name: value for name, value in result["metrics"].items() if value is not None}
                writer.write_scalars(done, {f"evaluation/{name}": value for name, value in best_metrics.items()})
                progress.write(f"step {done}: FID {best_metrics['fid']:.2f}, recall {best_metrics['recall']:.3f}")
            if done % every["save"] == 0 or best_metrics or last or stop.requested:
                checkpoints.save(done, state, batches.state(), flat_config, best_metrics)
            if stop.requested and not last:
                checkpoints.wait()
                progress.close()
                writer.close()
                raise SystemExit(f"Stopped by a signal at step {done}; saved. Run the same command again to go on.")
    progress.close()
    return state


class StopSignal:
    """While active, SIGTERM (a preempted or cancelled machine) and Ctrl-C set `requested` instead of ending the process.

    A second Ctrl-C ends it at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: object) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


def interval(config: RunConfig, kimg: float) -> int:
    """An interval in kimg as steps, at least one; 0 kimg is never."""
    return max(1, round(kimg * 1000 / config.images_per_step)) if kimg > 0 else config.total_steps + 1


def mean_metrics(pending: list[dict]) -> dict[str, float]:
    """Means of each number over the updates of a log interval that reported it; fetched from the device here."""
    values: dict[str, list[float]] = {}
    for metrics in jax.device_get(pending):
        for name, value in metrics.items():
            values.setdefault(name, []).append(float(value))
    return {name: float(np.mean(numbers)) for name, numbers in values.items()}


def check_finite(numbers: dict[str, float], step: int, workdir: Path) -> None:
    """Stops a run that diverged, before it overwrites its checkpoints.

    Raises:
      UserError: naming the losses that are not finite.
    """
    bad = [name for name in ("loss/generator", "loss/discriminator") if not np.isfinite(numbers[name])]
    if bad:
        raise UserError(
            f"Training diverged before step {step}: {' and '.join(bad)} not finite. The last good checkpoint is in "
            f"{workdir / 'checkpoints'}; lower the learning rates or raise --config.r1.gamma."
        )


def describe(config: RunConfig, splits: DataSplits, layout: Layout, start: int, workdir: Path) -> str:
    """A few lines on what is about to run."""
    counts = splits.train.class_counts
    lines = [
        f"{config.name}: {len(splits.train)} training images of {len(counts)} classes "
        f"({counts.max()} to {counts.min()} an image class), {config.data.resolution} px, in {workdir}",
        f"{config.total_kimg:g} kimg in {config.total_steps} steps of {config.batch_size} images on "
        f"{layout.num_devices} {jax.devices()[0].platform} device(s)",
    ]
    if start:
        lines.append(f"Going on from the checkpoint of step {start}.")
    return "\n".join(lines)


def say(text: str) -> None:
    """Prints on the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)
