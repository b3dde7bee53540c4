"""A result of ``--mode=compile`` beside an earlier one."""

import json
from pathlib import Path
from typing import Any

from noisytwins_jax.tpu_cost.report import Result, format_table
from noisytwins_jax.utils.errors import UserError


def read_result(path: Path) -> Result:
    """The result in a file's last line.

    Raises:
      UserError: no such file, or no result in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        result = json.loads(next(line for line in reversed(lines) if line.strip()))
        if {"topology", "programs", "step", "fields"} <= result.keys():
            return result
    except OSError as error:
        raise UserError(f"--compare={path} cannot be read ({error.strerror}); give a file.") from None
    except (StopIteration, ValueError, AttributeError):
        pass
    raise UserError(
        f"The last line of --compare={path} is no result of --mode=compile; make one with: … --mode=compile > {path}"
    )


def compare_results(old: Result, new: Result) -> str:
    """Changes from one result to another, in per cent, and in which fields and programs the two differ."""
    lines = ["Compared with the earlier result:", *_other_runs(old, new)]
    rows = []
    for name, after in new["programs"].items():
        before = old["programs"].get(name)
        if before is None or "error" in before or "error" in after:
            lines.append(f"{name}: {'only here' if before is None else 'not compiled in both'}.")
            continue
        rows.append([name, *_changes(_numbers(before), _numbers(after))])
        lines += _communication(name, before["collectives"], after["collectives"])
    lines += [f"{name}: only there." for name in old["programs"] if name not in new["programs"]]
    if old["step"] and new["step"]:
        if old["step"]["runs"] == new["step"]["runs"]:
            columns = [_changes([old["step"][field]], [new["step"][field]])[0] for field in ("mcycles", "sent_mb")]
            rows.append(["step", columns[0], "", "", columns[1]])
        else:
            lines.append("Steps are of other programs, or of others' intervals, and are not compared.")
    if rows:
        lines.append(format_table(["", "Mcycles", "MB of memory", "MB temporary", "MB sent"], rows))
    return "\n".join(lines)


def _other_runs(old: Result, new: Result) -> list[str]:
    lines = [
        f"Another {name}: {old.get(name)} → {new.get(name)}."
        for name in ("topology", "jax", "libtpu")
        if old.get(name) != new.get(name)
    ]
    before, after = old["fields"], json.loads(json.dumps(new["fields"]))
    lines += [
        f"Another config.{name}: {before.get(name, '(absent)')} → {after.get(name, '(absent)')}."
        for name in sorted(before.keys() | after.keys())
        if before.get(name, ...) != after.get(name, ...)
    ]
    return lines


def _numbers(figures: dict[str, Any]) -> list[float]:
    memory = figures["memory_mb"]
    return [figures["mcycles"], memory["all"], memory["temporary"], figures["sent_mb"]]


def _changes(before: list[float], after: list[float]) -> list[str]:
    def one(x: float, y: float) -> str:
        percent = f"{100 * (y / x - 1):+.1f} %" if x else ("=" if y == x else "new")
        return f"{x:.4g} → {y:.4g} ({percent})"

    return [one(x, y) for x, y in zip(before, after, strict=True)]


def _communication(name: str, before: dict[str, dict], after: dict[str, dict]) -> list[str]:
    lines = []
    for opcode in sorted(before.keys() | after.keys()):
        counts = [found.get(opcode, {}).get("count", 0) for found in (before, after)]
        sizes = [found.get(opcode, {}).get("bytes", {}) for found in (before, after)]
        if counts[0] != counts[1] or sizes[0] != sizes[1]:
            shown = [", ".join(f"{t} {n / 1e6:.3g} MB" for t, n in size.items()) or "none" for size in sizes]
            lines.append(f"{name}: {opcode} {counts[0]} → {counts[1]} ({shown[0]} → {shown[1]}).")
    return lines
