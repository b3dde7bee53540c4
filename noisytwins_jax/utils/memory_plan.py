"""The compiler's memory plan of a program."""

from typing import Any


def memory_plan(program: Any) -> dict[str, int]:
    """Return the bytes that a compiled program holds on a device, by kind, and ``all`` of them.

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
