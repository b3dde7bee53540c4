"""What a prepared data set looks like: a few lines, and a picture of its tail, so that a mistake is seen at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from noisytwins_jax.data.long_tail import class_groups
from noisytwins_jax.utils.plotting import RUN_COLOURS, figure_png, new_figure, style_axes

CLASS_COUNTS_FILE = "class_counts.png"
_COLOURS = {"head": RUN_COLOURS[0], "medium": RUN_COLOURS[6], "tail": RUN_COLOURS[1]}
_BARS = 40  # in the text's histogram, characters
_ROWS = 10


def describe_classes(info: Mapping[str, Any]) -> str:
    """The classes of a prepared data set's training images, in lines: totals, groups, and counts from head to tail."""
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
    shown = np.unique(np.linspace(0, len(order) - 1, min(len(order), _ROWS)).round().astype(int))
    width = max(len(_short(names[order[place]])) for place in shown)
    for place in shown:
        label = order[place]
        bar = "█" * max(1, round(_BARS * counts[label] / counts.max()))
        lines.append(f"  {place + 1:>5}. {_short(names[label]):<{width}} {counts[label]:>7} {bar}")
    return "\n".join(lines)


def draw_class_counts(path: Path, title: str, counts: Sequence[int], thresholds: tuple[int, int]) -> None:
    """Writes a picture: training images of every class from head to tail, coloured by group, on a logarithmic axis."""
    counts = np.asarray(counts)
    order = np.argsort(-counts, kind="stable")
    place = np.empty(len(order), int)
    place[order] = np.arange(1, len(order) + 1)
    figure = new_figure(7.2, 3.2)
    axes = style_axes(figure.subplots(), title)
    low, high = thresholds
    meanings = {"head": f"more than {high}", "medium": f"{low} to {high}", "tail": f"fewer than {low}"}
    for group, ids in class_groups(counts, thresholds).items():
        if len(ids):
            label = f"{group}: {len(ids)} classes, {meanings[group]} images"
            axes.bar(place[ids], counts[ids], width=1.0, color=_COLOURS[group], label=label)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.8)
    axes.set_xlim(0.5, len(counts) + 0.5)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("class, from the most to the least frequent")
    axes.set_ylabel("training images")
    axes.legend(frameon=False, fontsize=8)
    path.write_bytes(figure_png(figure))


def _short(name: str, longest: int = 32) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
