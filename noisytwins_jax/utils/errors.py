"""The one exception type whose message is meant for the person at the keyboard."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: the message is one sentence that says what is wrong and what to do.

    ``noisytwins_jax.main`` prints the message without a traceback and exits with status 2.
    """


class TryAgainError(UserError):
    """What may well go better the next time: processes that did not find each other, storage that failed in one of them.

    ``noisytwins_jax.main`` exits with status 75, which everything in ``launch/`` answers by starting again.
    """


def first_line(error: BaseException) -> str:
    """What an error of a library says first, at most 200 characters; its type's name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """The nearest valid word, as the end of a message: ``did you mean 'weight'?``."""
    return f"did you mean {difflib.get_close_matches(word, list(valid), n=1, cutoff=0.0)[0]!r}?"
