"""Several runs on one page: numbers, samples, W, and every class."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from noisytwins_jax.evaluation.report import webpage
from noisytwins_jax.evaluation.report.curves import w_ratio_figure
from noisytwins_jax.evaluation.report.glossary import HEADLINES, how_to_read, known_metrics
from noisytwins_jax.evaluation.report.report_sections import (
    Evaluation,
    class_chart,
    metric_cell,
    number_cell,
    protocol_note,
    protocol_section,
)
from noisytwins_jax.evaluation.report.w_projection import w_comparison_figure
from noisytwins_jax.evaluation.table import (
    check_one_protocol,
    comparison_notes,
    from_files,
    has_classes,
    same_groups,
    shared_real_vs_real,
    sort_by_detail,
)
from noisytwins_jax.utils.errors import UserError


def write_comparison(
    path: str | os.PathLike,
    runs: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Write a page that compares runs: metrics, sample sheets, W and its ratio over training, and a per-class chart.

    Args:
      path: the file to write; replaced atomically.
      runs: run name -> ``{"evaluation": dict, "sheet": picture, "w": (w float [n, D], labels int [n]), "records":
        one list of `read_metrics` for each seed}``. Any of the four may be missing; class names and counts are taken from
        the first evaluation.

    Returns:
      ``path``.

    Raises:
      UserError: there is no run to compare, or two were evaluated under different protocols.
    """
    if not runs:
        raise UserError("There is no run to compare; name at least one.")
    evaluations = {name: run["evaluation"] for name, run in runs.items() if run.get("evaluation")}
    sheets = [webpage.figure(name, run["sheet"]) for name, run in runs.items() if run.get("sheet") is not None]
    check_one_protocol(evaluations)
    first, shared = next(iter(sort_by_detail(evaluations)), {}), _merge_protocols(evaluations)
    with_classes = {name: evaluation for name, evaluation in evaluations.items() if has_classes(evaluation)}
    body = [
        webpage.callout(comparison_notes(evaluations)),
        webpage.section("Results", _comparison_table(evaluations, shared["real_vs_real"]), protocol_note(shared)),
        webpage.section("Samples", *sheets),
        webpage.section("Latent space W", _w_figure(runs, first), _w_ratio_figure(runs)),
        webpage.section("Head to tail", class_chart(with_classes)),
        webpage.section("Protocol of these numbers", protocol_section(shared)),
        how_to_read(shared, known_metrics(evaluations.values())),
    ]
    return webpage.write_page(path, webpage.page("Comparison of runs", "", body))


def _merge_protocols(evaluations: Mapping[str, Evaluation]) -> Evaluation:
    """Merge protocols and real-vs-real numbers of runs that agree where both have an entry; extractors may differ."""
    protocol: dict[str, Any] = {}
    extractors: dict[str, Any] = {}
    generator_entries = {"weights", "truncation_psi", "truncation", "class_noise"}
    hidden = {"step"} | (generator_entries if any(map(from_files, evaluations.values())) else set())
    for evaluation in reversed(sort_by_detail(evaluations)):
        protocol |= {key: value for key, value in (evaluation.get("protocol") or {}).items() if key not in hidden}
        extractors |= protocol.get("extractors") or {}
    if any(map(has_classes, evaluations.values())):
        protocol.pop("classes", None)
    shared = protocol | ({"extractors": extractors} if extractors else {})
    return {"protocol": shared, "real_vs_real": shared_real_vs_real(evaluations)}


def _comparison_table(evaluations: Mapping[str, Evaluation], real_vs_real: Mapping[str, Any]) -> str:
    rows, grouped = [], same_groups(evaluations)
    runs = [evaluation.get("metrics") or {} for evaluation in evaluations.values()]
    for key, name, meaning, direction in HEADLINES:
        known = [metrics[key] for metrics in runs if metrics.get(key) is not None]
        if not known or (key.startswith("tail_") and not grouped):
            continue
        best = max(direction * value for value in known)
        is_best = [
            m.get(key) is not None and direction != 0 and len(known) > 1 and direction * m[key] == best for m in runs
        ]
        values = [number_cell(metrics, key) for metrics in runs]
        cells = [f'<span class="best">{x}</span>' if mark else x for x, mark in zip(values, is_best, strict=True)]
        rows.append((metric_cell(name, meaning, direction), *cells, number_cell(real_vs_real, key)))
    header = ("↑ higher, ↓ lower is better", *(webpage.escape(name) for name in evaluations), "Real against real")
    return webpage.table(header, rows, "Coloured: the best of these runs")


def _w_ratio_figure(runs: Mapping[str, Mapping[str, Any]]) -> str:
    try:
        chart = w_ratio_figure({name: run.get("records", ()) for name, run in runs.items()})
    except UserError:  # nothing to draw
        return ""
    seeds = max(len(run.get("records", ())) for run in runs.values())
    caption = "W ratio over training. The averaged generator's, from 32 latents a class"
    return webpage.figure(caption + ("; means and standard deviations over seeds." if seeds > 1 else "."), chart)


def _w_figure(runs: Mapping[str, Mapping[str, Any]], evaluation: Evaluation) -> str:
    sets = {name: run["w"] for name, run in runs.items() if run.get("w") is not None}
    if not sets:
        return ""
    size = 1 + max(int(np.max(labels)) for _, labels in sets.values())
    rows = {int(row["class"]): row for row in evaluation.get("per_class") or ()}
    names = [str(rows.get(c, {}).get("name", c)) for c in range(size)]
    counts = [rows.get(c, {}).get("n_train") for c in range(size)]
    known = None if None in counts else counts
    caption = "W by class, principal components above and t-SNE below. Each panel is fitted on its own: compare shapes."
    if len(sets) == 1:
        caption = "W by class, principal components and t-SNE"
    return webpage.figure(caption, w_comparison_figure(sets, names, class_counts=known))
