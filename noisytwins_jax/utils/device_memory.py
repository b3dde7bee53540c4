"""Memory of a device: what compiled programs need, what there is, and errors that say that it was not enough."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax

from noisytwins_jax.utils.errors import UserError


def memory_plan(program: Any) -> dict[str, int]:
    """Return the bytes that a compiled program holds on a device by the compiler's plan, by kind, and ``all`` of them.

    Donated arguments are returned as outputs and counted in both; ``aliased`` is their size.
    """
    memory = program.memory_analysis()
    kinds = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }
    return kinds | {"all": kinds["arguments"] + kinds["outputs"] - kinds["aliased"] + kinds["temporary"]}


def available_bytes() -> float:
    """Return what the device with the least memory may hold; on CPUs, its share of the machine's memory."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    if None not in limits:
        return min(limits)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(limits)


def memory_line(what: str, needed: float, program: str) -> str:
    """Return a line on the memory that something needs on a device, most of all in `program`, beside what there is."""
    has = readable_bytes(available_bytes())
    return f"{what} needs {readable_bytes(needed)} of a device's {has} of memory (program: {program})."


def readable_bytes(size: float) -> str:
    """Return a size in MB or GB with three digits."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


@contextlib.contextmanager
def explain_out_of_memory(explain: Callable[[], UserError]) -> Iterator[None]:
    """Replace an out-of-memory error of a device, or of its compiler, by the error that `explain` returns."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise explain() from error
