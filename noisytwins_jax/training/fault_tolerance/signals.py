"""Requests to stop (SIGTERM, Ctrl-C, a preemption notice), which all processes follow at the same step."""

import collections
import contextlib
import enum
import signal
from types import TracebackType
from typing import Self

import jax
import numpy as np

from noisytwins_jax.training.fault_tolerance.preemption import PreemptionWatch
from noisytwins_jax.utils.multihost import gather_rows


class Reason(enum.IntEnum):
    """Reason to stop; processes with different reasons all report the largest."""

    NONE = 0
    NOTICE = 1
    SIGTERM = 2
    SIGINT = 3


_NAMES = {Reason.NONE: "nothing", Reason.NOTICE: "a preemption notice"}


class StopSignal:
    """Context in which SIGTERM (preemption) and Ctrl-C request a stop instead of ending the process.

    A second Ctrl-C ends it at once. Enter it on the main thread, where Python handles signals.

    Args:
      watch_preemption: also watch Google Cloud's metadata server for a notice, which comes earlier than SIGTERM.
      lag: with several processes, how many calls of `agreed` later a request takes effect. The processes exchange
        requests on the devices, after the work dispatched so far; waiting for the answer would leave the devices idle.
    """

    def __init__(self, watch_preemption: bool = False, lag: int = 2) -> None:
        self._watch_preemption, self._lag = watch_preemption, lag
        self._own = self._agreed = Reason.NONE
        self._in_flight: collections.deque[jax.Array] = collections.deque()
        self._previous: dict[int, object] = {}
        self._exits = contextlib.ExitStack()

    def agreed(self) -> bool:
        """Return whether to stop now: the same answer in all processes, which must all call it after the same steps.

        A single process stops as soon as it is asked to.
        """
        if jax.process_count() == 1:
            self._agreed = self._own
        else:
            self._in_flight.append(gather_rows(np.array([self._own], np.int32)))
            if len(self._in_flight) > self._lag:
                self._agreed = Reason(int(np.max(self._in_flight.popleft())))
        return self._agreed != Reason.NONE

    @property
    def name(self) -> str:
        """Return the reason: ``SIGTERM``, ``SIGINT`` or ``a preemption notice``."""
        reason = self._agreed or self._own
        return _NAMES.get(reason, reason.name)

    @property
    def exit_status(self) -> int:
        """Return 128 plus the signal's number, as shells do: 130 for Ctrl-C, else 143 (SIGTERM)."""
        return 128 + (signal.SIGINT if (self._agreed or self._own) == Reason.SIGINT else signal.SIGTERM)

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        if self._watch_preemption:
            self._exits.enter_context(PreemptionWatch(lambda: self._request(Reason.NOTICE)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python
        self._exits.close()

    def _handle(self, number: int, _: object) -> None:
        self._request(Reason[signal.Signals(number).name])
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _request(self, reason: Reason) -> None:
        self._own = max(self._own, reason)
