"""Training: data, networks, state, hooks, and the loop."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.evaluation.evaluation_hook import EvaluationHook, evaluation_pending
from noisytwins_jax.evaluation.results import write_results
from noisytwins_jax.evaluation.run_evaluation import check_counts, check_evaluation
from noisytwins_jax.evaluation.samples_hook import SamplesHook
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.checkpoint import Checkpoints
from noisytwins_jax.training.compiled_step import CompiledStep, check_batch
from noisytwins_jax.training.fault_tolerance.preemption import on_google_cloud
from noisytwins_jax.training.fault_tolerance.signals import StopSignal
from noisytwins_jax.training.fault_tolerance.watchdog import Watchdog
from noisytwins_jax.training.fault_tolerance.workdir_lock import WorkdirLock
from noisytwins_jax.training.finetuning.start import check_source
from noisytwins_jax.training.hooks.base import Hook, StepEvent
from noisytwins_jax.training.hooks.checkpoint import CheckpointHook
from noisytwins_jax.training.hooks.collapse import CollapseHook
from noisytwins_jax.training.hooks.intervention import InterventionHook
from noisytwins_jax.training.hooks.log import LogHook, wandb_log
from noisytwins_jax.training.hooks.nan_guard import NanGuardHook
from noisytwins_jax.training.hooks.profile import ProfileHook
from noisytwins_jax.training.hooks.stop import StopHook
from noisytwins_jax.training.instance_conditioning import check_instances, with_instances
from noisytwins_jax.training.memory import MemoryCheck
from noisytwins_jax.training.monitors import build_monitors
from noisytwins_jax.training.random_inputs import class_table
from noisytwins_jax.training.restore import load_run_data
from noisytwins_jax.training.run import Rewind, Run, Stop, describe, process_batches, restore_or_init, watched_batches
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.training.workdir import cache_dir, open_workdir, write_classes, write_config, write_parameter_tables
from noisytwins_jax.utils.files import handle_disk_full
from noisytwins_jax.utils.logging import MetricsWriter, Progress
from noisytwins_jax.utils.multihost import print_on_primary, raise_on_all_processes
from noisytwins_jax.utils.sharding import Layout
from noisytwins_jax.utils.stopwatch import Stopwatch
from noisytwins_jax.utils.wandb_log import WandbLog


class TrainedRun(NamedTuple):
    """A run at its end."""

    state: TrainState
    step: int
    splits: DataSplits
    workdir: Path
    evaluation: dict[str, Any] | None  # of this state, if the loop made one; it is a thorough one


def train(config: RunConfig, workdir: str | Path) -> Path:
    """Train to the end (from the newest checkpoint, if there is one), evaluate, and return the path of the report.

    Raises:
      UserError, SystemExit: as `train_to_end`.
    """
    with wandb_log(config, workdir) as wandb:
        run = train_to_end(config, workdir, wandb)
        print_on_primary("Evaluating the averaged generator.")
        with handle_disk_full(run.workdir):
            return write_results(config, run.state.ema, run.step, run.splits, run.workdir, run.evaluation, wandb)


def train_to_end(config: RunConfig, workdir: str | Path, wandb: WandbLog | None = None) -> TrainedRun:
    """Train to the end, from the newest checkpoint if there is one; return a finished run as it is.

    Raises:
      UserError: bad configuration, workdir or data, before any long work starts; processes that differ; training that
        diverged; no space left.
      SystemExit: after SIGTERM, Ctrl-C or a preemption notice, when the state is saved; a message says how to resume. The
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
    step = TrainingStep(config, model, layout)
    abstract = step.abstract_state(layout.state_shardings)  # refuses networks that cannot be
    with raise_on_all_processes():
        check_source(config, abstract)
        workdir = open_workdir(workdir, config)  # after everything that may refuse the configuration
    with handle_disk_full(workdir):
        splits = with_instances(config, splits, cache_dir(workdir))
    with raise_on_all_processes():
        batches = process_batches(config, splits)
    primary, collapse = jax.process_index() == 0, config.collapse
    with (
        handle_disk_full(workdir),
        WorkdirLock(workdir),
        batches,
        contextlib.closing(MetricsWriter(workdir, disable=not primary, wandb=wandb)) as writer,
        contextlib.closing(Progress(config.total_kimg, disable=not primary)) as progress,
        Checkpoints(workdir, writable=True, keep=collapse.keep if collapse.watched else 2) as checkpoints,
    ):
        write_config(workdir, config)
        write_classes(workdir, splits.train.channels, splits.train.class_names, splits.train.aspect)
        write_parameter_tables(workdir, abstract)
        # On the devices once: instances may be large.
        table = jax.device_put(class_table(config, splits.train.class_counts, splits.instances), layout.replicated)
        monitors = build_monitors(config, model, splits, layout, table.instances)
        stop_signal = StopSignal(watch_preemption=on_google_cloud())
        watchdog = Watchdog(config.faults.watchdog_minutes)
        run = Run(
            *(config, splits, workdir, step, abstract, batches, checkpoints, writer),
            *(progress, stop_signal, watchdog, Stopwatch(), monitors),
        )
        memory = MemoryCheck(run, table)
        state, start = restore_or_init(run)
        print_on_primary(describe(run, start))
        compiled = evaluation = None

        # --- loop ----------------------------------------------------------------------------------------------------
        if start < config.total_steps:
            compiled = memory.compile()
        if compiled is not None or evaluation_pending(run, start):
            with memory.explain():
                state, evaluation = run_to_end(run, compiled, state, start)
    return TrainedRun(state, max(start, config.total_steps), splits, workdir, evaluation)


def run_to_end(
    run: Run, compiled: CompiledStep | None, state: TrainState, start: int
) -> tuple[TrainState, dict[str, Any] | None]:
    """Train from step `start` to the end, resuming from the newest checkpoint whenever a hook says so.

    Returns:
      The state at the end, and its evaluation if one was due there.

    Raises:
      UserError: training diverged; before anything of it is saved.
      SystemExit: as `train_to_end`.
    """
    collapse = CollapseHook(run)
    evaluation = EvaluationHook(run, collapse)
    # The order is the contract: a state is saved only after its losses were checked and logged, and evaluated only after
    # it is on disk.
    hooks: list[Hook] = [
        *(ProfileHook(run), LogHook(run), NanGuardHook(run), collapse, InterventionHook(run, collapse)),
        *(CheckpointHook(run, collapse), StopHook(), SamplesHook(run), evaluation),
    ]
    with run.stop_signal, run.watchdog, contextlib.ExitStack() as exits:
        for hook in hooks:
            exits.callback(hook.close)
        while True:
            try:
                state = run_loop(run, compiled, hooks, state, start)
                return state, evaluation.evaluations.get(max(start, run.config.total_steps))
            except Rewind as rewind:
                stopping = run.stop_signal.agreed()  # all that is to be saved is saved
                if not stopping:
                    state, start = restore_or_init(run, rewind)
            except Stop:
                stopping = True
            if stopping:
                run.progress.close()
                saved, cause = max(run.checkpoints.steps()), run.stop_signal.name
                print_on_primary(
                    f"Stopped by {cause} at step {saved}; saved. Run the same command again to resume.", sys.stderr
                )
                raise SystemExit(run.stop_signal.exit_status)


def run_loop(
    run: Run, compiled: CompiledStep | None, hooks: Sequence[Hook], state: TrainState, start: int
) -> TrainState:
    """Run the steps from `start` to the end, and the hooks around each."""
    config, step, batches = run.config, start, watched_batches(run)
    save, evaluate = run.interval(config.checkpoint_interval_kimg), run.interval(config.evaluation.interval_kimg)
    for hook in hooks:
        hook.start(state, start)
    while step < config.total_steps:
        count = config.steps_per_dispatch if step + config.steps_per_dispatch <= config.total_steps else 1
        for hook in hooks:
            hook.before_step(step + 1, step + count)
        state, reported = compiled(state, step, batches, count)
        first, step = step, step + count
        run.watchdog.heartbeat(step)
        event = StepEvent(first, step, reported, step == config.total_steps, run.stop_signal.agreed())
        event.saving = event.due(save) or event.due(evaluate) or event.last or event.stopping
        for hook in hooks:
            state = hook.after_step(event, state)
    return state
