"""What all processes of a run must have alike: configuration, code and data, or the news that one of them failed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import noisytwins_jax
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.multihost import gather_strings, name_processes

_SHOWN = 80  # characters of a value in a message


def check_consistency(facts: Mapping[str, str]) -> None:
    """Compares what every process believes about the run; to be called by all of them, before any long work.

    Args:
      facts: value by name, for example every field of the configuration, `code_fingerprint`, the version of JAX, the
        fingerprint of the data. A name that a process lacks counts as different.

    Raises:
      UserError: the same in every process: the first name whose values differ, and who has which.
    """
    everyone = [json.loads(text) for text in gather_strings(json.dumps(dict(facts)))]
    if different := _first_difference(everyone):
        raise UserError(different)


def _first_difference(everyone: list[dict[str, str]]) -> str | None:
    """A sentence about the first fact that is not the same in all processes."""
    names = list(dict.fromkeys(name for facts in everyone for name in facts))
    different = [name for name in names if len({facts.get(name) for facts in everyone}) > 1]
    if not different:
        return None
    holders: dict[str | None, list[int]] = {}
    for process, facts in enumerate(everyone):
        holders.setdefault(facts.get(different[0]), []).append(process)
    values = [f"{_short(value)} in {name_processes(processes)}" for value, processes in holders.items()]
    more = f" ({len(different) - 1} more differ)" if len(different) > 1 else ""
    return (
        f"The processes of this run differ in {different[0]}: {', '.join(values)}{more}; give all of them the same "
        "command, code and data."
    )


def check_same_data(saved: Mapping[str, Any], fingerprint: str) -> None:
    """Compares the data that a checkpoint was trained on with this run's.

    Args:
      saved: the position of the data as the checkpoint has it; without ``fingerprint`` (as older ones) all is well.
      fingerprint: of this run's training images.

    Raises:
      UserError: they differ.
    """
    before = saved.get("fingerprint", fingerprint)
    if before != fingerprint:
        raise UserError(
            f"The training images are not those that the checkpoint was trained on (fingerprint {fingerprint}, then "
            f"{before}); give the same data to go on, or another --workdir."
        )


def code_fingerprint() -> str:
    """Version of this package and SHA-256 (16 hex digits) of its Python files, as ``0.1.0+1f0c…``."""
    package = Path(noisytwins_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{noisytwins_jax.__version__}+{digest.hexdigest()[:16]}"


def _short(value: str | None) -> str:
    if value is None:
        return "(absent)"
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
