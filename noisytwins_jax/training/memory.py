"""Memory of a device: what a training step will hold, said before it runs, and the settings that would fit if it is too much."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from noisytwins_jax.config import RunConfig
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.compiled_step import CompiledStep
from noisytwins_jax.training.micro_batches import micro_batch_counts
from noisytwins_jax.training.random_inputs import ClassTable
from noisytwins_jax.training.run import Run
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.utils.device_memory import (
    available_bytes,
    explain_out_of_memory,
    memory_line,
    memory_plan,
    readable_bytes,
)
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.multihost import print_on_primary
from noisytwins_jax.utils.sharding import Layout


class Need(NamedTuple):
    """The memory that the largest of some programs needs on a device."""

    bytes: float
    program: str


def largest_need(programs: Mapping[str, Any]) -> Need:
    """Return the need of the largest program; the state is among the arguments of each."""
    return max(Need(memory_plan(program)["all"], name) for name, program in programs.items())


class MemoryCheck:
    """Compares what a run's training step needs with what a device has, and names the settings that would fit."""

    def __init__(self, run: Run, table: ClassTable):
        self.run, self.table = run, table

    def compile(self) -> CompiledStep:
        """Compile the run's training step, and say how long it took and what it needs.

        Raises:
          UserError: it needs more than the device has.
        """
        print_on_primary("Compiling the training programs.")
        began = time.perf_counter()
        with self.explain():
            compiled = CompiledStep(self.run.step, self.table)
        print_on_primary(f"Compiled in {time.perf_counter() - began:.0f} s. {self.check(compiled.programs)}")
        return compiled

    def check(self, programs: Mapping[str, Any]) -> str:
        """Return a line on what compiled programs will hold on a device, beside what it has.

        Raises:
          UserError: it is more than the device has.
        """
        need = largest_need(programs)
        if need.bytes > available_bytes():
            raise self._too_large(f"{readable_bytes(need.bytes)} ({need.program})")
        return memory_line("Training", *need)

    def explain(self) -> contextlib.AbstractContextManager[None]:
        """Turn an out-of-memory error of the device, or of its compiler, into the `UserError` of `check`."""
        return explain_out_of_memory(lambda: self._too_large("more memory"))

    def _too_large(self, needed: str) -> UserError:
        available, found = available_bytes(), []
        for fields in self._smaller_settings():
            flags = " ".join(f"--config.{name}={value}" for name, value in fields.items())
            print_on_primary(f"The training step does not fit into memory. Compiling it with {flags} ...", sys.stderr)
            try:
                need = largest_need(self._compile(_replace_fields(self.run.config, fields))).bytes
            except jax.errors.JaxRuntimeError:  # some compilers refuse what does not fit
                continue
            found.append(f"{flags} needs {readable_bytes(need)}" + (" and fits" if need <= available else ""))
            if need <= available and "accumulation" in fields:
                break  # more micro-batches would need less still
        found.append("a smaller --config.batch_size needs less, too")
        return UserError(
            f"The training step needs {needed} on a device that has {readable_bytes(available)}: {'; '.join(found)}."
        )

    def _compile(self, config: RunConfig) -> Mapping[str, Any]:
        """Compile the programs of the step with another configuration."""
        train, layout = self.run.splits.train, Layout(fsdp=config.mesh.fsdp)
        step = TrainingStep(config, build_model(config, train.channels, train.num_classes), layout)
        return CompiledStep(step, self.table).programs

    def _smaller_settings(self) -> Iterator[dict[str, Any]]:
        """Yield fields that lower the need: those that cost least first, then more and more micro-batches."""
        config, layout = self.run.config, self.run.step.layout
        if config.dtype == "float32" and jax.default_backend() != "cpu":
            yield {"dtype": "bfloat16"}
        if config.mesh.fsdp == 1 and jax.device_count() > 1:
            yield {"mesh.fsdp": jax.device_count()}
        if not config.remat:
            yield {"remat": True}
        more = [n for n in micro_batch_counts(config, layout) if n > config.accumulation]
        yield from ({"accumulation": n} for n in more)
        if more and not config.remat:
            yield {"accumulation": more[-1], "remat": True}


def _replace_fields(config: RunConfig, fields: dict[str, Any]) -> RunConfig:
    """Replace fields by dotted path, of one group or none; micro-batches are then those of `accumulation`."""
    config = dataclasses.replace(config, device_batch=0)
    for path, value in fields.items():
        group, _, name = path.rpartition(".")
        if group:
            config = dataclasses.replace(
                config, **{group: dataclasses.replace(getattr(config, group), **{name: value})}
            )
        else:
            config = dataclasses.replace(config, **{name: value})
    return config
