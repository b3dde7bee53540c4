"""Checkpoints: state, position in the data and configuration in one atomic step. The only file that knows Orbax."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from noisytwins_jax.training.checkpoint_integrity import FILES, check_architecture, find_corruption, write_digests
from noisytwins_jax.training.checkpoint_records import CheckpointRecords
from noisytwins_jax.training.fault_tolerance.checkpoint_retry import CheckpointRetry
from noisytwins_jax.utils.errors import TryAgainError, UserError, first_line
from noisytwins_jax.utils.multihost import broadcast_from_primary
from noisytwins_jax.utils.retry import is_transient

PyTree = Any
TIMEOUT = 600  # seconds for writing a checkpoint, and for which a process waits for others that cannot
WAIT = 5.0  # seconds before a checkpoint that could not be written is tried again


class Restored(NamedTuple):
    """What a checkpoint holds."""

    step: int
    state: PyTree
    # Position and fingerprint of the training data, portable between process counts, and `returns`: how many of the
    # run's returns after a collapse the state has behind it.
    data: dict[str, Any]
    config: dict[str, Any]  # flattened configuration


class Checkpoints:
    """The checkpoints of a workdir, written in the background: the latest, the best one and those pinned are kept.

    The best has the lowest distance of those that were evaluated under the protocol of the evaluation made last.

    Two of the latest by default, so that a run whose newest checkpoint was damaged on disk can go back to a whole one.
    To notice damage, every file's CRC-32 is kept beside it: the array storage below finds missing and short files, but
    not changed values.

    Saving copies the state off the device before it returns: donating the state to the next program is safe.

    Args:
      workdir: the run.
      writable: for the one process group that trains. Others only read, and leave what is being written alone.
      keep: how many of the latest are kept, at least 1.
    """

    def __init__(self, workdir: Path, writable: bool = False, keep: int = 2):
        self._directory = Path(workdir).absolute() / "checkpoints"
        self._writable = writable
        self._saving = CheckpointRetry(self._directory, "*.orbax-checkpoint-tmp*")
        self._pending = False  # whether a checkpoint is being written
        self._records = CheckpointRecords(self._directory)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                read_only=not writable,
                create=writable,
                cleanup_tmp_directories=writable,
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(keep), _KeepSome(self._records.worth)]
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
        except Exception as failure:  # the error on its way is the one to show
            print(f"The last checkpoint could not be written: {failure}", file=sys.stderr, flush=True)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def newest_at_or_before(self, step: int) -> int | None:
        """The newest step up to this one that has a checkpoint; None if there is none."""
        return max((saved for saved in self.steps() if saved <= step), default=None)

    def pinned_steps(self) -> list[int]:
        """Steps whose checkpoint is kept for good, oldest first."""
        return [step for step in self.steps() if step in self._records.pinned]

    def evaluated_steps(self) -> list[int]:
        """Steps that were evaluated, oldest first; some may have no checkpoint any more."""
        return sorted(self._records.evaluations)

    def best_step(self) -> int | None:
        """Of the steps that have a checkpoint, the one with the lowest distance under the protocol used last.

        None where no checkpoint has a distance.
        """
        return self._records.best_of(self.steps())

    def record(self, step: int, distance: float | None, protocol: str) -> None:
        """See `CheckpointRecords.record`; the next `save` keeps that step if it is the best."""
        self._records.record(step, distance, protocol)

    def pin(self, step: int) -> None:
        """Keeps the checkpoint of a saved step for good, also when the run goes on later.

        To be called by all processes of the run that trains.

        Raises:
          ValueError: the step has no checkpoint.
          OSError: the file cannot be written.
        """
        if step not in self.steps():
            raise ValueError(f"step {step} has no checkpoint to pin in {self._directory}")
        self._records.pin(step)

    def discard_after(self, step: int) -> list[Path]:
        """Moves the checkpoints of later steps to the workdir's ``collapsed_checkpoints``: training went back.

        Nothing is deleted: where such a checkpoint was evaluated, that goes along as its ``evaluations.json``. To be
        called by all processes of the run that trains; what is being written is waited for.

        Args:
          step: what training goes on from; later ones are given up, with their evaluations and pins.

        Returns:
          Where the checkpoints are now, oldest first.

        Raises:
          UserError: in all processes: what was being written cannot be written.
          OSError: a checkpoint cannot be moved.
        """
        self.wait()
        # The newest first: if this is cut short, the latest that is left is as near to `step` as can be.
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
        """Starts writing a checkpoint; returns before it is on disk. A step that is already saved is left as it is.

        Args:
          step: steps done.
          state: tree of arrays.
          data: see `Restored`: plain values.
          config: flattened configuration.
          wait: return when it is on disk. While storage fails for a moment it is tried again; otherwise (and if that
            is noticed in the background) a message is printed, and the next checkpoint is tried.

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
            self._records.discard_evaluation(step)  # it was of another state, before training went back
        while True:
            self._pending = self._attempt(start)
            if not wait or (self._pending and self._finish_writing()):
                return
            time.sleep(WAIT)

    def restore(self, abstract_state: PyTree, which: str | int = "latest") -> Restored | None:
        """Reads a checkpoint into the shapes, dtypes and shardings of `abstract_state`.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` with shardings; any number of devices. A dict has the names of
            some fields of the state: only those are read.
          which: ``"latest"``, ``"best"`` or a step. If the latest is damaged, the one before it is taken, with a
            message; a run that trains also sets the damaged one aside (it is not deleted), to save that step again.

        Returns:
          The checkpoint, or ``None`` where the workdir has none.

        Raises:
          UserError: the wanted step does not exist, none can be read, or it was saved by another architecture.
        """
        steps = self.steps()
        if which == "latest":
            return self._restore_latest(steps, abstract_state)
        if which == "best":
            step = self.best_step()
        else:
            step = int(which) if str(which).isdecimal() else None
        if step not in steps:
            have = ", ".join(map(str, steps)) or "none"
            wanted = "evaluated checkpoint" if which == "best" else f"checkpoint {which!r}"
            raise UserError(
                f"There is no {wanted} in {self._directory}; ask for latest, best or one of the steps there ({have})."
            )
        try:
            return self._read(step, abstract_state)
        except _DamagedError as error:
            raise UserError(
                f"The checkpoint of step {step} in {self._directory} is damaged ({error}); use --checkpoint=latest."
            ) from None

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
          UserError: in all processes: it could not be written.
        """
        self._finish_writing(patient=False)

    def close(self) -> None:
        """Finishes writing and releases the directory.

        Raises:
          UserError: in all processes: the last checkpoint could not be written.
        """
        try:
            if self._writable:
                self.wait()
        finally:
            self._manager.close()

    def _finish_writing(self, patient: bool = True) -> bool:
        """Waits for the checkpoint that is being written; whether it, if any, got on disk. See `CheckpointRetry.attempt`."""
        done = self._attempt(self._manager.wait_until_finished, patient)
        if done and self._pending:
            self._saving.succeeded()
        self._pending = False
        return done

    def _attempt(self, action: Callable[[], Any], patient: bool = True) -> bool:
        """See `CheckpointRetry.attempt`."""
        done = self._saving.attempt(action, patient)
        if not done:
            self._manager.reload()  # it has forgotten the checkpoints that it was about to delete
        return done

    def _restore_latest(self, steps: list[int], abstract_state: PyTree) -> Restored | None:
        """The newest whole checkpoint; damaged ones are touched only when a whole one is found."""
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
                "give another --workdir to start anew."
            )
        return None

    def _read(self, step: int, abstract_state: PyTree) -> Restored:
        """Reads one checkpoint.

        Raises:
          _DamagedError: its files are not whole, or cannot be read.
          UserError: it was saved by another architecture.
          TryAgainError: one of several processes could not read it.
          Exception: what is no fault of the checkpoint: too little memory, storage that fails for a moment.
        """
        path = self._directory / str(step)
        found = broadcast_from_primary(lambda: find_corruption(path))  # all have to come to the same conclusion
        if found is not None:
            raise _DamagedError(found)
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
                    f"The checkpoint {path} cannot be read in process {jax.process_index()} ({first_line(error)}); see "
                    "to its storage and start all processes again."
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
        """Moves checkpoints to a folder of the workdir, for all processes to call."""

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
        if jax.process_index() == 0:
            print(f"{message}; going back to the one before.", flush=True)

    def _write_digests(self) -> None:
        """Runs in the background when the files of a checkpoint are complete, before it gets its final name."""
        if jax.process_index() > 0:
            return
        for state in self._directory.glob("*/state"):
            if not (state.parent / FILES).exists():
                write_digests(state.parent)


class _KeepSome(policies.PreservationPolicy):
    """Keeps some checkpoints, or none.

    Args:
      worth: gives those of some steps that are worth keeping; it may give others too.
    """

    def __init__(self, worth: Callable[[Sequence[int]], set[int]]) -> None:
        self._worth = worth

    def should_preserve(
        self, checkpoints: Sequence[policies.PolicyCheckpointInfo], *, context: policies.PreservationContext
    ) -> Sequence[bool]:
        kept = self._worth([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


class _DamagedError(Exception):
    """A checkpoint that cannot be read; the message says why."""
