"""Evaluations while training: at their interval, of a state that is on disk, and made up for where a stop prevented one."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from noisytwins_jax.evaluation.run_evaluation import evaluate_variables
from noisytwins_jax.evaluation.scores import FRECHET
from noisytwins_jax.evaluation.table import distance_entries, headline_line
from noisytwins_jax.training.hooks.base import Hook, StepEvent
from noisytwins_jax.training.hooks.collapse import CollapseHook
from noisytwins_jax.training.run import Run, Stop
from noisytwins_jax.training.state import TrainState


class EvaluationHook(Hook):
    """Evaluates, logs the numbers, and records how good the checkpoint is.

    A state is on disk before it is evaluated, which may take an hour: a kill then costs nothing.

    Attributes:
      evaluations: by step, the latest alone; thorough at the end of the run, which the report is then made from.
    """

    def __init__(self, run: Run, collapse: CollapseHook):
        self._run, self._collapse = run, collapse
        self._interval = run.interval(run.config.evaluation.interval_kimg)
        self.evaluations: dict[int, dict[str, Any]] = {}

    @override
    def start(self, state: TrainState, step: int) -> None:
        self.evaluations = {}
        if evaluation_pending(self._run, step):
            self._evaluate(state, step)

    @override
    def after_step(self, event: StepEvent, state: TrainState) -> TrainState:
        if event.due(self._interval):
            self._evaluate(state, event.step)
        return state

    def _evaluate(self, state: TrainState, step: int) -> None:
        run, config = self._run, self._run.config

        def check_stop() -> None:
            run.watchdog.heartbeat(step, "evaluating", patience=6)
            if run.stop_signal.agreed():
                raise Stop

        check_stop()
        evaluation = evaluate_variables(
            config, state.ema, run.splits, run.workdir, thorough=step >= config.total_steps, between=check_stop
        )
        scalars = to_scalars(evaluation)
        run.writer.write_scalars(step, {**scalars, "kimg": step * config.images_per_step / 1000})
        distance = evaluation["metrics"][FRECHET[evaluation["protocol"]["headline_extractor"]]]
        run.checkpoints.record(step, distance, protocol_digest(evaluation))
        run.progress.write(f"step {step}: {headline_line(evaluation)}")
        self.evaluations = {step: evaluation}
        self._collapse.check(step, scalars)


def evaluation_pending(run: Run, start: int) -> bool:
    """Return whether the evaluation that was due at the checkpoint of step `start` is still to be made."""
    if run.config.evaluation.interval_kimg <= 0:
        return False
    interval = run.interval(run.config.evaluation.interval_kimg)
    due = start // interval * interval
    # It was due at this step, or within the program that ended with it.
    here = due > 0 and start - due < run.config.steps_per_dispatch
    return here and not any(due <= step <= start for step in run.checkpoints.evaluated_steps())


def to_scalars(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an evaluation, by the names they are logged under."""
    return {f"evaluation/{name}": value for name, value in evaluation["metrics"].items() if value is not None}


def protocol_digest(evaluation: Mapping[str, Any]) -> str:
    """Compute a hexadecimal SHA-256 of how an evaluation was made: distances with the same one compare."""
    return hashlib.sha256(json.dumps([*distance_entries(evaluation).items()]).encode()).hexdigest()
