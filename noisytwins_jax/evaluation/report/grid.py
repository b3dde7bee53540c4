"""Results of a hyper-parameter grid: a table, a CSV file and a plot of metrics against the swept values."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from noisytwins_jax.evaluation.table import format_means, format_table
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.plotting import (
    FAINT,
    RULE,
    RUN_COLOURS,
    figure_png,
    new_figure,
    rank_colours,
    style_axes,
)

PANELS = (
    ("ifid", "Intra-class FID (lower is better)"),
    ("recall", "Recall (higher is better)"),
    ("precision", "Precision (higher is better)"),
    ("w_ratio", "W variance within classes / total"),
)


class GridRun(NamedTuple):
    """A finished run of a grid."""

    name: str
    method: str
    point: Mapping[str, str]  # swept field (short name) -> value as typed; the same fields in every run
    seed: str
    evaluation: Mapping[str, Any]  # see `evaluate_generator`

    def metric(self, key: str) -> float:
        """Return one of its metrics; NaN where it is not defined."""
        value = self.evaluation["metrics"].get(key)
        return math.nan if value is None else float(value)


def is_number(text: str) -> bool:
    """Return whether a swept value is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def write_grid(prefix: Path, runs: Sequence[GridRun]) -> str:
    """Write ``prefix.txt`` (`grid_table`), ``prefix.csv`` (a row a run) and, for up to two fields, ``prefix.png``.

    Returns:
      The table and the paths of the files, as text.
    """
    fields = list(runs[0].point)
    files = {kind: prefix.with_name(f"{prefix.name}.{kind}") for kind in ("txt", "csv", "png")}
    prefix.parent.mkdir(parents=True, exist_ok=True)
    text = grid_table(runs)
    files["txt"].write_text(text + "\n", encoding="utf-8")
    keys = list(dict.fromkeys(key for run in runs for key in run.evaluation["metrics"]))
    with files["csv"].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "method", *fields, "seed", *keys])
        for run in runs:
            numbers = [run.evaluation["metrics"].get(key) for key in keys]  # None is an empty cell
            writer.writerow([run.name, run.method, *run.point.values(), run.seed, *numbers])
    if len(fields) <= 2:
        files["png"].write_bytes(figure_png(grid_figure(runs)))
        plot = f"Plot: {files['png'].absolute()}"
    else:
        plot = f"No plot: it shows one field or two, and here are {len(fields)}."
    return "\n".join([text, "", f"Table: {files['txt'].absolute()}, run by run: {files['csv'].absolute()}", plot])


def grid_table(runs: Sequence[GridRun]) -> str:
    """Format a plain-text table, a row a point: means and standard deviations where there are several seeds."""
    methods = len({run.method for run in runs}) > 1
    points: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        parts = [run.method] * methods + [f"{name}={value}" for name, value in run.point.items()]
        points.setdefault(" ".join(parts), []).append(run.evaluation)
    if all(len(seeds) == 1 for seeds in points.values()):
        return format_table({name: seeds[0] for name, seeds in points.items()})
    return format_means(points)


def grid_figure(runs: Sequence[GridRun]) -> Figure:
    """Draw iFID, recall, precision and W ratio against a grid's first field, a curve for each value of the second.

    With several methods there is also a curve for each of them. Points are means over seeds, bars their standard
    deviation. Numbers that span a decade lie on a logarithmic axis; values that are not numbers are spaced evenly.

    Args:
      runs: finished runs of a grid of one field or two. Points without a finished run are left out.

    Returns:
      A figure outside pyplot.

    Raises:
      UserError: there is no run, or the grid has more than two fields.
    """
    if not runs or not 1 <= len(runs[0].point) <= 2:
        raise UserError("A grid's plot needs finished runs, and a grid of one field or two.")
    field, *second = runs[0].point
    several = len({run.method for run in runs}) > 1
    curves: dict[str, dict[str, list[GridRun]]] = {}
    for run in runs:
        parts = [run.method] * several + [f"{name} = {run.point[name]}" for name in second]
        curves.setdefault(", ".join(parts), {}).setdefault(run.point[field], []).append(run)
    values = list(dict.fromkeys(run.point[field] for run in runs))
    positions = {value: float(value) if all(map(is_number, values)) else i for i, value in enumerate(values)}
    colours = RUN_COLOURS if len(curves) <= len(RUN_COLOURS) else rank_colours(len(curves))
    figure = new_figure(8.6, 5.6)
    for axes, (key, heading) in zip(figure.subplots(2, 2).ravel(), PANELS, strict=True):
        style_axes(axes, heading)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        for (label, points), colour in zip(curves.items(), colours, strict=False):
            order = sorted(points, key=positions.get)
            seeds = [np.array([run.metric(key) for run in points[value]]) for value in order]
            axes.errorbar(
                [positions[value] for value in order],
                [x.mean() for x in seeds],
                [x.std() for x in seeds] if max(map(len, seeds)) > 1 else None,
                color=colour,
                label=label,
                marker="o",
                markersize=4,
                linewidth=1.4,
                elinewidth=1,
                capsize=2.5,
            )
        _scale_x_axis(axes, positions)
        axes.set_xlabel(field)
    if len(curves) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8.5, frameon=False
        )
    return figure


def _scale_x_axis(axes: Axes, positions: Mapping[str, float]) -> None:
    """Set a tick at each value, and a logarithmic axis (linear near 0) where they span a decade."""
    positive = [x for x in positions.values() if x > 0]
    numbers = all(map(is_number, positions))
    if numbers and min(positions.values()) >= 0 and positive and max(positive) >= 10 * min(positive):
        if min(positions.values()) > 0:
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
    axes.set_xticks(list(positions.values()), list(positions))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", colors=FAINT)
