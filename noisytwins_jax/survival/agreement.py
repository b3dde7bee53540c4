"""What all processes of a run must have alike: configuration, code and data, or the news that one of them failed."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import noisytwins_jax
from noisytwins_jax.errors import UserError

_SHOWN = 80  # characters of a value in a message


def check_agreement(facts: Mapping[str, str]) -> None:
    """Compares what every process believes about the run; to be called by all of them, before any long work.

    Args:
      facts: value by name, for example every field of the configuration, `code_fingerprint`, the version of JAX, the
        fingerprint of the data. A name that a process lacks counts as different.

    Raises:
      UserError: the same in every process: the first name whose values differ, and who has which.
    """
    everyone = [json.loads(text) for text in gather_strings(json.dumps(dict(facts)))]
    if different := _first_difference(everyone):
        raise UserError(different)


def _first_difference(everyone: list[dict[str, str]]) -> str | None:
    """A sentence about the first fact that is not the same in all processes."""
    names = list(dict.fromkeys(name for facts in everyone for name in facts))
    different = [name for name in names if len({facts.get(name) for facts in everyone}) > 1]
    if not different:
        return None
    holders: dict[str | None, list[int]] = {}
    for process, facts in enumerate(everyone):
        holders.setdefault(facts.get(different[0]), []).append(process)
    values = [f"{_short(value)} in {name_processes(processes)}" for value, processes in holders.items()]
    more = f" ({len(different) - 1} more differ)" if len(different) > 1 else ""
    return (
        f"The processes of this run differ in {different[0]}: {', '.join(values)}{more}; give all of them the same "
        "command, code and data."
    )


def check_same_data(saved: Mapping[str, Any], fingerprint: str) -> None:
    """Compares the data that a checkpoint was trained on with this run's.

    Args:
      saved: the position of the data as the checkpoint has it; without ``fingerprint`` (as older ones) all is well.
      fingerprint: of this run's training images.

    Raises:
      UserError: they differ.
    """
    before = saved.get("fingerprint", fingerprint)
    if before != fingerprint:
        raise UserError(
            f"The training images are not those that the checkpoint was trained on (fingerprint {fingerprint}, then "
            f"{before}); give the same data to go on, or another --workdir."
        )


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
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


def code_fingerprint() -> str:
    """Version of this package and SHA-256 (16 hex digits) of its Python files, as ``0.1.0+1f0c…``."""
    package = Path(noisytwins_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{noisytwins_jax.__version__}+{digest.hexdigest()[:16]}"


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


def _short(value: str | None) -> str:
    if value is None:
        return "(absent)"
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
