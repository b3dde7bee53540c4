"""Figure of memorisation: distances of generated and of held-out real images to the training images."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.plotting import FAINT, INK, RULE, RUN_COLOURS, new_figure, style_axes

_PANELS = (("overall", "All training images"), ("within_class", "Training images of the same class"))
_ROWS = (("held_out_to_train", "held-out real", RUN_COLOURS[0]), ("fake_to_train", "generated", RUN_COLOURS[1]))
_INTERVALS = ((0.01, 0.99, 1.2), (0.05, 0.95, 4), (0.25, 0.75, 13))  # lower and upper quantile, thickness in points


def memorisation_figure(memorisation: Mapping[str, Any], note: str = "") -> Figure:
    """Draw the distances to the nearest training image, of generated images and of held-out real ones.

    Generated images that lie nearer to the training images than held-out ones do are copies, or nearly so.

    Args:
      memorisation: the ``memorisation`` of an evaluation (`metrics.memorisation`): ``overall`` and ``within_class``,
        each with quantiles of ``fake_to_train`` and ``held_out_to_train``. Parts may be missing or None.
      note: a line below the figure, such as the protocol.

    Returns:
      A figure outside pyplot: bars over the middle half, 90% and 98% of the images, and a dot at the
      median. A dashed line marks the nearest hundredth of the held-out images.

    Raises:
      UserError: there are no quantiles of generated images.
    """
    panels = [
        (part, heading) for key, heading in _PANELS if _quantiles(part := memorisation.get(key) or {}, "fake_to_train")
    ]
    if not panels:
        raise UserError("The evaluation has no distances to training images to draw: evaluate with memorisation on.")
    figure = new_figure(8.6, 1.75 * len(panels) + 0.5)
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (part, heading) in zip(grid, panels, strict=True):
        style_axes(axes, heading)
        axes.set_title(_summary(part), loc="right", fontsize=8, color=FAINT)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        names = []
        for key, name, colour in _ROWS:
            if quantiles := _quantiles(part, key):
                _draw_row(axes, len(names), quantiles, colour)
                names.append(name)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", labelsize=9, length=0)
        axes.set_ylim(-0.6, len(names) - 0.4)
        near = _quantiles(part, "held_out_to_train").get(0.01)
        if near is not None:
            axes.axvline(near, color=INK, linewidth=1, linestyle="--", zorder=1)
    grid[0].set_xlim(left=0)  # shared by all axes
    grid[-1].set_xlabel("distance to the nearest training image; bars: middle 50%, 90% and 98% of the images")
    if note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=7, color=FAINT, wrap=True)
    return figure


def _quantiles(part: Mapping[str, Any], key: str) -> dict[float, float]:
    """Return the defined quantiles, median included: share of the images -> distance."""
    distances = part.get(key) or {}
    values = {float(share): value for share, value in (distances.get("quantiles") or {}).items()} | (
        {0.5: distances["median"]} if distances.get("median") is not None else {}
    )
    return {share: float(value) for share, value in values.items() if value is not None}


def _draw_row(axes: Axes, row: int, quantiles: Mapping[float, float], colour: str) -> None:
    for low, high, thickness in _INTERVALS:
        if low in quantiles and high in quantiles:
            axes.hlines(
                row, quantiles[low], quantiles[high], color=colour, linewidth=thickness, alpha=0.55, capstyle="butt"
            )
    if 0.5 in quantiles:
        axes.plot(quantiles[0.5], row, "o", color="white", markeredgecolor=colour, markeredgewidth=1.6, markersize=6)


def _summary(part: Mapping[str, Any]) -> str:
    """Describe AuthPct and the share of near copies, as far as they are known."""
    parts = []
    if (auth := part.get("auth_pct")) is not None:
        parts.append(f"AuthPct {auth:.1f}%")
    if (share := part.get("share_nearer_than_held_out")) is not None:
        parts.append(f"{share:.1%} of the generated images nearer than the dashed line")
    return "; ".join(parts)
