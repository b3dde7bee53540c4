"""Evaluation results as a plain-text table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_COLUMNS = {
    "FID": ("fid", ".2f"),
    "iFID": ("ifid", ".2f"),
    "tail iFID": ("tail_ifid", ".2f"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "tail recall": ("tail_recall", ".3f"),
    "W ratio": ("w_ratio", ".3f"),
    "class accuracy": ("class_accuracy", ".3f"),
}
_SAME_PROTOCOL = ("extractor_sha256", "reference_fingerprint", "n_fake_per_class", "k", "inclusive", "class_groups")


def format_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A plain-text table of several results (name -> result): one row a run, then the protocol they share.

    A last row gives the real-against-real floor when there is one. A missing or undefined value prints as a dash, and
    runs that were evaluated under different protocols are called out, since their numbers must not be compared.
    """
    if not results:
        return "no evaluations"
    rows = {name: result.get("metrics", {}) for name, result in results.items()}
    first = next(iter(results.values()))
    if first.get("floor"):
        rows["real half vs real half"] = first["floor"]
    cells = [["run", *_COLUMNS]]
    for name, values in rows.items():
        numbers = [values.get(key) for key, _ in _COLUMNS.values()]
        formats = [form for _, form in _COLUMNS.values()]
        cells.append([name, *("-" if v is None else format(v, f) for v, f in zip(numbers, formats, strict=True))])
    lines = _align(cells)
    protocol = first.get("protocol", {})
    lines.append(
        f"{protocol.get('n_fake_per_class', '?')} generated images per class against {protocol.get('n_real', '?')} "
        f"real ones; features {protocol.get('extractor', '?')}; precision and recall pooled, k = "
        f"{protocol.get('k', '?')}; tail values are means over the tail classes."
    )
    differing = [
        key
        for key in _SAME_PROTOCOL
        if any(r.get("protocol", {}).get(key) != protocol.get(key) for r in results.values())
    ]
    if differing:
        lines.append(f"Not comparable: the runs differ in {', '.join(differing)}.")
    return "\n".join(lines)


def format_means(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Mean ± population standard deviation over the seeds of each method (name -> results), as plain text."""
    cells = [["mean ± std", *_COLUMNS]]
    for name, seeds in results.items():
        row = [f"{name} ({len(seeds)} seeds)"]
        for key, form in _COLUMNS.values():
            values = [seed["metrics"][key] for seed in seeds]
            row.append("-" if None in values else f"{np.mean(values):{form}} ± {np.std(values):{form}}")
        cells.append(row)
    return "\n".join(_align(cells))


def _align(cells: list[list[str]]) -> list[str]:
    """Lines of a table with a rule under its heading: the first column left, the others right."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
