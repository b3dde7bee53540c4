"""Records of collapses in the workdir's ``collapses.json``, with copies of the logs of discarded steps."""

import json
import shutil
from pathlib import Path
from typing import Any

from noisytwins_jax.training.fault_tolerance.collapse_detector import Collapse
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.files import write_atomically

FILE, LOGS = "collapses.json", "collapsed"


def read_collapses(workdir: Path) -> list[dict[str, Any]]:
    """Read the records in the order they were written.

    Each has ``step`` of the alarm, its ``sign`` (a description), ``good_step``, ``kept`` (the earlier checkpoint that was
    pinned, or None), ``returned`` (whether training resumed from there), and ``log``: if so, the file, relative to the
    workdir, that holds the metrics up to the alarm; else None.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / FILE
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except ValueError:
        raise UserError(f"{path} is not readable JSON; restore it, or move it away to forget past collapses.") from None


def write_collapse(workdir: Path, collapse: Collapse, kept: int | None, log: Path | None) -> None:
    """Add a record. Call it on the primary process only.

    Args:
      workdir: the run's directory.
      collapse: the alarm.
      kept: step of the checkpoint that was pinned, if there is one.
      log: the file of metrics, to be copied before it is truncated, if training goes back to that checkpoint; else None.
    """
    records, name = read_collapses(workdir), None
    if log is not None:
        name = f"{LOGS}/{count_returns(records)}-step{collapse.step}.jsonl"
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
    """Discard alarms later than the checkpoint that a run resumes from: the same collapse gives the same alarm again.

    Alarms after which training went back stay, unless it starts over (step 0). Call it on the primary process only.

    Returns:
      The remaining records.
    """
    records = read_collapses(workdir)
    remaining = [record for record in records if record["step"] <= step or (record["returned"] and step > 0)]
    if len(remaining) < len(records):
        _write(workdir, remaining)
    return remaining


def count_returns(records: list[dict[str, Any]]) -> int:
    """Return how often training went back after a collapse."""
    return sum(record["returned"] for record in records)


def _write(workdir: Path, records: list[dict[str, Any]]) -> None:
    write_atomically(workdir / FILE, json.dumps(records, indent=2) + "\n")
