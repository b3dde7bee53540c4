"""Transient errors of storage: their classification, and retries."""

import errno
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

# Of network and mounted storage (NFS, FUSE mounts of buckets), and of a machine that is short of resources for a moment.
TRANSIENT = frozenset(
    {
        errno.EIO,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ETXTBSY,
        errno.EINTR,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EREMOTEIO,
    }
)
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # no space, quota reached, file too large
MAX_WAIT = 60.0  # seconds


def retry(fn: Callable[[], T], what: str, attempts: int = 6, first_wait: float = 1.0) -> T:
    """Call `fn` again while it fails with transient errors, with exponential backoff.

    Each wait is multiplied by a random factor from 0.5 to 1.5, so that many processes do not retry at once.

    Args:
      fn: the function; it must be safe to call again after it failed half-way.
      what: description for the messages on stderr, such as ``Reading batch 12``.
      attempts: maximal number of calls, at least 1. Six take about half a minute.
      first_wait: seconds before the second call.

    Returns:
      The result of `fn`.

    Raises:
      OSError: of the last attempt, or at once if it is not in `TRANSIENT`.
      Exception: any other error of `fn`.
    """
    wait = first_wait
    for attempt in range(1, attempts + 1):
        try:
            return fn()
        except OSError as error:
            if error.errno not in TRANSIENT or attempt == attempts:
                raise
            pause = min(wait, MAX_WAIT) * random.uniform(0.5, 1.5)
            reason = error.strerror or type(error).__name__
            print(f"{what} failed ({reason}); trying again in {pause:.1f} s.", file=sys.stderr, flush=True)
        time.sleep(pause)
        wait *= 2
    raise ValueError(f"attempts must be at least 1, but it is {attempts}")


def is_transient(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, is transient, so that a retry may succeed."""
    numbers = _numbers(error)
    return not numbers & FULL and bool(numbers & TRANSIENT)


def is_full(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, is that no space was left."""
    return bool(_numbers(error) & FULL)


def system_error(error: BaseException) -> BaseException:
    """Return the first of `error` and its causes that comes from the operating system; `error` if none does."""
    return next((cause for cause in _causes(error) if _own_numbers(cause)), error)


def _numbers(error: BaseException) -> set[int]:
    """Collect the operating system's error numbers of `error` and its causes."""
    return set().union(*map(_own_numbers, _causes(error)))


def _own_numbers(error: BaseException) -> set[int]:
    # TensorStore, which writes the arrays of checkpoints, has the number in its message only.
    numbers = set(map(int, re.findall(r"os_error_code='?(\d+)", str(error))))
    return numbers | ({error.errno} if isinstance(error, OSError) and error.errno else set())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__
