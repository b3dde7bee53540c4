"""Storage that fails for a moment: which errors pass by themselves, and waiting until they do."""

import errno
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

# Of network and mounted storage (NFS, FUSE mounts of buckets), and of a machine short of something for a moment.
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
LONGEST_WAIT = 60.0  # seconds


def retry(fn: Callable[[], T], what: str, attempts: int = 6, first_wait: float = 1.0) -> T:
    """Calls ``fn`` again while it fails for reasons that pass by themselves, waiting twice as long each time.

    Each wait is drawn from half to one and a half times its length, so that many processes do not come back at once.

    Args:
      fn: what to do; it must be safe to do again after it failed half-way.
      what: for the messages on stderr, as ``Reading batch 12``.
      attempts: calls at most, at least 1. Six take about half a minute.
      first_wait: seconds before the second call.

    Returns:
      What ``fn`` returned.

    Raises:
      OSError: of the last attempt, or at once one that is not in `TRANSIENT`. Whatever else ``fn`` raises.
    """
    wait = first_wait
    for attempt in range(1, attempts + 1):
        try:
            return fn()
        except OSError as error:
            if error.errno not in TRANSIENT or attempt == attempts:
                raise
            pause = min(wait, LONGEST_WAIT) * random.uniform(0.5, 1.5)
            reason = error.strerror or type(error).__name__
            print(f"{what} failed ({reason}); trying again in {pause:.1f} s.", file=sys.stderr, flush=True)
        time.sleep(pause)
        wait *= 2
    raise ValueError(f"attempts must be at least 1, but it is {attempts}")


def is_transient(error: BaseException) -> bool:
    """Whether what failed may work when it is done again; looks at the causes of ``error`` too."""
    numbers = _numbers(error)
    return not numbers & FULL and bool(numbers & TRANSIENT)


def is_full(error: BaseException) -> bool:
    """Whether there was no space left to write to; looks at the causes of ``error`` too."""
    return bool(_numbers(error) & FULL)


def system_error(error: BaseException) -> BaseException:
    """The one of ``error`` and its causes that the operating system gave; ``error`` if none."""
    return next((cause for cause in _causes(error) if _own_numbers(cause)), error)


def _numbers(error: BaseException) -> set[int]:
    """The operating system's error numbers in ``error`` and its causes."""
    return set().union(*map(_own_numbers, _causes(error)))


def _own_numbers(error: BaseException) -> set[int]:
    # TensorStore, which writes the arrays of checkpoints, has the number in its text only.
    numbers = set(map(int, re.findall(r"os_error_code='?(\d+)", str(error))))
    return numbers | ({error.errno} if isinstance(error, OSError) and error.errno else set())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__
