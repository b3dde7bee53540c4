"""Records of a run's checkpoints: their evaluations, and which are pinned (never deleted).

A state is evaluated when it is on disk already, and pinned later still, so both are in files beside the checkpoints.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from noisytwins_jax.utils.files import write_atomically
from noisytwins_jax.utils.multihost import broadcast_from_primary
from noisytwins_jax.utils.retry import retry

EVALUATIONS = "evaluations.json"
PINNED = "pinned.json"


class Evaluation(NamedTuple):
    """The result of evaluating a checkpoint."""

    distance: float | None  # lower is better; None: not finite
    protocol: str  # distances of different protocols cannot be compared


class CheckpointRecords:
    """Evaluations and pins of the checkpoints in a directory.

    Every process has a copy, since all decide which checkpoints are deleted: all processes must call every method. The
    primary process writes.

    Args:
      directory: of the checkpoints.

    Attributes:
      evaluations: by step, in the order in which they were recorded; some steps may have no checkpoint any more.
      pinned: steps whose checkpoint is never deleted.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self.evaluations = broadcast_from_primary(lambda: _read_evaluations(directory / EVALUATIONS))
        self.pinned = broadcast_from_primary(lambda: _read_pinned(directory / PINNED))

    def best_step(self, steps: Sequence[int]) -> int | None:
        """Return the step with the lowest distance under the protocol used last; None if no step has a distance."""
        known = {step: x for step, x in self.evaluations.items() if step in steps and x.distance is not None}
        if not known:
            return None
        *_, last = known.values()
        return min((x.distance, step) for step, x in known.items() if x.protocol == last.protocol)[1]

    def steps_to_keep(self, steps: Sequence[int]) -> set[int]:
        """Return the steps to be kept whatever their age: the best of `steps`, and those that are pinned."""
        best = self.best_step(steps)
        return self.pinned | ({best} if best is not None else set())

    def record(self, step: int, distance: float | None, protocol: str) -> None:
        """Record the evaluation of a saved step.

        Args:
          step: the step.
          distance: lower is better; None or not finite: it was evaluated, but is never the best.
          protocol: distances of the same protocol can be compared.

        Raises:
          OSError: the file cannot be written.
        """
        finite = distance is not None and math.isfinite(distance)
        self.evaluations.pop(step, None)  # the one recorded last comes last
        self.evaluations[step] = Evaluation(float(distance) if finite else None, protocol)
        self._write_evaluations()

    def pin(self, step: int) -> None:
        """Record that a step is never deleted."""
        if step not in self.pinned:
            self.pinned.add(step)
            self._write_pinned()

    def discard_evaluation(self, step: int) -> None:
        """Remove a step's evaluation, if there is one."""
        if self.evaluations.pop(step, None):
            self._write_evaluations()

    def discard_after(self, step: int) -> None:
        """Remove the evaluations and pins of later steps."""
        if any(at > step for at in self.evaluations):
            self.evaluations = {at: evaluation for at, evaluation in self.evaluations.items() if at <= step}
            self._write_evaluations()
        if any(at > step for at in self.pinned):
            self.pinned = {at for at in self.pinned if at <= step}
            self._write_pinned()

    def copy_evaluation(self, step: int, checkpoint: Path) -> None:
        """Write a step's evaluation, if there is one, into its checkpoint's folder, which is to be moved away."""
        if step in self.evaluations:
            write_atomically(checkpoint / EVALUATIONS, _evaluations_text({step: self.evaluations[step]}))

    def _write_evaluations(self) -> None:
        text = _evaluations_text(self.evaluations)
        broadcast_from_primary(lambda: write_atomically(self._directory / EVALUATIONS, text))

    def _write_pinned(self) -> None:
        text = json.dumps(sorted(self.pinned)) + "\n"
        broadcast_from_primary(lambda: write_atomically(self._directory / PINNED, text))


def _read_evaluations(path: Path) -> dict[int, Evaluation]:
    """Read evaluations by step, in the order in which they were recorded; none if the file is missing or damaged."""
    try:
        rows = json.loads(retry(lambda: path.read_text(encoding="utf-8"), f"Reading {path}"))
        evaluations = {int(step): Evaluation(**row) for step, row in rows.items()}
        valid = all(
            isinstance(x.protocol, str) and (x.distance is None or math.isfinite(x.distance))
            for x in evaluations.values()
        )
    except (OSError, ValueError, TypeError, AttributeError):  # missing, no JSON, or other JSON
        return {}
    return evaluations if valid else {}


def _evaluations_text(evaluations: Mapping[int, Evaluation]) -> str:
    rows = {str(step): evaluation._asdict() for step, evaluation in evaluations.items()}
    return json.dumps(rows, indent=2, allow_nan=False) + "\n"


def _read_pinned(path: Path) -> set[int]:
    """Read the pinned steps; none if the file is missing or damaged."""
    try:
        steps = json.loads(retry(lambda: path.read_text(encoding="utf-8"), f"Reading {path}"))
    except (OSError, ValueError):
        return set()
    valid = isinstance(steps, list) and all(type(step) is int for step in steps)
    return set(steps) if valid else set()
