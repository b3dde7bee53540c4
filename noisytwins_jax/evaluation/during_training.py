"""Evaluations in the middle of a run: whether one is owed, and what becomes of its numbers."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from noisytwins_jax.evaluation.run_evaluation import evaluate_variables
from noisytwins_jax.evaluation.scores import FRECHET
from noisytwins_jax.evaluation.table import distance_entries, headline_line
from noisytwins_jax.training.run import Run, interval
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.utils.logging import Progress


def evaluation_pending(run: Run, start: int) -> bool:
    """Whether the evaluation that was due at the step of the checkpoint that a run goes on from is still to be made."""
    config = run.config
    if config.evaluation.interval_kimg <= 0:
        return False
    steps = interval(config, config.evaluation.interval_kimg)
    due = start // steps * steps
    # It was due at this step, or within the program that ended with it.
    here = due > 0 and start - due < config.steps_per_dispatch
    return here and not any(due <= step <= start for step in run.checkpoints.evaluated_steps())


def evaluate_saved(
    run: Run, state: TrainState, step: int, between: Callable[[], None], progress: Progress
) -> dict[str, Any]:
    """Evaluates a state that is on disk, logs the numbers, and records how good its checkpoint is.

    Only at the end of the run is it thorough, which takes longer: there it is what the report is made of.

    Args:
      run: what to work with.
      state: of step `step`.
      step: steps done.
      between: called by all processes now and then; may raise.
      progress: where to print the headline's numbers.

    Returns:
      The evaluation; see `metrics.evaluation`.
    """
    config = run.config
    between()
    evaluation = evaluate_variables(
        config, state.ema, run.splits, run.workdir, thorough=step >= config.total_steps, between=between
    )
    metrics = evaluation["metrics"]
    run.writer.write_scalars(step, {**to_scalars(evaluation), "kimg": step * config.images_per_step / 1000})
    distance = metrics[FRECHET[evaluation["protocol"]["headline_extractor"]]]
    run.checkpoints.record(step, distance, protocol_digest(evaluation))
    progress.write(f"step {step}: {headline_line(evaluation)}")
    return evaluation


def to_scalars(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation, by the names they are logged by."""
    return {f"evaluation/{name}": value for name, value in evaluation["metrics"].items() if value is not None}


def protocol_digest(evaluation: Mapping[str, Any]) -> str:
    """Hexadecimal SHA-256 of how an evaluation was made: distances with the same one compare."""
    return hashlib.sha256(json.dumps([*distance_entries(evaluation).items()]).encode()).hexdigest()
