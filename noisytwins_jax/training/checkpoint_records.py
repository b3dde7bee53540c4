"""What is known of a run's checkpoints beside what they hold: how good each is, and which are kept for good.

Evaluations are made when the state is on disk already, and pins later still, so both are in files of their own.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from noisytwins_jax.utils.files import write_atomically
from noisytwins_jax.utils.multihost import broadcast_from_primary
from noisytwins_jax.utils.retry import retry

EVALUATIONS = "evaluations.json"  # beside the checkpoints: what they were found to be worth
PINNED = "pinned.json"  # beside the checkpoints: which of them are kept for good


class Evaluated(NamedTuple):
    """How good a checkpoint is, and which others that can be compared with."""

    distance: float | None  # lower is better; None: not finite
    protocol: str  # distances of different protocols do not compare


class CheckpointRecords:
    """Evaluations and pins of the checkpoints in a directory.

    Every process has to know them, since all decide together which checkpoints are deleted: all make it, and call what
    changes it. The first process writes.

    Args:
      directory: of the checkpoints.

    Attributes:
      evaluations: by step, in the order in which they were recorded; some steps may have no checkpoint any more.
      pinned: steps whose checkpoint is kept for good.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self.evaluations = broadcast_from_primary(lambda: _read_evaluations(directory / EVALUATIONS))
        self.pinned = broadcast_from_primary(lambda: _read_pinned(directory / PINNED))

    def best_of(self, steps: Sequence[int]) -> int | None:
        """Of these steps, the one with the lowest distance under the protocol used last; None if none has a distance."""
        known = {step: x for step, x in self.evaluations.items() if step in steps and x.distance is not None}
        if not known:
            return None
        *_, last = known.values()
        return min((x.distance, step) for step, x in known.items() if x.protocol == last.protocol)[1]

    def worth(self, steps: Sequence[int]) -> set[int]:
        """The steps to be kept whatever their age: the best of these, and those that are pinned."""
        best = self.best_of(steps)
        return self.pinned | ({best} if best is not None else set())

    def record(self, step: int, distance: float | None, protocol: str) -> None:
        """Writes down the evaluation of a saved step.

        Args:
          step: which was saved.
          distance: lower is better; None or not finite: it was evaluated, but is never the best.
          protocol: distances with the same one compare.

        Raises:
          OSError: the file cannot be written.
        """
        finite = distance is not None and math.isfinite(distance)
        self.evaluations.pop(step, None)  # the one recorded last comes last
        self.evaluations[step] = Evaluated(float(distance) if finite else None, protocol)
        self._write_evaluations()

    def pin(self, step: int) -> None:
        """Writes down that a step is kept for good."""
        if step not in self.pinned:
            self.pinned.add(step)
            self._write_pinned()

    def discard_evaluation(self, step: int) -> None:
        """Strikes out a step's evaluation, if there is one: it was of another state."""
        if self.evaluations.pop(step, None):
            self._write_evaluations()

    def discard_after(self, step: int) -> None:
        """Strikes out the evaluations and pins of later steps."""
        if any(at > step for at in self.evaluations):
            self.evaluations = {at: evaluated for at, evaluated in self.evaluations.items() if at <= step}
            self._write_evaluations()
        if any(at > step for at in self.pinned):
            self.pinned = {at for at in self.pinned if at <= step}
            self._write_pinned()

    def copy_evaluation(self, step: int, checkpoint: Path) -> None:
        """Leaves a step's evaluation, if there is one, in its checkpoint, for this to be moved away."""
        if step in self.evaluations:
            write_atomically(checkpoint / EVALUATIONS, _evaluations_text({step: self.evaluations[step]}))

    def _write_evaluations(self) -> None:
        text = _evaluations_text(self.evaluations)
        broadcast_from_primary(lambda: write_atomically(self._directory / EVALUATIONS, text))

    def _write_pinned(self) -> None:
        text = json.dumps(sorted(self.pinned)) + "\n"
        broadcast_from_primary(lambda: write_atomically(self._directory / PINNED, text))


def _read_evaluations(path: Path) -> dict[int, Evaluated]:
    """By step, in the order in which they were recorded; none where the file is missing or damaged."""
    try:
        rows = json.loads(retry(lambda: path.read_text(encoding="utf-8"), f"Reading {path}"))
        known = {int(step): Evaluated(**row) for step, row in rows.items()}
        whole = all(
            isinstance(x.protocol, str) and (x.distance is None or math.isfinite(x.distance)) for x in known.values()
        )
    except (OSError, ValueError, TypeError, AttributeError):  # missing, no JSON, or not what is written above
        return {}
    return known if whole else {}


def _evaluations_text(evaluations: Mapping[int, Evaluated]) -> str:
    rows = {str(step): evaluated._asdict() for step, evaluated in evaluations.items()}
    return json.dumps(rows, indent=2, allow_nan=False) + "\n"


def _read_pinned(path: Path) -> set[int]:
    """Steps; none where the file is missing or damaged."""
    try:
        steps = json.loads(retry(lambda: path.read_text(encoding="utf-8"), f"Reading {path}"))
    except (OSError, ValueError):
        return set()
    whole = isinstance(steps, list) and all(type(step) is int for step in steps)
    return set(steps) if whole else set()
