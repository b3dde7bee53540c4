"""What the processes of a run do together outside the compiled programs: share work, and let the first one write.

Every process must call these functions, in the same order; with one process they do nothing special.
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
    """Prints on the first process only; the others need not call it."""
    if jax.process_index() == 0:
        print(text, file=file or sys.stdout, flush=True)


def broadcast_from_primary(function: Callable[[], T]) -> T:
    """Calls ``function()`` on the first process while the others wait; all return its result, which can be pickled.

    Raises:
      UserError: in all processes, if ``function`` raises it.
    """
    if jax.process_count() == 1:
        return function()
    first = jax.process_index() == 0
    with raise_on_all_processes():
        data = pickle.dumps(function()) if first else b""
    size = int(broadcast_one_to_all(np.int32(len(data))))
    content = np.frombuffer(data, np.uint8) if first else np.zeros(size, np.uint8)
    return pickle.loads(np.asarray(broadcast_one_to_all(content)).tobytes())


def distributed_map(compute: Callable[[np.ndarray], tuple[np.ndarray, ...]], n: int) -> tuple[np.ndarray, ...]:
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
    with raise_on_all_processes():
        arrays = compute(rows)
    return tuple(_gather_rows(x)[:n] for x in arrays)


def local_copy(tree: PyTree) -> PyTree:
    """A tree of which this process holds every array whole, from one that may be spread over processes."""
    spread = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array) and not x.is_fully_addressable]
    if not spread:
        return tree
    mesh = spread[0].sharding.mesh  # type: ignore[attr-defined]  # spread arrays have a NamedSharding
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


@contextlib.contextmanager
def raise_on_all_processes() -> Iterator[None]:
    """If the body raises in some processes, the others raise a `UserError` instead of waiting for them for ever.

    To be entered by all processes, with a body that may fail in one of them (reading files, for example) and in which
    the processes do not wait for each other.

    Raises:
      Exception: the body's own.
      UserError: in the other processes: what the first of those that failed said, with its number.
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
    """Every process's text, in the order of processes. All processes must call it; one alone has its own."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = np.asarray(gather_rows(np.array([len(data)], np.int32)))[:, 0]
    padded = np.zeros(max(1, lengths.max()), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(gather_rows(padded))
    return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]


def gather_rows(row: np.ndarray) -> jax.Array:
    """``[n]`` of every process as ``[processes, n]`` on every device.

    All processes must call it, with the same shape and dtype. It returns before the devices have done it.
    """
    sharding, replicate = _process_layout()
    return replicate(jax.make_array_from_process_local_data(sharding, row[None]))


@functools.cache
def _process_layout() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """A row for each process, and the program that gathers the rows."""
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    mesh = Mesh(np.array(devices).reshape(jax.process_count(), -1), ("process", "local"))
    gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return NamedSharding(mesh, PartitionSpec("process")), gather


def name_processes(processes: list[int]) -> str:
    """``process 3``, ``processes 0 and 2``, ``processes 0, 1, 2 and 61 others``."""
    if len(processes) == 1:
        return f"process {processes[0]}"
    shown = [str(p) for p in processes] if len(processes) <= 4 else [*map(str, processes[:3])]
    last = shown.pop() if len(processes) <= 4 else f"{len(processes) - 3} others"
    return f"processes {', '.join(shown)} and {last}"
