"""A watchdog for runs that stall: it prints which process is late, and what that process is doing."""

import contextlib
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax

from noisytwins_jax.utils.multihost import name_processes

TRAINING = "training"
LOST_AFTER = 60.0  # seconds without a message, which should come every few
_KEY = "noisytwins_watchdog/"


class Heartbeat(NamedTuple):
    """The progress of a process."""

    step: int  # steps done
    doing: str
    patience: float


class PeerStatus(NamedTuple):
    """The last message of a process."""

    host: str
    heartbeat: Heartbeat
    count: int  # of its messages so far


class Watchdog:
    """Context in which a thread prints a message on stderr if no step ends for too long; it never stops anything.

    With several processes, each one's thread publishes its progress every few seconds in the key-value store of JAX's
    coordination service; the primary process compares and prints. The training thread only sets a variable.

    Args:
      minutes: how long no step may end before a message, and between two messages; 0: never.
      period: seconds between messages to the other processes.
      clock: returns seconds, monotonic.
    """

    def __init__(self, minutes: float, period: float = 3.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._period, self._clock = minutes * 60, period, clock
        now = clock()
        self._heartbeat, self._heartbeat_at = Heartbeat(0, "starting", 1.0), now
        self._step_at = self._reported_at = now
        self._count = 0
        self._peers: dict[int, tuple[PeerStatus, float]] = {}  # the latest status of every process, and when it came
        self._lost: set[int] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self._limit > 0:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def heartbeat(self, step: int | None = None, doing: str = TRAINING, patience: float = 1.0) -> None:
        """Record the progress of this process; cheap, call it several times a step, whenever something else begins.

        Args:
          step: steps done so far; None for as many as last time.
          doing: as in "process 3 is at step 12, waiting for input".
          patience: how many times longer than usual this may take, for evaluation or compilation. The processes wait
            for each other, so the largest one counts.
        """
        now = self._clock()
        step = self._heartbeat.step if step is None else step
        if step != self._heartbeat.step:
            self._step_at = now
        self._heartbeat, self._heartbeat_at = Heartbeat(step, doing, patience), now

    def check_peers(self) -> list[str]:
        """Exchange progress with the other processes; return the messages to be printed, by the primary process."""
        self._count += 1
        statuses = _exchange(PeerStatus(socket.gethostname(), self._heartbeat, self._count))
        if jax.process_index() > 0:
            return []
        now = self._clock()
        for process, status in statuses.items():
            if process not in self._peers or self._peers[process][0].count != status.count:
                self._peers[process] = status, now
        silent = {process: now - at for process, (_, at) in self._peers.items() if process and now - at > LOST_AFTER}
        known = {process: status for process, (status, _) in self._peers.items()}
        messages = [
            f"Nothing was heard of process {process} on host {known[process].host} for {_duration(seconds)}: it is lost "
            f"or frozen. It was at step {known[process].heartbeat.step}, {known[process].heartbeat.doing}."
            for process, seconds in silent.items()
            if process not in self._lost
        ]
        self._lost = set(silent)
        patience = max(status.heartbeat.patience for status in known.values())
        if now - max(self._heartbeat_at, self._reported_at) >= self._limit * patience:
            self._reported_at = now
            messages.append(f"No step has ended for {_duration(now - self._step_at)}: {describe(known, self._lost)}.")
        return messages

    def _run(self) -> None:
        while not self._ended.wait(self._period):
            for message in self.check_peers():
                print(message, file=sys.stderr, flush=True)


def describe(known: dict[int, PeerStatus], lost: set[int]) -> str:
    """Return the progress of all processes, the late ones first.

    For example ``process 3 on host-b is at step 12, waiting for input; the others are at step 13, training``. Late are
    processes that are lost, else those with fewer steps, else those that do not wait in the training step for the
    others, else those that do what the fewest do.
    """
    if len(known) == 1:
        own = known[0].heartbeat
        return f"the run is at step {own.step}, {own.doing}"
    beats = {process: status.heartbeat for process, status in known.items()}
    places = {p: (p not in lost, beat.step, beat.doing == TRAINING, beat.doing) for p, beat in beats.items()}
    size = Counter(places.values())
    order = sorted(size, key=lambda place: (*place[:3], size[place], place[3]))
    parts = []
    for place in order:
        alive, step, _, doing = place
        processes = [process for process in known if places[process] == place]
        if len(order) == 1:
            who = f"all {len(processes)} processes"
        elif place == order[-1]:
            who = "the other" if len(processes) == 1 else "the others"
        else:
            hosts = sorted({known[process].host for process in processes})
            who = f"{name_processes(processes)} on {', '.join(hosts[:4])}{'…' if len(hosts) > 4 else ''}"
        state = "" if alive else "lost or frozen, last "
        parts.append(f"{who} {'is' if len(processes) == 1 else 'are'} {state}at step {step}, {doing}")
    return "; ".join(parts)


def _exchange(own: PeerStatus) -> dict[int, PeerStatus]:
    """Publish this process's status; return the statuses of all, or its own alone where nothing can be exchanged."""
    index, store = jax.process_index(), _store()
    statuses = {index: own}
    if store is not None and jax.process_count() > 1:
        # Failures (the process that holds the store is gone, say) are not for the watchdog to handle.
        with contextlib.suppress(Exception):
            store.key_value_set(f"{_KEY}{index}", json.dumps(own), allow_overwrite=True)
            if index == 0:
                for key, text in store.key_value_dir_get(_KEY):
                    host, heartbeat, count = json.loads(text)
                    statuses[int(key.rpartition("/")[2])] = PeerStatus(host, Heartbeat(*heartbeat), count)
    return statuses


def _store() -> Any | None:
    """Return the key-value store of JAX's coordination service; not public, so a later JAX may not have it here."""
    try:
        from jax._src.distributed import global_state
    except ImportError:
        return None
    return getattr(global_state, "client", None)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
