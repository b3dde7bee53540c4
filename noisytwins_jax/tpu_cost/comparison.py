"""Comparison of two results of ``--mode=compile``."""

import json
from pathlib import Path
from typing import Any

from noisytwins_jax.tpu_cost.report import Result, format_table
from noisytwins_jax.utils.errors import UserError


def read_result(path: Path) -> Result:
    """Read the result in a file's last line.

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
        f"The last line of --compare={path} is not a result of --mode=compile; create one with: … --mode=compile > {path}"
    )


def compare_results(old: Result, new: Result) -> str:
    """Format the changes between two results, in per cent, and the fields and programs in which they differ."""
    lines = ["Compared with the earlier result:", *_compare_settings(old, new)]
    rows = []
    for name, after in new["programs"].items():
        before = old["programs"].get(name)
        if before is None or "error" in before or "error" in after:
            lines.append(f"{name}: {'only in the new result' if before is None else 'not compiled in both'}.")
            continue
        rows.append([name, *_format_changes(_costs(before), _costs(after))])
        lines += _compare_communication(name, before["collectives"], after["collectives"])
    lines += [f"{name}: only in the earlier result." for name in old["programs"] if name not in new["programs"]]
    if old["step"] and new["step"]:
        if old["step"]["runs"] == new["step"]["runs"]:
            columns = [
                _format_changes([old["step"][field]], [new["step"][field]])[0] for field in ("mcycles", "sent_mb")
            ]
            rows.append(["step", columns[0], "", "", columns[1]])
        else:
            lines.append("Steps are not compared, as they have different programs or intervals.")
    if rows:
        lines.append(format_table(["", "Mcycles", "MB of memory", "MB temporary", "MB sent"], rows))
    return "\n".join(lines)


def _compare_settings(old: Result, new: Result) -> list[str]:
    lines = [
        f"Different {name}: {old.get(name)} → {new.get(name)}."
        for name in ("topology", "jax", "libtpu")
        if old.get(name) != new.get(name)
    ]
    before, after = old["fields"], json.loads(json.dumps(new["fields"]))
    lines += [
        f"Different config.{name}: {before.get(name, '(absent)')} → {after.get(name, '(absent)')}."
        for name in sorted(before.keys() | after.keys())
        if before.get(name, ...) != after.get(name, ...)
    ]
    return lines


def _costs(program: dict[str, Any]) -> list[float]:
    memory = program["memory_mb"]
    return [program["mcycles"], memory["all"], memory["temporary"], program["sent_mb"]]


def _format_changes(before: list[float], after: list[float]) -> list[str]:
    def format_change(x: float, y: float) -> str:
        percent = f"{100 * (y / x - 1):+.1f} %" if x else ("=" if y == x else "new")
        return f"{x:.4g} → {y:.4g} ({percent})"

    return [format_change(x, y) for x, y in zip(before, after, strict=True)]


def _compare_communication(name: str, before: dict[str, dict], after: dict[str, dict]) -> list[str]:
    lines = []
    for opcode in sorted(before.keys() | after.keys()):
        counts = [program.get(opcode, {}).get("count", 0) for program in (before, after)]
        sizes = [program.get(opcode, {}).get("bytes", {}) for program in (before, after)]
        if counts[0] != counts[1] or sizes[0] != sizes[1]:
            texts = [", ".join(f"{t} {n / 1e6:.3g} MB" for t, n in size.items()) or "none" for size in sizes]
            lines.append(f"{name}: {opcode} {counts[0]} → {counts[1]} ({texts[0]} → {texts[1]}).")
    return lines
