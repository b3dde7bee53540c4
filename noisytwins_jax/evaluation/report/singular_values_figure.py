"""Figure of the weights' singular values over training (Brock et al. 2019, Fig. 3): collapse shows as exploding σ0."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from noisytwins_jax.evaluation.report.curves import TIME_AXES
from noisytwins_jax.utils.plotting import FAINT, INK, RULE, new_figure, rank_colours, short_names, style_axes

NETWORKS = ("generator", "discriminator")  # others come after them
LABELLED_LAYERS = 3  # of each network in the legend: those whose σ0 grew most
MIN_AXIS_RATIO = 4.0  # of the limits of an axis, so that rounding does not look like change
_NAME = re.compile(r"spectra/([^/]+)/(.+)/(\d+)")
# Prefixes of the names of first and last layers, for layers without a number in their name.
_FIRST = {"generator": ("mapping", "shared", "linear", "input"), "discriminator": ("input",)}
_LAST = {"generator": ("output",), "discriminator": ("output", "mapping", "linear", "embed", "head")}

SingularValues = tuple[np.ndarray, np.ndarray, np.ndarray]  # times, σ0, σ0/σ1; each [n]


def singular_values_figure(
    records: Sequence[Mapping[str, Any]], marks: Mapping[float, str] | None = None
) -> Figure | None:
    """Draw σ0 of every weight over training, and below it σ0/σ1, in a column of panels for each network.

    Args:
      records: as from `read_metrics`, with singular values named by `singular_values.to_metrics`. The horizontal axis is
        ``kimg`` where every record has it, else ``step``.
      marks: step -> label of an event, such as collapse, drawn as a dashed line.

    Returns:
      A figure outside pyplot, coloured from the first layer to the last as far as names tell their order; or None if no
      singular values were logged. Values that are not finite or not positive are gaps.
    """
    names = [
        match for name in dict.fromkeys(n for record in records for n in record) if (match := _NAME.fullmatch(name))
    ]
    if not names:
        return None
    axis = next(key for key in TIME_AXES if all(key in record for record in records))
    logged = dict.fromkeys(match[1] for match in names)
    networks = [n for n in NETWORKS if n in logged] + [n for n in logged if n not in NETWORKS]
    figure = new_figure(4.9 * len(networks), 5.6)
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)  # type: ignore[call-arg]  # of a constrained layout
    panels = figure.subplots(3, len(networks), squeeze=False, height_ratios=(1, 1, 0.24))
    for (above, below, legend), network in zip(panels.T, networks, strict=True):
        layers = sort_layers(dict.fromkeys(match[2] for match in names if match[1] == network), network)
        values = {layer: _read_singular_values(records, f"spectra/{network}/{layer}", axis) for layer in layers}
        colours = dict(zip(layers, rank_colours(len(layers)), strict=True))
        _draw(above, {layer: (times, first) for layer, (times, first, _) in values.items()}, colours)
        _draw(below, {layer: (times, ratio) for layer, (times, _, ratio) in values.items()}, colours)
        style_axes(above, f"{network.capitalize()}: σ0 of every weight")
        style_axes(below, f"{network.capitalize()}: σ0/σ1")
        above.sharex(below)
        above.tick_params(labelbottom=False)
        below.set_xlabel("thousand real images shown" if axis == "kimg" else axis)
        _draw_marks(above, below, _to_axis(marks or {}, records, axis))
        _label_fastest(legend, {layer: _growth(first) for layer, (_, first, _) in values.items()}, colours)
    _colour_bar(figure, panels[:2])
    return figure


def sort_layers(layers: Iterable[str], network: str) -> list[str]:
    """Sort paths of weights from the first layer to the last, as far as their names tell.

    Numbers ascend, but resolutions (``b64``) descend in the discriminator. In a BigGAN, attention comes before the
    convolutions of its block.
    """

    def key(layer: str) -> tuple[int, list[tuple[int, int, str]]]:
        parts = layer.split("/")
        position = 1
        if any(part.startswith(_FIRST.get(network, ())) for part in parts[:1]):
            position = 0
        elif any(part.startswith(_LAST.get(network, ())) for part in parts[:1]):
            position = 2
        return position, [token for part in parts for token in _tokens(part, descending=network == "discriminator")]

    return sorted(layers, key=key)


def _tokens(part: str, descending: bool) -> list[tuple[int, int, str]]:
    """Split a part of a path into sort keys in which numbers compare as numbers."""
    if resolution := re.fullmatch(r"b(\d+)", part):
        return [(0, int(resolution[1]) * (-1 if descending else 1), "")]
    return [(0, int(x), "") if x.isdecimal() else (1, 0, x) for x in re.split(r"(\d+)", part) if x]


def _read_singular_values(records: Sequence[Mapping[str, Any]], name: str, axis: str) -> SingularValues:
    """Return times, first singular values and their ratios to the second for one weight."""
    rows = [(record[axis], record[f"{name}/0"], record.get(f"{name}/1")) for record in records if f"{name}/0" in record]
    values = np.array([[_positive(x) for x in row[1:]] for row in rows]).reshape(-1, 2)
    return np.array([float(row[0]) for row in rows]), values[:, 0], values[:, 0] / values[:, 1]


def _positive(value: Any) -> float:
    """Return a positive finite number as a float, and NaN for others, which a logarithmic axis cannot show."""
    return float(value) if value is not None and math.isfinite(value) and value > 0 else math.nan


def _draw(axes: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], colours: Mapping[str, Any]) -> None:
    axes.set_yscale("log")
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    for layer, (x, y) in curves.items():
        marker = "o" if len(y) < 12 else None
        axes.plot(x, y, color=colours[layer], linewidth=1.0, alpha=0.85, marker=marker, markersize=2.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axes.get_ylim()
    if high / low < MIN_AXIS_RATIO:
        middle = math.sqrt(low * high)
        axes.set_ylim(middle / math.sqrt(MIN_AXIS_RATIO), middle * math.sqrt(MIN_AXIS_RATIO))
    if high / low > 30:
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:  # an axis of a decade or less would have no tick labels
        axes.yaxis.set_minor_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if _leading_digit(value) in (2, 5) else "")
        )
    axes.tick_params(axis="y", which="minor", labelsize=8, colors=FAINT, length=2)


def _leading_digit(value: float) -> int:
    return round(value / 10 ** math.floor(math.log10(value) + 1e-9))


def _to_axis(marks: Mapping[float, str], records: Sequence[Mapping[str, Any]], axis: str) -> dict[float, str]:
    """Convert marks at steps to positions on the horizontal axis."""
    steps, times = np.array(sorted((record["step"], record[axis]) for record in records), float).T
    return {float(np.interp(step, steps, times)): label for step, label in marks.items()}


def _draw_marks(above: Axes, below: Axes, marks: Mapping[float, str]) -> None:
    for x, label in marks.items():
        for axes in (above, below):
            axes.axvline(x, color=FAINT, linewidth=1, linestyle="--")
        above.annotate(
            label,
            (x, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-3, -3),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            fontsize=7.5,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )


def _growth(first: np.ndarray) -> float:
    """Return the ratio of the last finite value of a curve to the first; 0 without two values."""
    finite = first[np.isfinite(first)]
    return finite[-1] / finite[0] if len(finite) > 1 else 0.0


def _label_fastest(axes: Axes, growth: Mapping[str, float], colours: Mapping[str, Any]) -> None:
    """Add a legend, in axes of its own, of the layers whose σ0 grew most."""
    axes.axis("off")
    fastest = sorted((layer for layer in growth if growth[layer] > 0), key=lambda layer: -growth[layer])[
        :LABELLED_LAYERS
    ]
    if not fastest:
        return
    lines = [Line2D([], [], color=colours[layer], linewidth=1.5) for layer in fastest]
    names = short_names([layer.removesuffix("/weight") for layer in fastest], 38)
    labels = [f"{name} (× {growth[layer]:.3g})" for name, layer in zip(names, fastest, strict=True)]
    axes.legend(
        lines,
        labels,
        title="σ0 grew most, first to last value",
        title_fontsize=7.5,
        alignment="left",
        fontsize=7.5,
        frameon=False,
        labelcolor=INK,
        loc="upper left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0,
        borderpad=0,
    )


def _colour_bar(figure: Figure, panels: np.ndarray) -> None:
    colours = ScalarMappable(Normalize(0, 1), ListedColormap(rank_colours(256)))
    bar = figure.colorbar(colours, ax=panels, ticks=[0, 1], aspect=45, pad=0.01, fraction=0.03)
    bar.ax.set_yticklabels(["first\nlayer", "last\nlayer"])
    bar.ax.tick_params(labelsize=8, colors=FAINT, length=0)
    bar.outline.set_visible(False)
