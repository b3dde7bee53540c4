"""Several runs on one page: numbers, samples, W, and every class."""

import os
from collections.abc import Mapping, Sequence
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
    from_files,
    has_classes,
    notes_on,
    same_groups,
    shared_floor,
    with_classes_first,
)
from noisytwins_jax.utils.errors import UserError


def write_comparison(
    path: str | os.PathLike,
    runs: Mapping[str, Mapping[str, Any]],
    *,
    title: str = "Comparison of runs",
    notes: Sequence[str] = (),
    lede: str = "",
) -> Path:
    """Writes a page that compares runs: numbers, sample sheets, W and its ratio over training, every class in a chart.

    Args:
      path: the file to write; replaced atomically.
      runs: run name -> ``{"evaluation": dict, "sheet": picture, "w": (w float [n, D], labels int [n]), "records":
        one list of ``logs.read_metrics`` for each seed}``. Any of the four may be missing; class names and counts are
        taken from the first evaluation.
      title: heading of the page.
      notes: sentences for the reader, shown at the top.
      lede: a line under the title.

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
    first, shared = next(iter(with_classes_first(evaluations)), {}), _shared(evaluations)
    of_classes = {name: evaluation for name, evaluation in evaluations.items() if has_classes(evaluation)}
    body = [
        webpage.care([*notes, *notes_on(evaluations)]),
        webpage.section("Results", _comparison_table(evaluations, shared["floor"]), protocol_note(shared)),
        webpage.section("Samples", *sheets),
        webpage.section("Latent space W", _w_pictures(runs, first), _w_ratio_chart(runs)),
        webpage.section("Head to tail", class_chart(of_classes)),
        webpage.section("Protocol of these numbers", protocol_section(shared)),
        how_to_read(shared, known_metrics(evaluations.values())),
    ]
    return webpage.write_page(path, webpage.page(title, lede, body))


def _shared(evaluations: Mapping[str, Evaluation]) -> Evaluation:
    """Protocol and floor of runs that agree on them wherever they overlap: one may lack a network that another used."""
    protocol: dict[str, Any] = {}
    extractors: dict[str, Any] = {}
    of_generators = {"weights", "truncation_psi", "truncation", "class_noise"}
    hidden = {"step"} | (of_generators if any(map(from_files, evaluations.values())) else set())
    for evaluation in reversed(with_classes_first(evaluations)):
        protocol |= {key: value for key, value in (evaluation.get("protocol") or {}).items() if key not in hidden}
        extractors |= protocol.get("extractors") or {}
    if any(map(has_classes, evaluations.values())):
        protocol.pop("classes", None)
    shared = protocol | ({"extractors": extractors} if extractors else {})
    return {"protocol": shared, "floor": shared_floor(evaluations)}


def _comparison_table(evaluations: Mapping[str, Evaluation], floor: Mapping[str, Any]) -> str:
    rows, grouped = [], same_groups(evaluations)
    runs = [evaluation.get("metrics") or {} for evaluation in evaluations.values()]
    for key, name, meaning, way in HEADLINES:
        known = [metrics[key] for metrics in runs if metrics.get(key) is not None]
        if not known or (key.startswith("tail_") and not grouped):
            continue
        best = max(way * value for value in known)
        marked = [m.get(key) is not None and way != 0 and len(known) > 1 and way * m[key] == best for m in runs]
        shown = [number_cell(metrics, key) for metrics in runs]
        cells = [f'<span class="best">{x}</span>' if mark else x for x, mark in zip(shown, marked, strict=True)]
        rows.append((metric_cell(name, meaning, way), *cells, number_cell(floor, key)))
    header = ("↑ higher, ↓ lower is better", *(webpage.escape(name) for name in evaluations), "Real against real")
    return webpage.table(header, rows, "Coloured: the best of these runs")


def _w_ratio_chart(runs: Mapping[str, Mapping[str, Any]]) -> str:
    try:
        chart = w_ratio_figure({name: run.get("records", ()) for name, run in runs.items()})
    except UserError:  # nothing to draw
        return ""
    seeds = max(len(run.get("records", ())) for run in runs.values())
    caption = "W ratio over training. The averaged generator's, from 32 latents a class"
    return webpage.figure(caption + ("; means and standard deviations over seeds." if seeds > 1 else "."), chart)


def _w_pictures(runs: Mapping[str, Mapping[str, Any]], evaluation: Evaluation) -> str:
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
