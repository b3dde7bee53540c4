"""Checks that losses and tensors are finite, and the error message for a run that diverged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from noisytwins_jax.utils.errors import UserError

PyTree = Any
CHECKED_PREFIXES = ("loss/", "logits/")  # of metrics that must be finite; others, such as the W ratio, may be undefined


class Diverged(Exception):
    """A loss or a tensor is not finite."""

    def __init__(self, step: int, loss: str, tensors: list[str]):
        super().__init__(step, loss, tensors)
        self.step, self.loss, self.tensors = step, loss, tensors


def find_nonfinite_metric(updates: Sequence[Mapping[str, Any]]) -> tuple[int, str] | None:
    """Find the first loss or logit that is NaN or infinite.

    Args:
      updates: metrics of every update in the order they ran, fetched from the device; values are numbers or arrays.

    Returns:
      Index in `updates` and name, or None if all are finite. Of several in the same update, the most specific one:
      ``loss/generator/noisytwins`` rather than the sum ``loss/generator``.
    """
    for index, metrics in enumerate(updates):
        bad = [
            name
            for name, value in metrics.items()
            if name.startswith(CHECKED_PREFIXES) and not np.isfinite(value).all()
        ]
        if bad:
            return index, max(bad, key=lambda name: name.count("/"))
    return None


def find_nonfinite_tensors(state: PyTree) -> list[str]:
    """Find the tensors of a state that hold NaN or infinity, in one program on the devices.

    With several processes all must call it.

    Returns:
      Lines such as ``discriminator/params/b8/conv0/weight: 12 of 4096 values are NaN``; empty if all are finite.
      Parameters come first, then statistics, optimiser state and averages.
    """
    leaves = {
        leaf_name(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    if not leaves:
        return []
    sharding = next(iter(leaves.values())).sharding
    replicated = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
    counts = np.asarray(jax.jit(_count_nonfinite, out_shardings=replicated)(list(leaves.values())))
    lines = []
    for (name, leaf), (nan, inf) in zip(leaves.items(), counts, strict=True):
        parts = [f"{n} of {leaf.size} values are {kind}" for n, kind in ((nan, "NaN"), (inf, "infinite")) if n]
        if parts:
            lines.append(f"{name}: {' and '.join(parts)}")
    return sorted(lines, key=_rank)


def check_finite(updates: list[tuple[int, dict[str, float]]], state: PyTree, thorough: bool) -> None:
    """Check that the losses of every update are finite, and the tensors of the state if `thorough`.

    Args:
      updates: step and metrics of every update, in the order they ran.
      state: the state after them.
      thorough: whether to check the tensors where all losses are finite, as before a state is saved.

    Raises:
      Diverged: a loss or a tensor is not finite.
    """
    bad = find_nonfinite_metric([metrics for _, metrics in updates])
    tensors = find_nonfinite_tensors(state) if bad or thorough else []
    if bad:
        raise Diverged(updates[bad[0]][0], bad[1], tensors)
    if tensors:
        raise Diverged(updates[-1][0], tensors[0].partition(":")[0], tensors)


def divergence_error(
    step: int, loss: str, tensors: Sequence[str], checkpoints: Path, last_good: int | None, rewinds: int = 0
) -> UserError:
    """Return the error for a run that diverged.

    Args:
      step: the step at which a loss was first not finite.
      loss: the name of that loss.
      tensors: lines of `find_nonfinite_tensors`.
      checkpoints: the directory that holds the checkpoints.
      last_good: step of the newest checkpoint; None if there is none.
      rewinds: how often the run went back to that checkpoint already.
    """
    more = f" (and {len(tensors) - 1} more tensors)" if len(tensors) > 1 else ""
    where = f"; {tensors[0]}{more}" if tensors else ""
    again = f" again after going back {rewinds} time(s)" if rewinds else ""
    kept = f"The last good checkpoint is step {last_good} in {checkpoints}" if last_good is not None else ""
    kept = kept or "There is no checkpoint yet"
    advice = ["lower the learning rates", "raise --config.r1.gamma"]
    advice += [] if rewinds else ["go on from there with other images: --config.faults.nonfinite=rewind"]
    return UserError(
        f"Training diverged{again} at step {step}: {loss} is not finite{where}. {kept}; "
        f"{', '.join(advice[:-1])} or {advice[-1]}."
    )


def _count_nonfinite(leaves: list[jax.Array]) -> jax.Array:
    """Count the values that are NaN and that are infinite, int32 ``[tensors, 2]``."""
    return jnp.stack([jnp.stack([jnp.isnan(x).sum(), jnp.isinf(x).sum()]) for x in leaves])


def _rank(line: str) -> int:
    """Return the sort key of a line: parameters, then other variables, then optimiser state, then averages."""
    parts = line.partition(":")[0].split("/")
    if parts[0] == "ema":
        return 3
    if "opt_state" in parts:
        return 2
    return 0 if "params" in parts else 1


def leaf_name(path: tuple[Any, ...]) -> str:
    """Return a leaf's path in a tree as text, such as ``discriminator/params/b8/conv0/weight``."""
    return "/".join(str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path)
