"""Handling of checkpoints that could not be written: training continues after transient errors and stops after others."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from noisytwins_jax.utils.errors import UserError, first_line
from noisytwins_jax.utils.multihost import gather_strings, print_on_primary
from noisytwins_jax.utils.retry import is_full, is_transient, system_error

MAX_FAILURES = 3  # in a row
QUIET_SECONDS = 2.0  # without a new file, after which a failed attempt is taken to write nothing any more


class CheckpointRetry:
    """Attempts at writing checkpoints, with a count of failures since the last success.

    Args:
      directory: holds a directory for each complete checkpoint, named by its step.
      unfinished: glob pattern of incomplete checkpoints there.
    """

    def __init__(self, directory: Path, unfinished: str) -> None:
        self._directory, self._unfinished = directory, unfinished
        self._failures = 0

    def attempt(self, action: Callable[[], Any], patient: bool = True) -> bool:
        """Run an action that writes, or that waits for a write; all processes call it together.

        Args:
          action: raises if writing failed, or had failed before.
          patient: print transient errors and return; otherwise raise them too.

        Returns:
          Whether it succeeded in all processes. If not, what was written of the checkpoint is removed.

        Raises:
          UserError: in all processes: there is no space left; or a transient error, three times in a row or not patient.
          Exception: any other error of `action`.
        """
        own = None
        try:
            action()
        except Exception as error:  # checkpoint libraries raise many types; their causes tell them apart
            own = error
        failure = ["", ""] if own is None else [_kind(own), first_line(system_error(own))]
        failures = [json.loads(text) for text in gather_strings(json.dumps(failure))]
        failed = {kind: (process, reason) for process, (kind, reason) in reversed(list(enumerate(failures))) if kind}
        if not failed:
            return True
        self._discard()
        if "other" in failed:
            if own is not None:
                raise own
            process, reason = failed["other"]
            raise UserError(f"Process {process} could not write a checkpoint ({reason}); {self._way_out()}.")
        if "full" in failed:
            raise UserError(
                f"There is no space left to write a checkpoint in {self._directory}: free some and run the same "
                f"command; {self._last_checkpoint()}."
            ) from own
        self._failures += 1
        _, reason = failed.get("transient") or failed["timeout"]
        message = f"A checkpoint could not be written ({reason})"
        if not patient or self._failures >= MAX_FAILURES:
            raise UserError(f"{message}; {self._way_out()}.") from own
        print_on_primary(f"{message}; another will be tried. So far {self._last_checkpoint()}.", sys.stderr)
        return False

    def succeeded(self) -> None:
        """Reset the count of failures, when a checkpoint is on disk."""
        self._failures = 0

    def _discard(self) -> None:
        """Remove the files of a failed attempt, so that they take no space.

        One failed write ends the attempt, but array storage still finishes the others and creates their directories
        again.
        """
        if jax.process_index() > 0:
            return
        start = quiet_since = time.monotonic()
        # Bounded, as storage may not allow removal.
        while time.monotonic() < min(quiet_since + QUIET_SECONDS, start + 10 * QUIET_SECONDS):
            for path in self._directory.glob(self._unfinished):
                shutil.rmtree(path, ignore_errors=True)
                quiet_since = time.monotonic()
            time.sleep(QUIET_SECONDS / 20)

    def _last_checkpoint(self) -> str:
        steps = [int(path.name) for path in self._directory.glob("*") if path.name.isdecimal()]
        return f"the last whole checkpoint is step {max(steps)}" if steps else "there is no whole checkpoint"

    def _way_out(self) -> str:
        return f"fix the storage of {self._directory} and run the same command: {self._last_checkpoint()}"


def _kind(error: Exception) -> str:
    """Classify a failure, for the processes to compare: the most serious one counts."""
    if is_full(error):
        return "full"
    if is_transient(error):
        return "transient"
    # A process that waits for another whose writing failed gives up after some minutes; the other one knows the reason.
    return "timeout" if isinstance(error, TimeoutError) or "DEADLINE_EXCEEDED" in str(error) else "other"
