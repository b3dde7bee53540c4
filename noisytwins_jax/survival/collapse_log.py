"""What is written down about collapses: in the workdir's ``collapses.json``, with the log of what was given up."""

import json
import shutil
from pathlib import Path
from typing import Any

from noisytwins_jax.survival.collapse import Collapse
from noisytwins_jax.workdir import write_atomically

FILE, LOGS = "collapses.json", "collapsed"


def read_collapses(workdir: Path) -> list[dict[str, Any]]:
    """Records in the order they were written.

    Each has ``step`` of the alarm, its ``sign``, ``good_step``, ``kept`` (the checkpoint of before that is kept, or None),
    ``returned`` (whether training went on from there), and ``log``: the file, relative to the workdir, that holds the
    numbers up to the alarm, where it did.
    """
    path = workdir / FILE
    return json.loads(path.read_text()) if path.exists() else []


def write_collapse(workdir: Path, collapse: Collapse, kept: int | None, returned: bool, log: Path) -> None:
    """Adds a record; where training goes back, `log` (a file) is copied before it is cut. On the first process only."""
    records, name = read_collapses(workdir), None
    if returned:
        name = f"{LOGS}/{len(records)}-step{collapse.step}.jsonl"
        (workdir / LOGS).mkdir(exist_ok=True)
        shutil.copyfile(log, workdir / name)
    record = {
        "step": collapse.step,
        "sign": collapse.sign,
        "good_step": collapse.good_step,
        "kept": kept,
        "returned": returned,
        "log": name,
    }
    write_atomically(workdir / FILE, json.dumps([*records, record], indent=2) + "\n")


def returns_to(records: list[dict[str, Any]], step: int) -> int:
    """How often training went on from the checkpoint of `step` after a collapse."""
    return sum(record["returned"] and record["kept"] == step for record in records)
