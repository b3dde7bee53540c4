"""A run that stands still: says which process is late, and what it was doing."""

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
LOST_AFTER = 60.0  # seconds without news, where there should be some every few
_KEY = "noisytwins_watchdog/"


class Heartbeat(NamedTuple):
    """Where a process is."""

    step: int  # steps done
    doing: str
    patience: float


class PeerStatus(NamedTuple):
    """What the first process knows of another."""

    host: str
    beat: Heartbeat
    count: int  # of its messages so far


class Watchdog:
    """While active, a thread prints a sentence on stderr if no step ends for too long; it never stops anything.

    With several processes, each one's thread tells the others every few seconds where it is, through the store that
    JAX's processes share; the first process compares and speaks. The training thread only sets a variable.

    Args:
      minutes: how long nothing may happen before something is said, and between two such sentences; 0: never.
      period: seconds between messages to the other processes.
      clock: gives seconds.
    """

    def __init__(self, minutes: float, period: float = 3.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._period, self._clock = minutes * 60, period, clock
        now = clock()
        self._beat, self._beat_at, self._step_at, self._said_at = Heartbeat(0, "starting", 1.0), now, now, now
        self._count = 0
        self._heard: dict[int, tuple[PeerStatus, float]] = {}  # the latest news of every process, and when they came
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
        """Tells where this process is; cheap, to be called several times a step, whenever something else begins.

        Args:
          step: steps done so far; None for as many as last time.
          doing: as in "process 3 is at step 12, waiting for input".
          patience: how many times longer than usual this may take, for evaluation or compilation. The processes wait
            for each other, so the most patient one counts.
        """
        now = self._clock()
        step = self._beat.step if step is None else step
        if step != self._beat.step:
            self._step_at = now
        self._beat, self._beat_at = Heartbeat(step, doing, patience), now

    def look(self) -> list[str]:
        """Exchanges news with the other processes and returns what there is to say now; the thread prints it."""
        self._count += 1
        news = _exchange(PeerStatus(socket.gethostname(), self._beat, self._count))
        if jax.process_index() > 0:
            return []
        now = self._clock()
        for process, latest in news.items():
            if process not in self._heard or self._heard[process][0].count != latest.count:
                self._heard[process] = latest, now
        silent = {process: now - at for process, (_, at) in self._heard.items() if process and now - at > LOST_AFTER}
        known = {process: latest for process, (latest, _) in self._heard.items()}
        said = [
            f"Nothing was heard of process {process} on host {known[process].host} for {_duration(seconds)}: it is lost "
            f"or frozen. It was at step {known[process].beat.step}, {known[process].beat.doing}."
            for process, seconds in silent.items()
            if process not in self._lost
        ]
        self._lost = set(silent)
        patience = max(latest.beat.patience for latest in known.values())
        if now - max(self._beat_at, self._said_at) >= self._limit * patience:
            self._said_at = now
            said.append(f"No step has ended for {_duration(now - self._step_at)}: {describe(known, self._lost)}.")
        return said

    def _run(self) -> None:
        while not self._ended.wait(self._period):
            for sentence in self.look():
                print(sentence, file=sys.stderr, flush=True)


def describe(known: dict[int, PeerStatus], lost: set[int]) -> str:
    """Who is where, the late ones first: ``process 3 on host-b is at step 12, waiting for input; the others are ...``.

    Late is who is lost, else who has done fewer steps, else who does not wait in the training step for the others,
    else who does what the fewest do.
    """
    if len(known) == 1:
        beat = known[0].beat
        return f"the run is at step {beat.step}, {beat.doing}"
    places = {p: (p not in lost, n.beat.step, n.beat.doing == TRAINING, n.beat.doing) for p, n in known.items()}
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
    """Publishes this process's news and returns what is known of all; only of itself where nothing can be exchanged."""
    index, store = jax.process_index(), _store()
    everyone = {index: own}
    if store is not None and jax.process_count() > 1:
        # Whatever goes wrong (the process that holds the store is gone, say) is not for the watchdog to handle.
        with contextlib.suppress(Exception):
            store.key_value_set(f"{_KEY}{index}", json.dumps(own), allow_overwrite=True)
            if index == 0:
                for key, text in store.key_value_dir_get(_KEY):
                    host, beat, count = json.loads(text)
                    everyone[int(key.rpartition("/")[2])] = PeerStatus(host, Heartbeat(*beat), count)
    return everyone


def _store() -> Any | None:
    """The key-value store of JAX's coordination service; not public, so that a later JAX may not have it here."""
    try:
        from jax._src.distributed import global_state
    except ImportError:
        return None
    return getattr(global_state, "client", None)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
