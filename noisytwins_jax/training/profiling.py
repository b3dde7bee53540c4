"""Where a training run's time and memory go: figures for the log, and a trace of a few steps."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from noisytwins_jax.config.groups import traced_steps

SPEED = ("img_per_second", "ms_per_step", "input_wait", "device_memory_gb")  # in the log; not what is trained


class Stopwatch:
    """Time of training steps, and the part of it spent waiting for input; other work can be left out.

    Args:
      clock: seconds, monotonic; replaced in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Start again from zero."""
        self._seconds = self._waited = 0.0
        self._since = self._clock()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside counts as waiting for input."""
        began = self._clock()
        yield
        self._waited += self._clock() - began

    def pause(self) -> None:
        """What follows, until `resume`, is no training: evaluation, writing, pictures."""
        self._seconds += self._clock() - self._since

    def resume(self) -> None:
        """Training goes on."""
        self._since = self._clock()

    def lap(self, steps: int, images_per_step: int) -> dict[str, float]:
        """Figures of the `steps` since the last lap; starts the next.

        Returns:
          ``img_per_second`` (real images over all devices), ``ms_per_step``, ``input_wait`` (fraction of the time), and,
          where devices tell, ``device_memory_gb`` (the most that the first local device has held so far).
        """
        self.pause()
        self.resume()
        seconds, waited = max(self._seconds, 1e-9), self._waited
        self._seconds = self._waited = 0.0
        figures = {
            "img_per_second": steps * images_per_step / seconds,
            "ms_per_step": 1000 * seconds / max(steps, 1),
            "input_wait": waited / seconds,
        }
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            figures["device_memory_gb"] = memory["peak_bytes_in_use"] / 1e9
        return figures


class Tracer:
    """Writes a trace of some steps into ``<workdir>/profile``, for TensorBoard's profiler or Perfetto.

    Args:
      steps: ``config.profile.steps``; see `traced_steps`.
      workdir: the run.
      enabled: one process of a run traces; in the others this does nothing.
    """

    def __init__(self, steps: str, workdir: Path, enabled: bool = True):
        self.directory = workdir / "profile"
        self._steps = traced_steps(steps) if enabled else None
        self._active = False

    def before(self, first: int, last: int) -> None:
        """To be called before steps `first` to `last` (from 1), which run together."""
        if self._steps is not None and not self._active and first <= self._steps[1] and last >= self._steps[0]:
            jax.profiler.start_trace(self.directory)
            self._active = True

    def after(self, last: int, result: Any) -> bool:
        """To be called after step `last` with arrays that it computed; whether a trace was finished."""
        if not self._active or last < self._steps[1]:
            return False
        jax.block_until_ready(result)
        self.close()
        return True

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._active:
            jax.profiler.stop_trace()
        self._steps, self._active = None, False
