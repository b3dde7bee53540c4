"""Figure of known factors: how much of each factor's range the generated images of a class cover."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from noisytwins_jax.utils.plotting import FAINT, INK, RULE, RUN_COLOURS, new_figure, style_axes

_PANELS = (
    ("coverage_ratio", "Coverage: share of each factor's range that a class reaches, of what true images would"),
    ("entropy", "Entropy: how evenly it is reached"),
)
_GROUP_COLOURS = dict(zip(("head", "medium", "tail"), RUN_COLOURS, strict=False))


def factor_figure(factors: Mapping[str, Any]) -> Figure:
    """Draw bars for every factor and group of classes, from the ``factors`` of an evaluation (`metrics.factors`).

    A dash over the bars marks the value of held-out real images under the same network, the best possible. Names of
    factors that the network predicts badly (R² below 0.5) are grey.
    """
    names = factors["protocol"]["factors"]
    quality = factors["protocol"]["held_out"]["factors"]
    groups = {name: group for name, group in factors["groups"].items() if group["n_classes"]}
    groups = groups or {"all classes": factors["metrics"]}
    width = 0.8 / len(groups)
    figure = new_figure(8.6, 5.4)
    for axes, (key, heading) in zip(figure.subplots(2, 1), _PANELS, strict=True):
        style_axes(axes, heading)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        for i, (group, values) in enumerate(groups.items()):
            positions = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * width
            heights = [values["factors"][name][key] or 0 for name in names]
            colour = _GROUP_COLOURS.get(group, RUN_COLOURS[i % len(RUN_COLOURS)])
            axes.bar(positions, heights, 0.92 * width, color=colour, label=group)
        best_possible = [factors["real_vs_real"]["metrics"]["factors"][name][key] for name in names]
        for position, level in enumerate(best_possible):
            if level is not None:
                label = "real images" if position == 0 else None
                axes.hlines(level, position - 0.44, position + 0.44, color=INK, linewidth=1.4, label=label)
        axes.set_ylim(0, 1.08)
        axes.set_xticks(range(len(names)), names)
        for tick, name in zip(axes.get_xticklabels(), names, strict=True):
            r2 = quality[name]["r2"]
            tick.set_color(FAINT if r2 is not None and r2 < 0.5 else INK)
    figure.axes[0].legend(
        fontsize=8, frameon=False, labelcolor=INK, ncols=4, loc="lower right", bbox_to_anchor=(1, 1.08)
    )
    return figure
