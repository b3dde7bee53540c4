"""What the processes of a run do together outside the compiled programs: share work, and let the first one write.

Every process must call these functions, in the same order; with one process they do nothing special.
"""

import pickle
import sys
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather
from jax.sharding import NamedSharding, PartitionSpec

from noisytwins_jax.survival.agreement import failing_together

PyTree = Any
T = TypeVar("T")


def say(text: str, file: TextIO | None = None) -> None:
    """Prints on the first process only; the others need not call it."""
    if jax.process_index() == 0:
        print(text, file=file or sys.stdout, flush=True)


def on_first_process(function: Callable[[], T]) -> T:
    """Calls ``function()`` on the first process while the others wait; all return its result, which can be pickled.

    Raises:
      UserError: in all processes, if ``function`` raises it.
    """
    if jax.process_count() == 1:
        return function()
    first = jax.process_index() == 0
    with failing_together():
        data = pickle.dumps(function()) if first else b""
    size = int(broadcast_one_to_all(np.int32(len(data))))
    content = np.frombuffer(data, np.uint8) if first else np.zeros(size, np.uint8)
    return pickle.loads(np.asarray(broadcast_one_to_all(content)).tobytes())


def shared_rows(compute: Callable[[np.ndarray], tuple[np.ndarray, ...]], n: int) -> tuple[np.ndarray, ...]:
    """What `compute` gives for rows 0 to n - 1: each process computes an equal part of them, and all get everything.

    Args:
      compute: row numbers int64 ``[m]``, m ≥ 1 → arrays ``[m, …]`` on the host. The first rows go to the first process;
        where n does not divide, the last row is computed more than once.
      n: at least 1.

    Returns:
      Arrays ``[n, …]``, bit for bit those of the process that computed them.

    Raises:
      UserError: in all processes, if ``compute`` raises it in one.
    """
    processes = jax.process_count()
    if processes == 1:
        return compute(np.arange(n))
    part = -(-n // processes)
    rows = np.minimum(jax.process_index() * part + np.arange(part), n - 1)
    with failing_together():
        arrays = compute(rows)
    return tuple(_gather_rows(x)[:n] for x in arrays)


def local_copy(tree: PyTree) -> PyTree:
    """A tree of which this process holds every array whole, from one that may be spread over processes."""
    spread = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array) and not x.is_fully_addressable]
    if not spread:
        return tree
    mesh = spread[0].sharding.mesh
    whole = jax.jit(lambda leaves: leaves, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.tree.map(np.asarray, whole)


def _gather_rows(x: np.ndarray) -> np.ndarray:
    """Puts the processes' rows together. As bytes: devices do not hold every type that the host has."""
    x = np.ascontiguousarray(x)
    if not x.size:  # rows of nothing
        return np.zeros((jax.process_count() * len(x), *x.shape[1:]), x.dtype)
    row_bytes = x.reshape(len(x), -1).view(np.uint8)
    gathered = np.ascontiguousarray(process_allgather(row_bytes, tiled=True))
    return gathered.view(x.dtype).reshape(-1, *x.shape[1:])
