"""Checkpoints that could not be written: go on if it may pass, stop with a sentence if it will not."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from noisytwins_jax.utils.errors import UserError, first_line
from noisytwins_jax.utils.multihost import gather_strings
from noisytwins_jax.utils.retry import is_full, is_transient, system_error

MOST_FAILURES = 3  # one after the other
QUIET = 2.0  # seconds without a new file, after which nothing writes for a failed attempt any more


class CheckpointRetry:
    """Attempts at writing checkpoints, and how many of them failed since one succeeded.

    Args:
      directory: holds a directory for each whole checkpoint, named by its step.
      unfinished: glob pattern there of what is not, or not yet, a whole checkpoint.
    """

    def __init__(self, directory: Path, unfinished: str) -> None:
        self._directory, self._unfinished = directory, unfinished
        self._failures = 0

    def attempt(self, action: Callable[[], Any], patient: bool = True) -> bool:
        """Does something that writes, or that waits for what is being written; all processes call it together.

        Args:
          action: raises if writing failed, or had failed before.
          patient: print passing trouble and return; otherwise raise it too.

        Returns:
          Whether it went well in all processes. If not, nothing of what was being written is left.

        Raises:
          UserError: in all processes: there is no space left; or passing trouble, three times in a row or not patient.
          Exception: of `action`, if it is something else.
        """
        own = None
        try:
            action()
        except Exception as error:  # checkpoint libraries raise many types; their causes tell them apart
            own = error
        verdict = ["", ""] if own is None else [_kind(own), first_line(system_error(own))]
        verdicts = [json.loads(text) for text in gather_strings(json.dumps(verdict))]
        failed = {kind: (process, why) for process, (kind, why) in reversed(list(enumerate(verdicts))) if kind}
        if not failed:
            return True
        self._discard()
        if "other" in failed:
            if own is not None:
                raise own
            process, why = failed["other"]
            raise UserError(f"Process {process} could not write a checkpoint ({why}); {self._way_on()}.")
        if "full" in failed:
            raise UserError(
                f"There is no space left to write a checkpoint in {self._directory}: free some and run the same "
                f"command; {self._kept()}."
            ) from own
        self._failures += 1
        process, why = failed.get("passing") or failed["late"]
        trouble = f"A checkpoint could not be written ({why})"
        if not patient or self._failures >= MOST_FAILURES:
            raise UserError(f"{trouble}; {self._way_on()}.") from own
        if jax.process_index() == 0:
            print(f"{trouble}; another will be tried. So far {self._kept()}.", file=sys.stderr, flush=True)
        return False

    def succeeded(self) -> None:
        """Forgets earlier failures: a checkpoint is on disk."""
        self._failures = 0

    def _discard(self) -> None:
        """Removes what is left of a failed attempt, so that it takes no space.

        One failed write ends the attempt, but array storage still finishes the others, making their directories anew.
        """
        if jax.process_index() > 0:
            return
        start = quiet_since = time.monotonic()
        while time.monotonic() < min(quiet_since + QUIET, start + 10 * QUIET):  # storage may not let it be removed
            for path in self._directory.glob(self._unfinished):
                shutil.rmtree(path, ignore_errors=True)
                quiet_since = time.monotonic()
            time.sleep(QUIET / 20)

    def _kept(self) -> str:
        steps = [int(path.name) for path in self._directory.glob("*") if path.name.isdecimal()]
        return f"the last whole checkpoint is step {max(steps)}" if steps else "there is no whole checkpoint"

    def _way_on(self) -> str:
        return f"mend the storage of {self._directory} and run the same command: {self._kept()}"


def _kind(error: Exception) -> str:
    """What kind of failure, for the processes to compare: the gravest of all counts."""
    if is_full(error):
        return "full"
    if is_transient(error):
        return "passing"
    # A process that waits for another whose writing failed gives up after some minutes; the other one knows the reason.
    return "late" if isinstance(error, TimeoutError) or "DEADLINE_EXCEEDED" in str(error) else "other"
