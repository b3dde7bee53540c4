"""Fields of configuration dataclasses that say which values they take; `config.parse_config` checks them."""

import math
from dataclasses import field
from typing import Any


def number(
    default: float | None,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """A field that takes finite numbers within the given bounds (and None, where its type says so)."""
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    return field(default=default, metadata={"bounds": {name: x for name, x in bounds.items() if x is not None}})


def choice(default: str, *others: str) -> Any:
    """A field that takes one of a few words."""
    return field(default=default, metadata={"choices": (default, *others)})


def objection(metadata: dict[str, Any], value: Any) -> str | None:
    """What a field made by `number` or `choice` says against a value, to follow its name; None for nothing."""
    if "choices" in metadata and value not in metadata["choices"]:
        return f"is {' or '.join(map(repr, metadata['choices']))}, not {value!r}."
    if "bounds" in metadata and value is not None and not _within(value, **metadata["bounds"]):
        return f"must be {_words(**metadata['bounds'])}, but it is {value}."
    return None


def _within(
    x: float,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> bool:
    return math.isfinite(x) and at_least <= x <= at_most and above < x < below


def _words(
    at_least: float | None = None, above: float | None = None, at_most: float | None = None, below: float | None = None
) -> str:
    if at_least is not None and at_most is not None:
        return f"from {at_least} to {at_most}"
    parts = (("at least", at_least), ("above", above), ("at most", at_most), ("below", below))
    return " and ".join(f"{word} {x}" for word, x in parts if x is not None) or "finite"
