"""Checkpoints: state, position in the data and configuration, saved together. The only file that uses Orbax."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies
from typing_extensions import override

from noisytwins_jax.training.checkpoint_records import CheckpointRecords
from noisytwins_jax.training.fault_tolerance.checkpoint_integrity import (
    FILES,
    check_architecture,
    find_corruption,
    write_digests,
)
from noisytwins_jax.training.fault_tolerance.checkpoint_retry import CheckpointRetry
from noisytwins_jax.utils.errors import TryAgainError, UserError, first_line
from noisytwins_jax.utils.multihost import broadcast_from_primary, print_on_primary
from noisytwins_jax.utils.retry import is_transient

PyTree = Any
TIMEOUT = 600  # seconds for writing a checkpoint, and for waiting for other processes
WAIT = 5.0  # seconds before a failed checkpoint is tried again


class Restored(NamedTuple):
    """The contents of a checkpoint."""

    step: int
    state: PyTree
    # Position and fingerprint of the training data, independent of the number of processes, and `returns`: how many of
    # the run's returns after a collapse were made before this state.
    data: dict[str, Any]
    config: dict[str, Any]  # flattened configuration


class Checkpoints:
    """The checkpoints of a workdir, written in the background.

    The latest, the best one and pinned ones are kept. The best has the lowest distance of those that were evaluated under
    the protocol of the last evaluation. Two of the latest are kept by default, so that a run whose newest checkpoint is
    damaged on disk can resume from an intact one. To detect damage, every file's CRC-32 is stored: the array storage
    finds missing and short files, but not changed values.

    Saving copies the state off the device before it returns: donating the state to the next program is safe.

    Args:
      workdir: the run's directory.
      writable: whether this is the run that trains. Others only read, and ignore what is being written.
      keep: how many of the latest are kept, at least 1.
    """

    def __init__(self, workdir: Path, writable: bool = False, keep: int = 2):
        self._directory = Path(workdir).absolute() / "checkpoints"
        self._writable = writable
        self._retry = CheckpointRetry(self._directory, "*.orbax-checkpoint-tmp*")
        self._pending = False  # whether a checkpoint is being written
        self._records = CheckpointRecords(self._directory)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                read_only=not writable,
                create=writable,
                cleanup_tmp_directories=writable,
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(keep), _KeepSteps(self._records.steps_to_keep)]
                ),
                async_options=ocp.AsyncOptions(timeout_secs=TIMEOUT, post_finalization_callback=self._write_digests),
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:  # without the other processes: this error may be of one process alone
            self._manager.close()
        except Exception as failure:  # the original error is the one to show
            print(f"The last checkpoint could not be written: {failure}", file=sys.stderr, flush=True)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def newest_at_or_before(self, step: int) -> int | None:
        """Return the newest step up to this one that has a checkpoint; None if there is none."""
        return max((saved for saved in self.steps() if saved <= step), default=None)

    def evaluated_steps(self) -> list[int]:
        """Return the steps that were evaluated, oldest first; some may have no checkpoint any more."""
        return sorted(self._records.evaluations)

    def best_step(self) -> int | None:
        """Return the step with the lowest distance under the protocol used last; None if no checkpoint has a distance."""
        return self._records.best_step(self.steps())

    def record(self, step: int, distance: float | None, protocol: str) -> None:
        """Record an evaluation (see `CheckpointRecords.record`); the next `save` keeps that step if it is the best."""
        self._records.record(step, distance, protocol)

    def pin(self, step: int) -> None:
        """Keep the checkpoint of a saved step for good, also when the run resumes later.

        All processes of the run that trains must call it.

        Raises:
          ValueError: the step has no checkpoint.
          OSError: the file cannot be written.
        """
        if step not in self.steps():
            raise ValueError(f"step {step} has no checkpoint to pin in {self._directory}")
        self._records.pin(step)

    def discard_after(self, step: int) -> list[Path]:
        """Move the checkpoints of later steps to the workdir's ``collapsed_checkpoints``.

        Nothing is deleted: a checkpoint's evaluation is moved along as its ``evaluations.json``. All processes of the run
        that trains must call it; it waits for the checkpoint that is being written.

        Args:
          step: the step that training resumes from; later ones lose their checkpoints, evaluations and pins.

        Returns:
          The new paths of the checkpoints, oldest first.

        Raises:
          UserError: in all processes: the checkpoint that was being written cannot be written.
          OSError: a checkpoint cannot be moved.
        """
        self.wait()
        # The newest first: if this is interrupted, the latest that remains is as near to `step` as possible.
        later = [saved for saved in reversed(self.steps()) if saved > step]
        targets = self._move(later, "collapsed_checkpoints", with_evaluations=True)
        self._records.discard_after(step)
        return targets[::-1]

    def save(
        self,
        step: int,
        state: PyTree,
        data: dict[str, Any],
        config: dict[str, Any],
        wait: bool = False,
    ) -> None:
        """Start writing a checkpoint; return before it is on disk. A step that is already saved is not saved again.

        Args:
          step: steps done.
          state: tree of arrays.
          data: plain values, see `Restored`.
          config: flattened configuration.
          wait: return when it is on disk, trying again after transient errors. Without it, such errors are noticed in the
            background: a message is printed, and the next checkpoint is tried.

        Raises:
          UserError: in all processes: no space is left, or storage failed three times in a row.
        """

        def start() -> None:
            if step not in self._manager.all_steps():
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({"data": data, "config": config})
                    ),
                    force=True,
                )

        self._finish_writing()  # the one before
        if step not in self._manager.all_steps():
            self._records.discard_evaluation(step)  # of another state, from before training went back
        while True:
            self._pending = self._attempt(start)
            if not wait or (self._pending and self._finish_writing()):
                return
            time.sleep(WAIT)

    def restore(self, abstract_state: PyTree, which: str | int = "latest") -> Restored | None:
        """Read a checkpoint into the shapes, dtypes and shardings of `abstract_state`.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` with shardings; any number of devices. With a dict from names of
            fields of the state, only those are read.
          which: ``"latest"``, ``"best"`` or a step. If the latest is damaged, the one before it is read, with a message;
            a run that trains also moves the damaged one aside (it is not deleted), to save that step again.

        Returns:
          The checkpoint, or None if the workdir has none.

        Raises:
          UserError: the wanted step does not exist, none can be read, or it is of another architecture.
        """
        steps = self.steps()
        if which == "latest":
            return self._restore_latest(steps, abstract_state)
        if which == "best":
            step = self.best_step()
        else:
            step = int(which) if str(which).isdecimal() else None
        if step not in steps:
            available = ", ".join(map(str, steps)) or "none"
            wanted = "evaluated checkpoint" if which == "best" else f"checkpoint {which!r}"
            raise UserError(
                f"There is no {wanted} in {self._directory}; ask for latest, best or one of the steps there ({available})."
            )
        try:
            return self._read(step, abstract_state)
        except _DamagedError as error:
            raise UserError(
                f"The checkpoint of step {step} in {self._directory} is damaged ({error}); use --checkpoint=latest."
            ) from None

    def wait(self) -> None:
        """Wait until everything saved is on disk.

        Raises:
          UserError: in all processes: it could not be written.
        """
        self._finish_writing(patient=False)

    def close(self) -> None:
        """Finish writing and release the directory.

        Raises:
          UserError: in all processes: the last checkpoint could not be written.
        """
        try:
            if self._writable:
                self.wait()
        finally:
            self._manager.close()

    def _finish_writing(self, patient: bool = True) -> bool:
        """Wait for the checkpoint that is being written, if any; return whether it is on disk."""
        done = self._attempt(self._manager.wait_until_finished, patient)
        if done and self._pending:
            self._retry.succeeded()
        self._pending = False
        return done

    def _attempt(self, action: Callable[[], Any], patient: bool = True) -> bool:
        """Run an action that writes, see `CheckpointRetry.attempt`."""
        done = self._retry.attempt(action, patient)
        if not done:
            self._manager.reload()  # it has dropped the checkpoints that it was about to delete
        return done

    def _restore_latest(self, steps: list[int], abstract_state: PyTree) -> Restored | None:
        """Restore the newest intact checkpoint; damaged ones are moved only if there is an intact one."""
        damaged: dict[int, _DamagedError] = {}
        for step in reversed(steps):
            try:
                restored = self._read(step, abstract_state)
            except _DamagedError as error:
                damaged[step] = error
                continue
            for bad, error in damaged.items():
                self._set_aside(bad, error)
            return restored
        if damaged:
            step, error = next(iter(damaged.items()))
            raise UserError(
                f"No checkpoint in {self._directory} can be read (step {step}: {error}); restore one from a backup, or "
                "give another --workdir to start over."
            )
        return None

    def _read(self, step: int, abstract_state: PyTree) -> Restored:
        """Read one checkpoint.

        Raises:
          _DamagedError: its files are damaged, or cannot be read.
          UserError: it is of another architecture.
          TryAgainError: one of several processes could not read it.
          Exception: errors with another cause than the checkpoint: too little memory, a transient error of storage.
        """
        path = self._directory / str(step)
        corruption = broadcast_from_primary(
            lambda: find_corruption(path)
        )  # all processes must reach the same conclusion
        if corruption is not None:
            raise _DamagedError(corruption)
        try:
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            saved = ocp.StandardCheckpointHandler().metadata(path / "state").tree
            if isinstance(abstract_state, dict):
                saved = {name: saved[name] for name in abstract_state}
            check_architecture(saved, abstract_state, path)
            state = self._read_state(step, path, abstract_state)
        except UserError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many types for files that are missing or cut short
            if "RESOURCE_EXHAUSTED" in str(error) or is_transient(error):
                raise
            if jax.process_count() > 1:  # the others wait for this one inside Orbax: it cannot try another checkpoint
                raise TryAgainError(
                    f"The checkpoint {path} cannot be read in process {jax.process_index()} ({first_line(error)}); "
                    "check its storage and start all processes again."
                ) from error
            raise _DamagedError(first_line(error)) from error
        return Restored(step, state, meta["data"], meta["config"])

    def _read_state(self, step: int, path: Path, abstract_state: PyTree) -> PyTree:
        if not isinstance(abstract_state, dict):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
            return self._manager.restore(step, args=args)["state"]
        args = ocp.args.PyTreeRestore(
            abstract_state, ocp.checkpoint_utils.construct_restore_args(abstract_state), partial_restore=True
        )
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path / "state", args=args)

    def _move(self, steps: Sequence[int], folder: str, with_evaluations: bool = False) -> list[Path]:
        """Move checkpoints to a folder of the workdir; all processes must call it."""

        def move(step: int) -> Path:
            target = self._directory.parent / folder / str(step)
            target.parent.mkdir(exist_ok=True)
            while target.exists():
                target = target.with_name(f"{target.name}_")
            (self._directory / str(step)).rename(target)
            if with_evaluations:
                self._records.copy_evaluation(step, target)
            return target

        targets = broadcast_from_primary(lambda: [move(step) for step in steps])
        self._manager.reload()
        return targets

    def _set_aside(self, step: int, reason: Exception) -> None:
        message = f"The checkpoint of step {step} is damaged ({reason})"
        if self._writable:
            [target] = self._move([step], "damaged_checkpoints")
            message += f"; it was moved to {target}"
        print_on_primary(f"{message}; going back to the one before.")

    def _write_digests(self) -> None:
        """Write digests in the background, when a checkpoint's files are complete and before it gets its final name."""
        if jax.process_index() > 0:
            return
        for state in self._directory.glob("*/state"):
            if not (state.parent / FILES).exists():
                write_digests(state.parent)


class _KeepSteps(policies.PreservationPolicy):
    """Orbax policy that keeps the steps that a function returns.

    Args:
      steps_to_keep: steps → those to keep; it may return others too.
    """

    def __init__(self, steps_to_keep: Callable[[Sequence[int]], set[int]]) -> None:
        self._steps_to_keep = steps_to_keep

    @override
    def should_preserve(
        self, checkpoints: Sequence[policies.PolicyCheckpointInfo], *, context: policies.PreservationContext
    ) -> Sequence[bool]:
        keep = self._steps_to_keep([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in keep for checkpoint in checkpoints]


class _DamagedError(Exception):
    """A checkpoint that cannot be read; the message says why."""
