"""Checkpoints: state, position in the data and configuration in one atomic step. The only file that knows Orbax."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from noisytwins_jax.errors import UserError

PyTree = Any
BEST_METRIC = "fid"  # lowest is best


class Restored(NamedTuple):
    """What a checkpoint holds."""

    step: int
    state: PyTree
    data: dict[str, int]  # position of the training data, portable between process counts
    config: dict[str, Any]  # flattened configuration


class Checkpoints:
    """The checkpoints of a workdir, written in the background: the latest two and the best one are kept.

    Two, so that a run whose newest checkpoint was damaged on disk can go back to a whole one.
    """

    def __init__(self, workdir: Path):
        self._directory = Path(workdir).absolute() / "checkpoints"
        best = policies.BestN(
            get_metric_fn=lambda m: m[BEST_METRIC], reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=lambda m: m[BEST_METRIC],
                best_mode="min",
                cleanup_tmp_directories=True,
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), best]),
            ),
        )

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: PyTree,
        data: dict[str, int],
        config: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts writing a checkpoint; returns before it is on disk. A step that is already saved is left as it is."""
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({"data": data, "config": config})
            ),
            metrics=metrics,
        )

    def restore(self, abstract_state: PyTree, which: str | int = "latest") -> Restored | None:
        """Reads a checkpoint into the shapes, dtypes and shardings of `abstract_state`.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` with shardings; any number of devices.
          which: ``"latest"``, ``"best"`` or a step. If the latest is damaged, it is set aside (not deleted) and the one
            before it is taken, with a message.

        Returns:
          The checkpoint, or ``None`` where the workdir has none.

        Raises:
          UserError: the wanted step does not exist, is damaged, or was saved by another architecture.
        """
        steps = self.steps()
        if which == "latest":
            for step in reversed(steps):
                restored = self._try_restore(step, abstract_state)
                if restored is not None:
                    return restored
                self._set_aside(step)
            return None
        step = self._manager.best_step() if which == "best" else int(which)
        if step not in steps:
            have = ", ".join(map(str, steps)) or "none"
            wanted = "evaluated checkpoint" if which == "best" else f"checkpoint of step {which}"
            raise UserError(f"There is no {wanted} in {self._directory} (steps there: {have}); choose one of those.")
        restored = self._try_restore(step, abstract_state)
        if restored is None:
            raise UserError(f"The checkpoint of step {step} in {self._directory} is damaged; use --checkpoint=latest.")
        return restored

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes writing and releases the directory."""
        self._manager.close()

    def _try_restore(self, step: int, abstract_state: PyTree) -> Restored | None:
        """The checkpoint of `step`, or ``None`` if its files are not whole."""
        try:
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            saved = self._manager.item_metadata(step)["state"]
            _check_architecture(saved, abstract_state, self._directory / str(step))
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state)))
        except UserError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many types for files that are missing or cut short
            logging.warning("Checkpoint %d cannot be read: %s", step, error)
            return None
        return Restored(step, state["state"], meta["data"], meta["config"])

    def _set_aside(self, step: int) -> None:
        target = self._directory.parent / "damaged_checkpoints" / str(step)
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        (self._directory / str(step)).rename(target)
        self._manager.reload()
        print(f"The checkpoint of step {step} is damaged; it was moved to {target}, going back to the one before.")


def _check_architecture(saved: PyTree, wanted: PyTree, path: Path) -> None:
    """Compares trees by name and shape, so that the message can say where they differ."""

    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {_name(key): tuple(leaf.shape) for key, leaf in leaves if hasattr(leaf, "shape")}

    ours, theirs = shapes(wanted), shapes(saved)
    ours = {name: shape for name, shape in ours.items() if name in theirs or "params" in name}
    different = sorted(name for name in ours if ours[name] != theirs.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"The checkpoint {path} is of another architecture: {name} has shape {theirs.get(name, 'absent')} there and "
            f"{ours[name]} in this configuration ({len(different)} such tensors); give the configuration it was trained "
            "with, or another --workdir."
        )


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path)
