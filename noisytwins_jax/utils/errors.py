"""Exceptions whose messages are for the user."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An error that the user can fix: the message is one sentence that says what is wrong and what to do.

    ``noisytwins_jax.main`` prints the message without a traceback and exits with status 2.
    """


class TryAgainError(UserError):
    """An error that may pass when run again: processes that did not find each other, storage that failed in one of them.

    ``noisytwins_jax.main`` exits with status 75, after which everything in ``launch/`` starts it again.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters; its type's name if there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Return the end of a message that names the nearest valid word: ``did you mean 'weight'?``."""
    return f"did you mean {difflib.get_close_matches(word, list(valid), n=1, cutoff=0.0)[0]!r}?"
