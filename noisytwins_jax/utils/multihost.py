"""Communication between the processes of a run outside compiled programs.

All processes must call these functions, in the same order, unless stated otherwise. The primary process is the first.
"""

import contextlib
import functools
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, TypeVar

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from noisytwins_jax.utils.errors import UserError

PyTree = Any
T = TypeVar("T")


def print_on_primary(text: str, file: TextIO | None = None) -> None:
    """Print on the primary process only; the others need not call it."""
    if jax.process_index() == 0:
        print(text, file=file or sys.stdout, flush=True)


def broadcast_from_primary(function: Callable[[], T]) -> T:
    """Call `function` on the primary process while the others wait; return its result, which is pickled, on all.

    Raises:
      UserError: in all processes, if `function` raises it.
    """
    if jax.process_count() == 1:
        return function()
    primary = jax.process_index() == 0
    with raise_on_all_processes():
        data = pickle.dumps(function()) if primary else b""
    size = int(broadcast_one_to_all(np.int32(len(data))))
    content = np.frombuffer(data, np.uint8) if primary else np.zeros(size, np.uint8)
    return pickle.loads(np.asarray(broadcast_one_to_all(content)).tobytes())


def distributed_map(compute: Callable[[np.ndarray], tuple[np.ndarray, ...]], n: int) -> tuple[np.ndarray, ...]:
    """Compute rows 0 to n - 1, each process an equal part of them; return all rows on all processes.

    Args:
      compute: row indices int64 ``[m]``, m ≥ 1 → arrays ``[m, …]`` on the host. The first rows go to the first process;
        if the number of processes does not divide n, the last row is computed more than once.
      n: number of rows, at least 1.

    Returns:
      Arrays ``[n, …]``, bit-identical on all processes.

    Raises:
      UserError: in all processes, if `compute` raises it in one.
    """
    processes = jax.process_count()
    if processes == 1:
        return compute(np.arange(n))
    part = -(-n // processes)
    rows = np.minimum(jax.process_index() * part + np.arange(part), n - 1)
    with raise_on_all_processes():
        arrays = compute(rows)
    return tuple(_gather_rows(x)[:n] for x in arrays)


def local_copy(tree: PyTree) -> PyTree:
    """Return a copy on the host of a tree that is spread over processes; a tree that is not is returned as it is."""
    spread = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array) and not x.is_fully_addressable]
    if not spread:
        return tree
    mesh = spread[0].sharding.mesh  # type: ignore[attr-defined]  # spread arrays have a NamedSharding
    replicated = jax.jit(lambda leaves: leaves, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.tree.map(np.asarray, replicated)


def _gather_rows(x: np.ndarray) -> np.ndarray:
    """Concatenate the rows of all processes. As bytes: devices do not support every type of the host."""
    x = np.ascontiguousarray(x)
    if not x.size:  # empty rows
        return np.zeros((jax.process_count() * len(x), *x.shape[1:]), x.dtype)
    row_bytes = x.reshape(len(x), -1).view(np.uint8)
    gathered = np.ascontiguousarray(process_allgather(row_bytes, tiled=True))
    return gathered.view(x.dtype).reshape(-1, *x.shape[1:])


@contextlib.contextmanager
def raise_on_all_processes() -> Iterator[None]:
    """Raise a `UserError` in all processes if the body raises in some, so that the others do not wait forever.

    All processes must enter it, with a body that may fail in one of them (reading files, for example) and in which they
    do not wait for each other.

    Raises:
      Exception: of the body, in the processes where it failed.
      UserError: in the other processes: the message of the first process that failed, with its number.
    """
    own = None
    try:
        yield
    except Exception as error:
        own = error
    messages = gather_strings("" if own is None else str(own) or "failed")
    if own is not None:
        raise own
    failed = [process for process, message in enumerate(messages) if message]
    if failed:
        raise UserError(f"Process {failed[0]}: {messages[failed[0]]}")


def gather_strings(text: str) -> list[str]:
    """Return the texts of all processes, in their order."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = np.asarray(gather_rows(np.array([len(data)], np.int32)))[:, 0]
    padded = np.zeros(max(1, lengths.max()), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(gather_rows(padded))
    return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]


def gather_rows(row: np.ndarray) -> jax.Array:
    """Gather ``[n]`` of every process, all of the same dtype, as ``[processes, n]`` on every device, asynchronously."""
    sharding, replicate = _process_layout()
    return replicate(jax.make_array_from_process_local_data(sharding, row[None]))


@functools.cache
def _process_layout() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """Return the sharding of one row per process, and the program that gathers the rows."""
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    mesh = Mesh(np.array(devices).reshape(jax.process_count(), -1), ("process", "local"))
    gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return NamedSharding(mesh, PartitionSpec("process")), gather


def name_processes(processes: list[int]) -> str:
    """Name processes as ``process 3``, ``processes 0 and 2`` or ``processes 0, 1, 2 and 61 others``."""
    if len(processes) == 1:
        return f"process {processes[0]}"
    if len(processes) <= 4:
        *names, last = map(str, processes)
    else:
        names, last = [str(process) for process in processes[:3]], f"{len(processes) - 3} others"
    return f"processes {', '.join(names)} and {last}"
