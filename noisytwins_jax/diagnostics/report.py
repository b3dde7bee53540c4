"""What a run has learnt, on one page: ``report.html``, and a page that compares several runs."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from noisytwins_jax.diagnostics import webpage
from noisytwins_jax.diagnostics.curves import per_class_figure, rows_head_to_tail, w_ratio_figure
from noisytwins_jax.diagnostics.w_projection import w_comparison_figure
from noisytwins_jax.errors import UserError

Evaluation = Mapping[str, Any]  # see metrics.evaluation
Table = tuple[str, Sequence[str], Sequence[Sequence[object]]]  # caption, header, rows

HEADLINES: tuple[
    tuple[str, str, str, int], ...
] = (  # key, name, what it says, +1 if higher is better, -1 if lower, else 0
    ("fid", "FID", "all classes pooled", -1),
    ("ifid", "iFID", "mean of the FIDs within each class", -1),
    ("tail_ifid", "Tail iFID", "the same, rarest classes", -1),
    ("precision", "Precision", "share of generated images that look real", 1),
    ("recall", "Recall", "share of real images that can be generated", 1),
    ("tail_recall", "Tail recall", "within each of the rarest classes", 1),
    ("density", "Density", "number of real neighbours, relative to real data", 1),
    ("coverage", "Coverage", "share of real images with a generated neighbour", 1),
    ("class_accuracy", "Class accuracy", "share of images recognised as their class", 1),
    ("w_ratio", "W ratio", "variance of W within classes / total; 0 is collapse", 0),
)
GROUP_COLUMNS = (
    ("ifid", "iFID"),
    ("precision", "Precision"),
    ("recall", "Recall"),
    ("class_accuracy", "Class accuracy"),
    ("w_ratio", "W ratio"),
)
PROTOCOL: tuple[tuple[str, str], ...] = (
    ("extractor", "Features from"),
    ("extractor_sha256", "SHA-256 of its weights"),
    ("feature_dim", "Feature size"),
    ("n_real", "Real images"),
    ("n_fake", "Generated images"),
    ("n_fake_per_class", "… of each class"),
    ("k", "Neighbours k"),
    ("seed", "Seed"),
    ("weights", "Generator weights"),
    ("class_noise", "Class noise"),
    ("truncation_psi", "Truncation ψ"),
    ("resolution", "Resolution"),
    ("reference_fingerprint", "SHA-256 of the real images"),
)
ONE_PROTOCOL = ("extractor_sha256", "reference_fingerprint", "n_real", "n_fake_per_class", "k", "seed", "weights")
MOST_ROWS = 60  # classes in the per-class table; of more, the head and the tail are shown

HOW_TO_READ: tuple[tuple[str, str], ...] = (
    (
        "FID and iFID",
        "Distance between the features of generated and real images; 0 means alike. FID pools all classes. iFID takes "
        "one class at a time and averages, so it also sees a class that repeats itself or turns into another.",
    ),
    (
        "Precision and recall",
        "Precision asks whether generated images look real, recall whether the real variety is reached. A collapsed "
        "generator has high precision and low recall. One is easily traded for the other: read them together.",
    ),
    (
        "Class accuracy",
        "How often a classifier trained on real images recognises the class that was asked for. High diversity with "
        "low class accuracy is confusion of classes, not diversity.",
    ),
    (
        "W ratio",
        "How much of the latent space W's variance lies within classes. Near 0, every class is a single point: all "
        "its images come out alike. Near 1, W hardly depends on the class.",
    ),
    (
        "Real against real",
        "The same measurement between two halves of the real images. No generator needs to do better; the halves are "
        "smaller sets, which by itself makes their FID and iFID larger.",
    ),
    (
        "Pictures of W",
        "Dots are samples, dark for the head and bright for the tail. Judge the spread of a class by the principal "
        "components: t-SNE draws tight and wide classes alike and only tells which are apart and which are mixed.",
    ),
    (
        "Comparing with other work",
        "Numbers are comparable only under the same protocol: same feature extractor, same real images, same counts. "
        "Training again with another seed moves them; a single run shows no more than itself.",
    ),
)


def format_number(value: object) -> str:
    """Three or so significant digits; "n/a" for what is missing or not finite; other values as they are."""
    if value is None or (isinstance(value, (float, np.floating)) and not math.isfinite(value)):
        return "n/a"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (int, np.integer)):
        return str(value)
    if isinstance(value, (float, np.floating)):
        size = abs(value)
        return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size > 1 else f"{value:.3f}"
    return str(value)


def _metric_cell(name: str, meaning: str, direction: int) -> str:
    arrow = {1: "&nbsp;↑", -1: "&nbsp;↓", 0: ""}[direction]
    return f"{webpage.escape(name)}{arrow}<small>{webpage.escape(meaning)}</small>"


def _floor_of(evaluation: Evaluation, key: str) -> Any:
    return (evaluation.get("floor") or {}).get(key)


def _protocol(evaluation: Evaluation) -> str:
    protocol = evaluation.get("protocol") or {}
    said = [(name, format_number(protocol[key])) for key, name in PROTOCOL if protocol.get(key) is not None]
    if "inclusive" in protocol:
        said.append(("Neighbour test", "distance <= radius" if protocol["inclusive"] else "distance < radius"))
    headline = protocol.get("headline")
    note = f"<p><small>Note: {webpage.escape(headline)}.</small></p>" if headline else ""
    described = protocol.get("extractor_description")
    extractor = webpage.folded("The feature extractor", json.dumps(described, indent=2)) if described else ""
    return webpage.pairs(said) + note + extractor


def _headline_table(evaluation: Evaluation) -> str:
    metrics = evaluation.get("metrics") or {}
    rows = [
        (_metric_cell(name, meaning, way), format_number(metrics[key]), format_number(_floor_of(evaluation, key)))
        for key, name, meaning, way in HEADLINES
        if key in metrics
    ]
    return webpage.table(("↑ higher, ↓ lower is better", "This run", "Real against real"), rows)


def _group_table(evaluation: Evaluation) -> str:
    metrics = evaluation.get("metrics") or {}
    groups = (evaluation.get("protocol") or {}).get("class_groups") or {}
    rows = [
        (
            webpage.escape(name),
            str(len(ids)),
            *(format_number(metrics.get(f"{name}_{key}")) for key, _ in GROUP_COLUMNS),
        )
        for name, ids in groups.items()
    ]
    return webpage.table(
        ("Group", "Classes", *(name for _, name in GROUP_COLUMNS)), rows, "Means over the classes of a group"
    )


def _class_table(evaluation: Evaluation) -> str:
    ordered = rows_head_to_tail(evaluation)
    shown, caption = ordered, "Class by class, head to tail"
    if len(ordered) > MOST_ROWS:
        half = MOST_ROWS // 2
        shown = [*ordered[:half], *ordered[-half:]]
        caption = f"The {half} classes with most and the {half} with fewest training images, of {len(ordered)}"
    columns = (("n_train", "Training images"), ("n_real", "Real images"), *GROUP_COLUMNS)
    rows = [
        (webpage.escape(row.get("name", row["class"])), *(format_number(row.get(key)) for key, _ in columns))
        for row in shown
    ]
    return webpage.table(("Class", *(name for _, name in columns)), rows, caption)


def _class_chart(evaluations: Mapping[str, Evaluation]) -> str:
    try:
        return webpage.figure("Every class, head to tail", per_class_figure(evaluations))
    except UserError:  # nothing to draw
        return ""


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    config_text: str,
    evaluation: Evaluation,
    figures: Sequence[tuple[str, webpage.Picture]] = (),
    tables: Sequence[Table] = (),
    notes: Sequence[str] = (),
    lede: str = "",
) -> Path:
    """Writes a run's report: one HTML file that holds everything it shows and requests nothing.

    Args:
      path: the file to write, e.g. ``workdir/report.html``; replaced atomically.
      title: heading of the page.
      config_text: the configuration, shown behind a line to click.
      evaluation: what ``metrics.evaluation.evaluate_generator`` gives; parts that are missing are left out. The
        headline table, the protocol, the groups and the per-class table and chart are made from it.
      figures: (caption, picture) in order of reading: sample sheet, projection of W, training curves, ... A picture is
        a PNG file's bytes, a PIL image or a Matplotlib figure. The caption's first sentence becomes a heading.
      tables: further tables (caption, header, rows of plain values).
      notes: sentences for the reader, e.g. what was not trained to the end; shown at the top with the evaluation's own
        warnings.
      lede: a line under the title: data, method, length of training.

    Returns:
      ``path``.

    Raises:
      UserError: bytes among the figures that are not a PNG file.
    """
    warnings = (evaluation.get("protocol") or {}).get("warnings") or ()
    extra = [
        webpage.table(
            [webpage.escape(cell) for cell in header],
            [[webpage.escape(format_number(x)) for x in row] for row in rows],
            caption,
        )
        for caption, header, rows in tables
    ]
    body = [
        webpage.care([*notes, *warnings]),
        webpage.beside(
            webpage.section(
                "Results", _headline_table(evaluation) or webpage.paragraph("This run has not been evaluated.")
            ),
            webpage.section("Protocol of these numbers", _protocol(evaluation) or webpage.paragraph("Not recorded.")),
        ),
        webpage.section("Pictures", *(webpage.figure(caption, picture) for caption, picture in figures)),
        webpage.section(
            "Head to tail", _group_table(evaluation), _class_chart({"this run": evaluation}), _class_table(evaluation)
        ),
        webpage.section("More numbers", *extra),
        webpage.section("How to read this page", webpage.pairs(HOW_TO_READ, "words")),
        webpage.folded("Configuration", config_text),
    ]
    return webpage.write_page(path, webpage.page(title, lede, body))


def _comparison_table(evaluations: Mapping[str, Evaluation]) -> str:
    rows = []
    first = next(iter(evaluations.values()))
    for key, name, meaning, way in HEADLINES:
        values = [(evaluation.get("metrics") or {}).get(key) for evaluation in evaluations.values()]
        known = [value for value in values if value is not None]
        if not known:
            continue
        best = max(way * value for value in known)
        marked = [value is not None and way != 0 and len(known) > 1 and way * value == best for value in values]
        shown = [format_number(value) for value in values]
        cells = [f'<span class="best">{x}</span>' if mark else x for x, mark in zip(shown, marked, strict=True)]
        rows.append((_metric_cell(name, meaning, way), *cells, format_number(_floor_of(first, key))))
    header = ("↑ higher, ↓ lower is better", *(webpage.escape(name) for name in evaluations), "Real against real")
    return webpage.table(header, rows, "Coloured: the best of these runs")


def protocol_differences(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """One sentence for each part of the protocol that differs between runs, so that numbers must not be compared."""
    sentences = []
    for key in ONE_PROTOCOL:
        values = {name: (evaluation.get("protocol") or {}).get(key) for name, evaluation in evaluations.items()}
        if len(set(map(str, values.values()))) > 1:
            said = ", ".join(f"{name}: {str(value)[:12]}" for name, value in values.items())
            sentences.append(f"The runs were measured with different {key} ({said}); their numbers are not comparable.")
    return sentences


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
      UserError: there is no run to compare.
    """
    if not runs:
        raise UserError("There is no run to compare; name at least one.")
    evaluations = {name: run["evaluation"] for name, run in runs.items() if run.get("evaluation")}
    sheets = [webpage.figure(name, run["sheet"]) for name, run in runs.items() if run.get("sheet") is not None]
    first = next(iter(evaluations.values()), {})
    body = [
        webpage.care([*notes, *protocol_differences(evaluations)]),
        webpage.section("Results", _comparison_table(evaluations) if evaluations else ""),
        webpage.section("Samples", *sheets),
        webpage.section("Latent space W", _w_pictures(runs, first), _w_ratio_chart(runs)),
        webpage.section("Head to tail", _class_chart(evaluations)),
        webpage.section("Protocol of these numbers", _protocol(first)),
        webpage.section("How to read this page", webpage.pairs(HOW_TO_READ, "words")),
    ]
    return webpage.write_page(path, webpage.page(title, lede, body))


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
