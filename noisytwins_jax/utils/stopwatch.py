"""Speed of training and memory of devices, for the log."""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax

SPEED_METRICS = ("img_per_second", "ms_per_step", "input_wait", "device_memory_gb")  # they differ from run to run


class Stopwatch:
    """Timer of training steps and of the time spent waiting for input; it can be paused for other work.

    Args:
      clock: returns seconds, monotonic; replaced in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Restart from zero."""
        self._seconds = self._waited = 0.0
        self._since = self._clock()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for input."""
        began = self._clock()
        yield
        self._waited += self._clock() - began

    def pause(self) -> None:
        """Stop counting until `resume`: for evaluation, writing, pictures."""
        self._seconds += self._clock() - self._since

    def resume(self) -> None:
        """Count time as training again."""
        self._since = self._clock()

    def lap(self, steps: int, images_per_step: int) -> dict[str, float]:
        """Compute the speed of the `steps` since the last lap, and start the next.

        Returns:
          ``img_per_second`` (real images over all devices), ``ms_per_step``, ``input_wait`` (fraction of the time), and,
          where the backend reports it, ``device_memory_gb`` (peak of the first local device).
        """
        self.pause()
        self.resume()
        seconds, waited = max(self._seconds, 1e-9), self._waited
        self._seconds = self._waited = 0.0
        metrics = {
            "img_per_second": steps * images_per_step / seconds,
            "ms_per_step": 1000 * seconds / max(steps, 1),
            "input_wait": waited / seconds,
        }
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            metrics["device_memory_gb"] = memory["peak_bytes_in_use"] / 1e9
        return metrics
