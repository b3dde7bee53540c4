"""Figures of training curves, of the W ratio of several runs, and of evaluations class by class."""

import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.plotting import (
    FAINT,
    INK,
    RULE,
    RUN_COLOURS,
    new_figure,
    rank_colours,
    short_names,
    style_axes,
)

W_RATIO = "W variance within classes / total"
# Panels in display order; a logged name goes to the first panel whose pattern it matches, else to one of its own.
PANELS: tuple[tuple[str, str], ...] = (
    ("Discriminator logits", r"(?<!discriminator_)logit|(^|[/_])(real|fake)$"),
    (W_RATIO, r"w_ratio|w_variance"),
    ("Recall and precision", r"recall|precision|coverage|density"),
    ("Fréchet distance", r"fid"),
    ("Regularisers", r"loss/\w+/|r1|lecam|path|noisytwins|twins|barlow|ortho|spectral|regular|penalt"),
    ("Losses", r"loss"),
    ("Discriminator accuracy on real images", r"discriminator_accuracy"),
    ("Mean logits of real images", r"discriminator_logit"),
    ("Norms of class embeddings", r"embedding_norm"),
    ("Augmentation probability", r"(^|[/_])(ada|augment)"),
    ("Learning rates", r"(^|[/_])(lr|learning_rate)"),
    ("Images per second", r"img_per_s|images_per_sec|img_s|throughput"),
)
# Metrics of evaluations during training that are drawn, in panels after the others.
EVALUATED = "evaluation/"
EVALUATION_PANELS: tuple[tuple[str, Mapping[str, str]], ...] = (  # heading, key -> name of its curve
    ("Evaluation: FID and iFID", {"fid": "FID", "ifid": "iFID", "tail_ifid": "tail iFID"}),
    ("Evaluation: FID_CLIP and iFID_CLIP", {"fid_clip": "FID_CLIP", "ifid_clip": "iFID_CLIP"}),
    ("Evaluation: FD_DINOv2", {"fd_dinov2": "FD_DINOv2"}),
    (
        "Evaluation: precision and recall",
        {"precision": "precision", "recall": "recall", "tail_recall": "tail recall"},
    ),
    ("Evaluation: class accuracy", {"class_accuracy": "class accuracy"}),
)
SINGULAR_VALUES = "spectra/"  # hundreds of curves, drawn by `singular_values_figure`
TIME_AXES = ("kimg", "step")  # the first of these that every record has is the horizontal axis
NOT_CURVES = {"step", "kimg", "time", "seconds", "epoch"}
LINES = ("-", "--", ":")
SMOOTHED_FROM = 60  # points; longer curves are drawn pale below their moving average
MAX_BARS = 30  # classes; more are drawn as points over the rank from head to tail

W_RATIO_PANELS = (("w_ratio", "All classes"), ("w_ratio/head", "Head classes"), ("w_ratio/tail", "Tail classes"))
CLASS_PANELS = (  # key of a per-class row, heading, key in "real_vs_real"
    ("ifid", "Intra-class FID (lower is better)", "ifid"),
    ("ifid_clip", "Intra-class FID_CLIP (lower is better)", "ifid_clip"),
    ("recall", "Recall within the class (higher is better)", "class_recall"),
)


def _get_panel(name: str) -> str:
    return next((title for title, pattern in PANELS if re.search(pattern, name.lower())), name)


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Compute the centred mean of [n] values over ``window`` points, fewer at the ends and without non-finite values."""
    finite = np.isfinite(values)
    kernel = np.ones(window)
    weight = np.convolve(finite, kernel, mode="same")
    total = np.convolve(np.where(finite, values, 0.0), kernel, mode="same")
    return np.where(weight > 0, total / np.maximum(weight, 1), np.nan)


def _series(records: Sequence[Mapping[str, Any]], name: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Return times and values of one logged metric; null, logged for non-finite values, becomes NaN."""
    pairs = [(record[axis], record[name]) for record in records if name in record]
    values = np.array([math.nan if value is None else float(value) for _, value in pairs])
    return np.array([float(time) for time, _ in pairs]), values


def _draw_curve(axes: Axes, x: np.ndarray, y: np.ndarray, label: str, index: int) -> None:
    """Draw the curve number ``index`` of a panel; colours repeat dashed when they are used up."""
    colour, line = RUN_COLOURS[index % len(RUN_COLOURS)], LINES[index // len(RUN_COLOURS) % len(LINES)]
    if len(y) < SMOOTHED_FROM:
        marker = "o" if len(y) < 12 else None
        axes.plot(x, y, color=colour, linestyle=line, linewidth=1.4, label=label, marker=marker, markersize=3)
        return
    axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.3)
    smooth = moving_average(y, max(3, len(y) // 30))
    axes.plot(x, smooth, color=colour, linestyle=line, linewidth=1.5, label=label)


def _panels(names: Collection[str]) -> dict[str, dict[str, str]]:
    """Return heading of each panel -> logged name -> label of the curve, in display order."""
    panels: dict[str, dict[str, str]] = {}
    for name in names:
        if not name.startswith((EVALUATED, SINGULAR_VALUES)):
            panels.setdefault(_get_panel(name), {})[name] = name
    rank = {panel: i for i, (panel, _) in enumerate(PANELS)}
    ordered = {panel: panels[panel] for panel in sorted(panels, key=lambda panel: rank.get(panel, len(rank)))}
    for heading, curves in EVALUATION_PANELS:
        if logged := {EVALUATED + key: label for key, label in curves.items() if EVALUATED + key in names}:
            ordered[heading] = logged
    return ordered


def training_curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the metrics of a ``metrics.jsonl``: logits, W ratio, regularisers, losses, and everything else logged.

    Evaluations during training (``evaluation/…``) are drawn in the panels of `EVALUATION_PANELS`.

    Args:
      records: as from `read_metrics`. The horizontal axis is ``kimg`` where every record has it, else ``step``.

    Returns:
      A figure outside pyplot. Curves of 60 points or more are drawn pale with their moving average.

    Raises:
      UserError: there is nothing to draw.
    """
    logged = dict.fromkeys(name for record in records for name in record if name not in NOT_CURVES)
    panels = _panels(logged)
    if not panels:
        raise UserError("There are no training curves to draw: metrics.jsonl holds no numbers yet.")
    axis = next(key for key in TIME_AXES if all(key in record for record in records))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(8.6, 2.8 * rows + 0.4)
    figure.get_layout_engine().set(h_pad=0.1)  # type: ignore[call-arg]  # of a constrained layout
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (axes, (heading, curves)) in enumerate(zip(grid, panels.items(), strict=False)):
        style_axes(axes, heading)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        for i, (name, label) in enumerate(curves.items()):
            _draw_curve(axes, *_series(records, name, axis), label, i)
        if heading == W_RATIO:
            axes.set_ylim(bottom=0)  # 0 is collapse
        lowest = panel >= len(panels) - columns
        if lowest:
            axes.set_xlabel("thousand real images shown" if axis == "kimg" else axis)
        if len(curves) > 1 or not heading.endswith(label):  # a panel named after its only curve needs no legend
            _legend_below(axes, points=36 if lowest else 18)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure


def _legend_below(axes: Axes, points: float) -> None:
    """Add a legend below the axes, away from the curves, with as many columns as the labels leave room for."""
    longest = max(len(text) for text in axes.get_legend_handles_labels()[1])
    below = ScaledTranslation(0, -points / 72, axes.figure.dpi_scale_trans)
    axes.legend(
        fontsize=7.5,
        frameon=False,
        labelcolor=INK,
        ncols=4 if longest <= 9 else 3 if longest <= 14 else 2 if longest <= 26 else 1,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=axes.transAxes + below,
        borderaxespad=0,
        borderpad=0,
        columnspacing=1.2,
    )


def w_ratio_figure(runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], title: str = "") -> Figure:
    """Draw the W ratio of several methods over training: all classes, head and tail, means over seeds.

    Args:
      runs: method -> the records (`read_metrics`) of each of its seeds. Times that every seed has are drawn;
        seeds and methods that did not log the ratio are left out.
      title: heading of the figure.

    Returns:
      A figure outside pyplot, with a panel for each of the three ratios that was logged. A band around a curve is
      the standard deviation over its seeds.

    Raises:
      UserError: no run has logged its W ratio.
    """
    curves = {(key, name): _mean_curve(seeds, key) for key, _ in W_RATIO_PANELS for name, seeds in runs.items()}
    panels = [panel for panel in W_RATIO_PANELS if any(len(curves[panel[0], name][0]) for name in runs)]
    if not panels:
        raise UserError("No run has logged its W ratio; set config.w_ratio_interval_kimg above 0 and train again.")
    figure = new_figure(8.6, 3.2)
    for axes, (key, heading) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        style_axes(axes, heading)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        for i, name in enumerate(runs):
            times, mean, deviation = curves[key, name]
            colour = RUN_COLOURS[i % len(RUN_COLOURS)]
            if len(times):
                axes.fill_between(times, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
                axes.plot(times, mean, color=colour, linewidth=1.5, label=name, marker="o", markersize=2.5)
        axes.set_xlabel("thousand real images shown")
    figure.axes[0].set_ylim(bottom=0)  # shared by all axes
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = min(4, len(labels))
    figure.legend(
        handles, short_names(labels, 28), loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    return figure


def _mean_curve(seeds: Sequence[Sequence[Mapping[str, Any]]], key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the times (kimg) that all seeds with this metric share, its means and population standard deviations."""
    curves = [{r["kimg"]: _number(r[key]) for r in records if key in r and "kimg" in r} for records in seeds]
    curves = [curve for curve in curves if curve]
    times = sorted(set.intersection(*map(set, curves))) if curves else []
    values = np.array([[curve[time] for time in times] for curve in curves]).reshape(len(curves), len(times))
    return np.array(times), *((values.mean(axis=0), values.std(axis=0)) if len(times) else (np.array([]),) * 2)


def _per_class_rows(evaluation: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    return {int(row["class"]): row for row in evaluation.get("per_class") or () if "class" in row}


def rows_head_to_tail(evaluation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Sort the per-class rows of an evaluation by descending number of training images, then by class id."""
    rows = _per_class_rows(evaluation).values()
    return sorted(rows, key=lambda row: (-(row.get("n_train") or 0), row["class"]))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def per_class_figure(evaluations: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw intra-class FID, intra-class FID_CLIP and recall of every class, head to tail, for one run or several.

    Args:
      evaluations: run name -> result of `evaluate_generator`. Classes and their order are those of the first run;
        missing numbers leave a gap.

    Returns:
      A figure outside pyplot, with a panel for each of the three that was measured: bars for up to 30 classes,
      else points over the rank with their moving average. A dashed line marks real images against real images, where
      the first evaluation has it.

    Raises:
      UserError: no evaluation has per-class rows with an intra-class FID or a recall.
    """
    runs = {name: _per_class_rows(evaluation) for name, evaluation in evaluations.items()}
    order = rows_head_to_tail(next(iter(evaluations.values()), {}))
    panels = [
        panel
        for panel in CLASS_PANELS
        if any(row.get(panel[0]) is not None for rows in runs.values() for row in rows.values())
    ]
    if not order or not panels:
        raise UserError("The evaluation has no per-class intra-class FID or recall to draw.")
    real_vs_real = next(iter(evaluations.values())).get("real_vs_real") or {}
    figure = new_figure(8.6, 2.7 * len(panels) + 0.5)
    for axes, (key, heading, real_key) in zip(
        figure.subplots(len(panels), 1, squeeze=False).ravel(), panels, strict=True
    ):
        style_axes(axes, heading)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        values = {name: [_number(rows.get(row["class"], {}).get(key)) for row in order] for name, rows in runs.items()}
        _draw_classes(axes, order, values)
        level = _number(real_vs_real.get(real_key))
        if math.isfinite(level):
            axes.axhline(level, color=FAINT, linewidth=1, linestyle="--", label="real against real")
        if len(runs) > 1 or math.isfinite(level):
            axes.legend(fontsize=8, frameon=False, labelcolor=INK, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
        axes.margins(x=0.02, y=0.12)
        axes.set_ylim(bottom=0, top=1.12 if key == "recall" else None)  # recall ends at 1; room for its labels
        if key == "recall":
            axes.set_yticks(np.linspace(0, 1, 6))
    return figure


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "none"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value > 1 else f"{value:.2f}"


def _draw_classes(axes: Axes, order: Sequence[Mapping[str, Any]], values: Mapping[str, list[float]]) -> None:
    """Draw bars grouped by class, or points over the rank for many classes."""
    ranks = np.arange(len(order))
    if len(order) > MAX_BARS:
        _draw_many_classes(axes, order, values)
        return
    width = 0.8 / len(values)
    for i, (name, heights) in enumerate(values.items()):
        single = len(values) == 1
        colour = rank_colours(len(order)) if single else RUN_COLOURS[i % len(RUN_COLOURS)]
        offset = (i - (len(values) - 1) / 2) * width
        bars = axes.bar(ranks + offset, heights, width * 0.92, color=colour, label=None if single else name)
        if len(values) * len(order) <= 20:
            texts = axes.bar_label(bars, [_short(height) for height in heights], fontsize=7.5, color=FAINT, padding=2)
            for text in texts:  # legible on top of the dashed line
                text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5})
    names = [str(row.get("name", row["class"])) for row in order]
    slanted = len(order) > 8 and any(len(name) > 6 for name in names)
    names = short_names(names, 22 if slanted else 12)
    counts = [f"\n{row['n_train']}" if row.get("n_train") is not None else "" for row in order]
    axes.set_xticks(ranks, [name + count for name, count in zip(names, counts, strict=True)])
    if slanted:
        axes.tick_params(axis="x", labelrotation=35)
    axes.set_xlabel("class, and its number of training images" if any(counts) else "class")


def _draw_many_classes(axes: Axes, order: Sequence[Mapping[str, Any]], values: Mapping[str, list[float]]) -> None:
    """Draw a point a class, a line of means over neighbouring ranks, and rules between head, medium and tail."""
    ranks, window = np.arange(len(order)), max(3, len(order) // 30)
    for i, (name, heights) in enumerate(values.items()):
        colour = RUN_COLOURS[i % len(RUN_COLOURS)]
        axes.plot(ranks, heights, ".", color=colour, markersize=3, markeredgewidth=0, alpha=0.45)
        axes.plot(ranks, moving_average(np.array(heights), window), color=colour, linewidth=1.5, label=name)
    start = 0
    for group, members in itertools.groupby(row.get("group") for row in order):
        size = len(list(members))
        if start:
            axes.axvline(start - 0.5, color=RULE, linewidth=1, zorder=1)
        middle, top = start + (size - 1) / 2, axes.get_xaxis_transform()
        axes.text(middle, 0.99, group or "", transform=top, ha="center", va="top", fontsize=8, color=FAINT)
        start += size
    ticks = np.linspace(0, len(order) - 1, 8).round().astype(int)
    counts = [order[rank].get("n_train") for rank in ticks]
    known = None not in counts
    axes.set_xticks(ticks, [f"{r + 1}\n{n}" if known else f"{r + 1}" for r, n in zip(ticks, counts, strict=True)])
    meaning = "rank of the class, head to tail" + (", and its number of training images" if known else "")
    axes.set_xlabel(f"{meaning}; lines: means over {window} classes")
