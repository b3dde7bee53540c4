"""The training loop. One screenful a stage: data, networks, state, programs, loop."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

from noisytwins_jax.checkpoint import Checkpoints
from noisytwins_jax.config import RunConfig, flatten
from noisytwins_jax.data import load_splits
from noisytwins_jax.data.long_tail import class_groups
from noisytwins_jax.data.pipeline import TrainingBatches, training_batches
from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.errors import UserError
from noisytwins_jax.evaluate import SHEET_FILE, evaluate_variables, make_sheet, write_results
from noisytwins_jax.logs import MetricsWriter, Progress
from noisytwins_jax.metrics.w_space import w_ratio_probe
from noisytwins_jax.sharding import Layout
from noisytwins_jax.training.model import StyleGAN2Model, build_model
from noisytwins_jax.training.programs import Programs, check_batch
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import TrainingStep, class_table
from noisytwins_jax.workdir import open_workdir


class TrainedRun(NamedTuple):
    """A run at its end."""

    state: TrainState
    step: int
    splits: DataSplits
    workdir: Path


def train(config: RunConfig, workdir: str | Path) -> Path:
    """Trains to the end (from the newest checkpoint, if there is one), evaluates and writes the report.

    Returns:
      The report's path.

    Raises:
      UserError, SystemExit: as `train_to_end`.
    """
    run = train_to_end(config, workdir)
    say("Evaluating the averaged generator.")
    return write_results(config, run.state.ema, run.step, run.splits, run.workdir)


def train_to_end(config: RunConfig, workdir: str | Path) -> TrainedRun:
    """Trains to the end, from the newest checkpoint if there is one; a finished run is returned as it is.

    Raises:
      UserError: bad configuration, workdir or data, before any long work starts; or training that diverged.
      SystemExit: after SIGTERM or Ctrl-C, when the state is saved; a message says how to go on. The status is 128 plus
        the signal's number, as shells have it: 143 and 130.
    """
    # --- checks and data ---------------------------------------------------------------------------------------------
    layout = Layout()
    check_batch(config, layout)
    splits = load_splits(config.data.name, resolution=config.data.resolution, **config.data.options)
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
    workdir = open_workdir(workdir, config)  # after everything that may refuse the configuration
    writer = MetricsWriter(workdir, disable=jax.process_index() > 0)
    with batches, contextlib.closing(writer), Checkpoints(workdir, writable=True) as checkpoints:
        restored = checkpoints.restore(step.abstract_state(layout.replicated))
        if restored is None:
            state, start = jax.jit(step.init, static_argnums=0, out_shardings=layout.replicated)(config.seed), 0
        else:
            state, start = restored.state, restored.step
            batches.restore(restored.data)
        writer.truncate_after(start or -1)  # a run that starts anew logs its step 0 again
        say(describe(config, splits, layout, start, workdir))

        # --- loop ----------------------------------------------------------------------------------------------------
        if start < config.total_steps:
            say("Compiling the training programs.")
            began = time.perf_counter()
            programs = Programs(step, layout, class_table(config, splits.train.class_counts))
            say(f"Compiled in {time.perf_counter() - began:.0f} s.")
            w_ratio = jax.jit(w_ratio_of(model, splits), out_shardings=layout.replicated)
            state = run_loop(config, state, start, programs, w_ratio, batches, checkpoints, writer, splits, workdir)
    return TrainedRun(state, max(start, config.total_steps), splits, workdir)


def run_loop(
    config: RunConfig,
    state: TrainState,
    start: int,
    programs: Programs,
    w_ratio: Callable[[Any], dict[str, jax.Array]],
    batches: TrainingBatches,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    splits: DataSplits,
    workdir: Path,
) -> TrainState:
    """Steps from `start` to the end, logging, saving and evaluating on the way.

    `w_ratio` takes the averaged generator's variables and gives numbers to log; see `metrics.w_space.w_ratio_probe`.
    """
    flat_config = flatten(config)
    every = {
        "log": interval(config, config.log_interval_kimg),
        "save": interval(config, config.checkpoint_interval_kimg),
        "evaluate": interval(config, config.evaluation.interval_kimg),
        "sheet": interval(config, config.sheet_interval_kimg),
        "w_ratio": interval(config, config.w_ratio_interval_kimg),
    }
    probes = config.w_ratio_interval_kimg > 0  # at the start and at the end too
    probe_owed = False
    progress = Progress(
        config.total_kimg, start * config.images_per_step / 1000, disable=jax.process_index() > 0 or None
    )
    pending: list[dict] = []
    if start == 0 and probes:
        writer.write_scalars(0, {**w_ratio(state.ema), "kimg": 0.0})
    logged_at, logged_step = time.perf_counter(), start
    with StopSignal() as stop:
        for i in range(start, config.total_steps):
            state, metrics = programs.advance(state, i, batches)
            pending += metrics
            done = i + 1
            due = {name: done % steps == 0 for name, steps in every.items()}
            last, stopping = done == config.total_steps, stop.requested
            save = due["save"] or due["evaluate"] or last or stopping
            kimg = done * config.images_per_step / 1000
            probe_owed |= due["w_ratio"] or (last and probes)
            if due["log"] or save:  # a state is saved only after its losses were looked at, and with all of them logged
                if probe_owed:  # when other numbers are fetched anyway
                    pending.append(w_ratio(state.ema))
                    probe_owed = False
                numbers = mean_metrics(pending)
                now = time.perf_counter()
                speed = (done - logged_step) * config.images_per_step / (now - logged_at)
                pending, logged_at, logged_step = [], now, done
                writer.write_scalars(done, {**numbers, "kimg": kimg, "img_per_second": speed})
                progress.update(kimg, G=numbers["loss/generator"], D=numbers["loss/discriminator"])
                check_finite(numbers, done, workdir)
            best_metrics = None
            if due["evaluate"]:
                result = evaluate_variables(config, state.ema, splits, workdir)
                best_metrics = {name: value for name, value in result["metrics"].items() if value is not None}
                measured = {f"evaluation/{name}": value for name, value in best_metrics.items()}
                writer.write_scalars(done, {**measured, "kimg": kimg})
                progress.write(f"step {done}: FID {best_metrics['fid']:.2f}, recall {best_metrics['recall']:.3f}")
            if due["sheet"]:
                writer.write_images(done, {"samples": make_sheet(config, state.ema, splits, workdir / SHEET_FILE)})
            if save:
                checkpoints.save(done, state, batches.state(), flat_config, best_metrics)
            if stopping and not last:
                checkpoints.wait()
                progress.close()
                say(f"Stopped by {stop.name} at step {done}; saved. Run the same command again to go on.", sys.stderr)
                raise SystemExit(stop.exit_status)
    progress.close()
    return state


def w_ratio_of(model: StyleGAN2Model, splits: DataSplits) -> Callable[[Any], dict[str, jax.Array]]:
    """The W ratio of a generator's variables, by the classes of the training images."""

    def map_latents(variables: Any, z: jax.Array, labels: jax.Array) -> jax.Array:
        return model.generator.apply(variables, z, labels, method="map")

    return w_ratio_probe(map_latents, model.z_dim, class_groups(splits.train.class_counts))


class StopSignal:
    """While active, SIGTERM (a machine taken away) and Ctrl-C set `requested` instead of ending the process.

    A second Ctrl-C ends it at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._number: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    @property
    def name(self) -> str:
        """Of the signal that came, for example ``SIGTERM``."""
        return self._number.name

    @property
    def exit_status(self) -> int:
        """128 plus the signal's number: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + self._number

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: object) -> None:
        self.requested, self._number = True, signal.Signals(number)
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
        f"({counts.max()} to {counts.min()} images each), {config.data.resolution} px, in {workdir}",
        f"{config.total_kimg:g} kimg in {config.total_steps} steps of {config.batch_size} images on "
        f"{layout.num_devices} {jax.devices()[0].platform} device(s)",
    ]
    if start:
        lines.append(f"Going on from the checkpoint of step {start}.")
    return "\n".join(lines)


def say(text: str, file: TextIO | None = None) -> None:
    """Prints on the first process only."""
    if jax.process_index() == 0:
        print(text, file=file, flush=True)
