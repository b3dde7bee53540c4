"""What is written down about collapses: in the workdir's ``collapses.json``, with the log of what was given up."""

import json
import shutil
from pathlib import Path
from typing import Any

from noisytwins_jax.training.fault_tolerance.collapse_detector import Collapse
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.files import write_atomically

FILE, LOGS = "collapses.json", "collapsed"


def read_collapses(workdir: Path) -> list[dict[str, Any]]:
    """Records in the order they were written.

    Each has ``step`` of the alarm, its ``sign``, ``good_step``, ``kept`` (the checkpoint of before that is kept, or None),
    ``returned`` (whether training went on from there), and ``log``: the file, relative to the workdir, that holds the
    numbers up to the alarm, where it did; else None.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / FILE
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except ValueError:
        raise UserError(f"{path} is not readable JSON; restore it, or move it away to forget past collapses.") from None


def write_collapse(workdir: Path, collapse: Collapse, kept: int | None, log: Path | None) -> None:
    """Adds a record. On the first process only.

    Args:
      workdir: the run's.
      collapse: what the detector found.
      kept: step of the checkpoint that is kept, if there is one.
      log: where training goes back to it, the file of numbers, which is copied before it is cut; else None.
    """
    records, name = read_collapses(workdir), None
    if log is not None:
        name = f"{LOGS}/{returns_made(records)}-step{collapse.step}.jsonl"
        (workdir / LOGS).mkdir(exist_ok=True)
        shutil.copyfile(log, workdir / name)
    record = {
        "step": collapse.step,
        "sign": collapse.sign,
        "good_step": collapse.good_step,
        "kept": kept,
        "returned": log is not None,
        "log": name,
    }
    _write(workdir, [*records, record])


def discard_alarms_after(workdir: Path, step: int) -> list[dict[str, Any]]:
    """Drops alarms later than the checkpoint that a run goes on from: they are found again when they come to pass again.

    Alarms after which training went back stay, unless it starts anew (step 0). On the first process only.

    Returns:
      The records left.
    """
    records = read_collapses(workdir)
    left = [record for record in records if record["step"] <= step or (record["returned"] and step > 0)]
    if len(left) < len(records):
        _write(workdir, left)
    return left


def returns_made(records: list[dict[str, Any]]) -> int:
    """How often training went back after a collapse."""
    return sum(record["returned"] for record in records)


def _write(workdir: Path, records: list[dict[str, Any]]) -> None:
    write_atomically(workdir / FILE, json.dumps(records, indent=2) + "\n")
