"""Checks that all processes of a run have the same configuration, code and data."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.multihost import gather_strings, name_processes
from noisytwins_jax.utils.version import __version__

PACKAGE = Path(__file__).parents[2]  # the folder of noisytwins_jax
_MAX_LENGTH = 80  # characters of a value in a message


def check_consistency(facts: Mapping[str, str]) -> None:
    """Check that all processes have the same facts; call it in all of them, before any long work.

    Args:
      facts: value by name, for example every field of the configuration, `code_fingerprint`, the version of JAX, the
        fingerprint of the data. A name that a process lacks counts as different.

    Raises:
      UserError: in every process: the first name whose values differ, and which processes have which value.
    """
    by_process = [json.loads(text) for text in gather_strings(json.dumps(dict(facts)))]
    if message := _describe_difference(by_process):
        raise UserError(message)


def _describe_difference(by_process: list[dict[str, str]]) -> str | None:
    """Return an error message for the first fact that is not the same in all processes; None if all are."""
    names = list(dict.fromkeys(name for facts in by_process for name in facts))
    different = [name for name in names if len({facts.get(name) for facts in by_process}) > 1]
    if not different:
        return None
    holders: dict[str | None, list[int]] = {}
    for process, facts in enumerate(by_process):
        holders.setdefault(facts.get(different[0]), []).append(process)
    values = [f"{_short(value)} in {name_processes(processes)}" for value, processes in holders.items()]
    more = f" ({len(different) - 1} more differ)" if len(different) > 1 else ""
    return (
        f"The processes of this run differ in {different[0]}: {', '.join(values)}{more}; give all of them the same "
        "command, code and data."
    )


def check_same_data(saved: Mapping[str, Any], fingerprint: str) -> None:
    """Check that a checkpoint was trained on this run's data.

    Args:
      saved: the checkpoint's position in the data; without ``fingerprint`` (in older checkpoints) nothing is checked.
      fingerprint: of this run's training images.

    Raises:
      UserError: the fingerprints differ.
    """
    before = saved.get("fingerprint", fingerprint)
    if before != fingerprint:
        raise UserError(
            f"The training images are not those that the checkpoint was trained on (fingerprint {fingerprint}, then "
            f"{before}); give the same data to continue, or another --workdir."
        )


def code_fingerprint(package: Path = PACKAGE) -> str:
    """Return the version and the SHA-256 (16 hex digits) of the Python files of a package, as ``0.1.0+1f0c…``."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{__version__}+{digest.hexdigest()[:16]}"


def _short(value: str | None) -> str:
    if value is None:
        return "(absent)"
    return value if len(value) <= _MAX_LENGTH else f"{value[:_MAX_LENGTH]}…"
