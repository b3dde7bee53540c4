"""Memory of a device during an evaluation, said before it generates images."""

import functools

import jax

from noisytwins_jax.generation.sampler import Sampler
from noisytwins_jax.metrics.features import Embedder, Fakes
from noisytwins_jax.utils.device_memory import available_bytes, memory_line, memory_plan, readable_bytes
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.multihost import print_on_primary


def print_memory(fakes: Fakes, embedder: Embedder, size: tuple[int, int, int]) -> None:
    """Compile the programs for a batch of images of a size, and print what they will hold, once in a process.

    All variables stay on the devices, and the results and temporary arrays of one program after the other.
    """
    programs, sharding = {}, None
    if isinstance(fakes, Sampler):
        programs["generator"] = fakes.compile()
        sharding, _ = programs["generator"].output_shardings  # of the images, so that extractors are compiled only once
    programs |= embedder.compile(size, sharding)
    plans = {name: memory_plan(program) for name, program in programs.items()}
    in_use = [(device.memory_stats() or {}).get("bytes_in_use", 0) for device in jax.local_devices()]
    held = max(sum(plan["arguments"] for plan in plans.values()), *in_use)  # beside a training, its state, too
    added = {name: plan["outputs"] + plan["temporary"] for name, plan in plans.items()}
    largest = max(added, key=lambda name: added[name])
    _print_once(memory_line("Evaluating", held + added[largest], largest))


def too_little_memory() -> UserError:
    """Return the error of an evaluation that a device's memory was too small for."""
    return UserError(
        f"Evaluating needs more memory than a device's {readable_bytes(available_bytes())}: evaluate in a process of its own "
        "(--config.evaluation.interval_kimg=0 while training, then --mode=evaluate) or with fewer extractors "
        "(--config.evaluation.extractors)."
    )


@functools.cache
def _print_once(line: str) -> None:
    print_on_primary(line)
