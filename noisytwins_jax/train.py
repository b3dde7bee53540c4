"""The training loop. One screenful a stage: data, networks, state, programs, loop."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax

from noisytwins_jax.config import RunConfig, flatten
from noisytwins_jax.data.source import DataSplits, LabelledImages
from noisytwins_jax.evaluation.during_training import evaluate_saved, evaluation_pending, to_scalars
from noisytwins_jax.evaluation.results import write_results
from noisytwins_jax.evaluation.run_evaluation import check_counts, check_evaluation
from noisytwins_jax.evaluation.sheets import SHEET_FILE, make_sheet
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.checkpoint import Checkpoints
from noisytwins_jax.training.compiled_step import CompiledStep, check_batch
from noisytwins_jax.training.fault_tolerance.nan_guard import Diverged, check_finite, divergence
from noisytwins_jax.training.fault_tolerance.preemption import on_google_cloud
from noisytwins_jax.training.fault_tolerance.signals import StopSignal
from noisytwins_jax.training.fault_tolerance.watchdog import TRAINING, Watchdog
from noisytwins_jax.training.fault_tolerance.workdir_lock import WorkdirLock
from noisytwins_jax.training.hooks.collapse import Collapsed, CollapseWatch
from noisytwins_jax.training.instance_conditioning import check_instances, with_instances
from noisytwins_jax.training.interventions import intervene
from noisytwins_jax.training.monitors import build_monitors, look
from noisytwins_jax.training.phases import in_order, mean_metrics
from noisytwins_jax.training.profiling import Stopwatch, Tracer
from noisytwins_jax.training.random_inputs import class_table
from noisytwins_jax.training.restore import load_run_data
from noisytwins_jax.training.run import Run, batches_of_process, describe, interval, restore_or_init
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.training.workdir import cache_dir, open_workdir, write_classes, write_config
from noisytwins_jax.utils.files import handle_disk_full
from noisytwins_jax.utils.logging import MetricsWriter, Progress
from noisytwins_jax.utils.multihost import print_on_primary, raise_on_all_processes
from noisytwins_jax.utils.sharding import Layout


class TrainedRun(NamedTuple):
    """A run at its end."""

    state: TrainState
    step: int
    splits: DataSplits
    workdir: Path
    evaluation: dict[str, Any] | None  # of this state, if the loop made one; it is a thorough one


def train(config: RunConfig, workdir: str | Path) -> Path:
    """Trains to the end (from the newest checkpoint, if there is one), evaluates and writes the report.

    Returns:
      The report's path.

    Raises:
      UserError, SystemExit: as `train_to_end`.
    """
    run = train_to_end(config, workdir)
    print_on_primary("Evaluating the averaged generator.")
    with handle_disk_full(run.workdir):
        return write_results(config, run.state.ema, run.step, run.splits, run.workdir, run.evaluation)


def train_to_end(config: RunConfig, workdir: str | Path) -> TrainedRun:
    """Trains to the end, from the newest checkpoint if there is one; a finished run is returned as it is.

    Raises:
      UserError: bad configuration, workdir or data, before any long work starts; processes that differ; training that
        diverged; no space left.
      SystemExit: after SIGTERM, Ctrl-C or a preemption notice, when the state is saved; a message says how to go on. The
        status is 128 plus the signal's number, as shells have it: 143 and 130.
    """
    # --- checks and data ---------------------------------------------------------------------------------------------
    layout = Layout(fsdp=config.mesh.fsdp)
    check_batch(config, layout)
    check_evaluation(config)
    splits = load_run_data(config)
    with raise_on_all_processes():
        check_counts(config, splits)
        check_instances(config)

    # --- networks and state ------------------------------------------------------------------------------------------
    model = build_model(config, splits.train.channels, splits.train.num_classes)
    step = TrainingStep(config, model, layout.batch, layout.replicate, layout.gather, layout.scatter)
    abstract = step.abstract_state(layout.state_shardings)  # refuses networks that cannot be
    with raise_on_all_processes():
        workdir = open_workdir(workdir, config)  # after everything that may refuse the configuration
    with handle_disk_full(workdir):
        splits = with_instances(config, splits, cache_dir(workdir))
    with raise_on_all_processes():
        batches = batches_of_process(config, splits)
    with (
        handle_disk_full(workdir),
        WorkdirLock(workdir),
        batches,
        contextlib.closing(MetricsWriter(workdir, disable=jax.process_index() > 0)) as writer,
        Checkpoints(workdir, writable=True, keep=config.collapse.keep if config.collapse.watched else 2) as checkpoints,
    ):
        write_config(workdir, config)
        write_classes(workdir, splits.train.channels, splits.train.class_names)
        # On the devices once: instances may be large.
        table = jax.device_put(class_table(config, splits.train.class_counts, splits.instances), layout.replicated)
        probes = build_monitors(config, model, splits, layout, table.instances)
        run = Run(config, layout, splits, workdir, step, abstract, batches, checkpoints, writer, probes)
        state, start = restore_or_init(run)
        print_on_primary(describe(run, start))
        programs = evaluation = None

        # --- loop ----------------------------------------------------------------------------------------------------
        if start < config.total_steps:
            print_on_primary("Compiling the training programs.")
            began = time.perf_counter()
            programs = CompiledStep(step, layout, table)
            print_on_primary(f"Compiled in {time.perf_counter() - began:.0f} s.")
        if programs is not None or evaluation_pending(run, start):
            state, evaluation = run_to_end(run, programs, state, start)
    return TrainedRun(state, max(start, config.total_steps), splits, workdir, evaluation)


def run_to_end(
    run: Run, programs: CompiledStep | None, state: TrainState, start: int
) -> tuple[TrainState, dict[str, Any] | None]:
    """As `run_loop`; if training diverges, goes back and skips what it diverged on as often as the configuration says.

    If it collapses, and the configuration says so, it goes back too, and on with other learning rates.
    """
    faults, rewinds, rewound_to = run.config.faults, 0, None
    while True:
        try:
            return run_loop(run, programs, state, start)
        except Collapsed:
            state, start = restore_or_init(run)
        except Diverged as error:
            skipped = run.batches.state()["next_index"]
            run.checkpoints.wait()
            kept = max(run.checkpoints.steps(), default=None)
            rewinds = 0 if kept != rewound_to else rewinds
            if faults.nonfinite == "stop" or rewinds == faults.max_rewinds:
                raise divergence(
                    error.step, error.loss, error.tensors, run.workdir / "checkpoints", kept, rewinds
                ) from None
            rewinds, rewound_to = rewinds + 1, kept
            state, start = restore_or_init(run)
            # The next images are those after the bad ones, and all draws are new ones.
            run.batches.restore({"next_index": skipped})
            state = state.replace(key=jax.random.fold_in(state.key, skipped))
            print_on_primary(
                f"Training diverged at step {error.step} ({error.loss} is not finite): going back to step {start}, and on "
                f"with the images after batch {skipped}.",
                sys.stderr,
            )


def run_loop(
    run: Run, programs: CompiledStep | None, state: TrainState, start: int
) -> tuple[TrainState, dict[str, Any] | None]:
    """Steps from `start` to the end, logging, saving and evaluating on the way.

    A state is on disk before it is evaluated, which may take an hour: a kill then costs nothing. An evaluation that a
    stop prevents or cuts short is made up when the run goes on.

    Args:
      run: what to work with.
      programs: the compiled steps; None where there are none to do.
      state: of step `start`.
      start: steps done.

    Returns:
      The state at the end, and its evaluation if one was due there.

    Raises:
      Diverged: before anything of it is saved.
      Collapsed: what was saved of it is set aside.
      SystemExit: as `train_to_end`.
    """
    config, splits, workdir, writer = run.config, run.splits, run.workdir, run.writer
    flat_config, fingerprint = flatten(config), splits.train.fingerprint
    every = {
        "log": interval(config, config.log_interval_kimg),
        "save": interval(config, config.checkpoint_interval_kimg),
        "evaluate": interval(config, config.evaluation.interval_kimg),
        "sheet": interval(config, config.sheet_interval_kimg),
        **{name: interval(config, getattr(config, f"{name}_interval_kimg")) for name in run.probes},
    }
    probes_owed: set[str] = set()  # at the start and at the end too
    collapse = CollapseWatch(config.collapse, run.checkpoints, workdir, start)
    first_process = jax.process_index() == 0
    progress = Progress(config.total_kimg, start * config.images_per_step / 1000, disable=not first_process or None)
    if start == 0 and run.probes:
        writer.write_scalars(0, {**look(run.probes, state, run.probes), "kimg": 0.0})
    pending, logged_step, done, before = [], start, start, start
    evaluation = None

    def end() -> NoReturn:
        progress.close()
        print_on_primary(
            f"Stopped by {stop.name} at step {done}; saved. Run the same command again to go on.", sys.stderr
        )
        raise SystemExit(stop.exit_status)

    def watch(step: int, numbers: Mapping[str, float] | None = None) -> None:
        """For collapse."""
        nonlocal done
        try:
            collapse.look(step, numbers)
        except Collapsed as error:
            if stop.agreed():  # all that is to be saved is saved
                done = error.kept
                end()
            raise

    def check_stop() -> None:
        """For the pauses of an evaluation, whose state is saved."""
        watchdog.beat(done, "evaluating", patience=6)
        if stop.agreed():
            end()

    with (
        StopSignal(watch_preemption=on_google_cloud()) as stop,
        Watchdog(config.faults.watchdog_minutes) as watchdog,
        contextlib.closing(Tracer(config.profile.steps, workdir, enabled=first_process)) as tracer,
        contextlib.closing(progress),
    ):
        watch(start)
        if evaluation_pending(run, start):
            evaluation = evaluate_saved(run, state, start, check_stop, progress)
            watch(start, to_scalars(evaluation))
        stopwatch = Stopwatch()
        batches = watched(run.batches, stopwatch, lambda doing: watchdog.beat(before, doing))
        while done < config.total_steps:
            before, together = done, config.steps_per_dispatch
            several = together > 1 and before + together <= config.total_steps
            done = before + (together if several else 1)
            tracer.before(before + 1, done)
            state, reported = (programs.advance_several if several else programs.advance)(state, before, batches)
            pending += reported
            watchdog.beat(done)
            due = {name: done // steps > before // steps for name, steps in every.items()}
            last, stopping = done == config.total_steps, stop.agreed()
            save = due["save"] or due["evaluate"] or last or stopping
            kimg = done * config.images_per_step / 1000
            probes_owed |= {name for name in run.probes if due[name] or last}
            if tracer.after(done, state):
                progress.write(f"A trace up to step {done} is in {tracer.directory}.")
            if due["log"] or save:  # a state is saved only after its losses were looked at, and with all of them logged
                numbers = in_order(pending)
                logged = mean_metrics([metrics for _, metrics in numbers])
                logged |= look(run.probes, state, probes_owed)  # when other numbers are fetched anyway
                probes_owed.clear()
                figures = stopwatch.lap(done - logged_step, config.images_per_step)
                pending, logged_step = [], done
                writer.write_scalars(done, {**logged, "kimg": kimg, **figures})
                progress.update(kimg, G=logged["loss/generator"], D=logged["loss/discriminator"])
                check_finite(numbers, state, thorough=save)
                watch(done, logged)
            if before < config.intervention.step <= done:
                state = intervene(state, config.intervention, config.collapse, collapse.returns)
                progress.write(f"step {done}: the intervention of the configuration is made.")
            stopwatch.pause()
            evaluation = None
            if save:
                watchdog.beat(done, "saving", patience=6)
                data = {**run.batches.state(), "fingerprint": fingerprint, "returns": collapse.returns}
                wait = due["evaluate"] or stopping or last
                run.checkpoints.save(done, state, data, flat_config, wait=wait)
            if stopping:
                end()
            if due["sheet"]:
                watchdog.beat(done, "drawing samples", patience=6)
                writer.write_images(done, {"samples": make_sheet(config, state.ema, splits, workdir / SHEET_FILE)})
            if due["evaluate"]:
                evaluation = evaluate_saved(run, state, done, check_stop, progress)
                watch(done, to_scalars(evaluation))
            stopwatch.resume()
    return state, evaluation


def watched(
    batches: Iterator[LabelledImages], stopwatch: Stopwatch, beat: Callable[[str], None]
) -> Iterator[LabelledImages]:
    """The same batches; the watchdog and the stopwatch know of the waiting."""
    while True:
        beat("waiting for input")
        with stopwatch.waiting():
            batch = next(batches)
        beat(TRAINING)
        yield batch
