"""Summary of a prepared data set's classes, as text and as a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from noisytwins_jax.data.aspect import PAD, STRETCH
from noisytwins_jax.data.long_tail import class_groups
from noisytwins_jax.data.preprocessing import Preprocessing
from noisytwins_jax.utils.plotting import RUN_COLOURS, figure_png, new_figure, style_axes

CLASS_COUNTS_FILE = "class_counts.png"
_COLOURS = {"head": RUN_COLOURS[0], "medium": RUN_COLOURS[6], "tail": RUN_COLOURS[1]}
_BAR_WIDTH = 40  # characters, in the text's histogram
_MAX_LINES, _MAX_NAME = 10, 32


def describe_classes(info: Mapping[str, Any]) -> str:
    """Describe the classes of a prepared data set's training images: totals, groups, and counts from head to tail."""
    counts, names = np.array(info["splits"]["train"]["class_counts"]), info["class_names"]
    order = np.argsort(-counts, kind="stable")
    low, high = info["group_thresholds"]
    sizes = info["group_sizes"]
    totals = ", ".join(f"{facts['images']} {split}" for split, facts in info["splits"].items())
    lines = [
        f"{len(names)} classes, {totals} images of {info['resolution']} px ({info['preprocessing']}); "
        f"imbalance factor {counts.min() / counts.max():.3g}",
        f"{sizes['head']} classes have more than {high} training images, {sizes['medium']} from {low} to {high}, "
        f"{sizes['tail']} fewer than {low}",
    ]
    if info.get("aspect"):
        lines.append(f"pictures are shown {_describe_ratio(info['aspect']['ratio'])} in samples and reports")
    elif Preprocessing.parse(info["preprocessing"]).crop in (PAD, STRETCH):
        lines.append("pictures have several aspect ratios: samples and reports show the squares")
    ranks = np.unique(np.linspace(0, len(order) - 1, min(len(order), _MAX_LINES)).round().astype(int))
    width = max(len(_shorten(names[order[rank]])) for rank in ranks)
    for rank in ranks:
        label = order[rank]
        bar = "█" * max(1, round(_BAR_WIDTH * counts[label] / counts.max()))
        lines.append(f"  {rank + 1:>5}. {_shorten(names[label]):<{width}} {counts[label]:>7} {bar}")
    return "\n".join(lines)


def draw_class_counts(path: Path, title: str, counts: Sequence[int], thresholds: tuple[int, int]) -> None:
    """Plot the training images of every class from head to tail, coloured by group, on a logarithmic axis."""
    counts = np.asarray(counts)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty(len(order), int)
    rank[order] = np.arange(1, len(order) + 1)
    figure = new_figure(7.2, 3.2)
    axes = style_axes(figure.subplots(), title)
    low, high = thresholds
    ranges = {"head": f"more than {high}", "medium": f"{low} to {high}", "tail": f"fewer than {low}"}
    for group, ids in class_groups(counts, thresholds).items():
        if len(ids):
            label = f"{group}: {len(ids)} classes, {ranges[group]} images"
            axes.bar(rank[ids], counts[ids], width=1.0, color=_COLOURS[group], label=label)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.8)
    axes.set_xlim(0.5, len(counts) + 0.5)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("class, from the most to the least frequent")
    axes.set_ylabel("training images")
    axes.legend(frameon=False, fontsize=8)
    path.write_bytes(figure_png(figure))


def _describe_ratio(ratio: float) -> str:
    """Describe width over height: ``1.5 times as wide as high``."""
    if ratio == 1:
        return "square"
    return f"{ratio:.3g} times as wide as high" if ratio > 1 else f"{1 / ratio:.3g} times as high as wide"


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"
