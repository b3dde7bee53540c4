"""Fields of configuration dataclasses with the values that they accept; `config.parse_config` validates them."""

import math
from collections.abc import Mapping
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
    """Declare a field that takes finite numbers within the given bounds (and None, if its type says so)."""
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    return field(default=default, metadata={"bounds": {name: x for name, x in bounds.items() if x is not None}})


def choice(default: str, *others: str) -> Any:
    """Declare a field that takes one of a few strings."""
    return field(default=default, metadata={"choices": (default, *others)})


def validate(metadata: Mapping[str, Any], value: Any) -> str | None:
    """Validate a value of a field declared by `number` or `choice`.

    Args:
      metadata: the field's.
      value: the value.

    Returns:
      An error message to follow the field's name; None if the value is valid.
    """
    if "choices" in metadata and value not in metadata["choices"]:
        return f"is {' or '.join(map(repr, metadata['choices']))}, not {value!r}."
    if "bounds" in metadata and value is not None and not _within(value, **metadata["bounds"]):
        return f"must be {_describe_bounds(**metadata['bounds'])}, but it is {value}."
    return None


def _within(
    x: float,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> bool:
    return math.isfinite(x) and at_least <= x <= at_most and above < x < below


def _describe_bounds(
    at_least: float | None = None, above: float | None = None, at_most: float | None = None, below: float | None = None
) -> str:
    if at_least is not None and at_most is not None:
        return f"from {at_least} to {at_most}"
    parts = (("at least", at_least), ("above", above), ("at most", at_most), ("below", below))
    return " and ".join(f"{word} {x}" for word, x in parts if x is not None) or "finite"
