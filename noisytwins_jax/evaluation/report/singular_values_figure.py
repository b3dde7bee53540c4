"""A figure of the weights' spectra over training (Brock et al. 2019, Fig. 3): where σ0 explodes, training collapses."""

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
NAMED = 3  # layers of each network that the legend names: those whose σ0 grew most
LEAST_RANGE = 4.0  # of an axis, so that rounding does not look like change
_NAME = re.compile(r"spectra/([^/]+)/(.+)/(\d+)")
# Where parts of a network are that have no number in their name: the first one's name, by what it begins with.
_FIRST = {"generator": ("mapping", "shared", "linear", "input"), "discriminator": ("input",)}
_LAST = {"generator": ("output",), "discriminator": ("output", "mapping", "linear", "embed", "head")}

Spectrum = tuple[np.ndarray, np.ndarray, np.ndarray]  # times, σ0, σ0/σ1; each [n]


def spectra_figure(
    records: Sequence[Mapping[str, Any]], title: str = "", marks: Mapping[float, str] | None = None
) -> Figure | None:
    """Draws σ0 of every weight over training, and below it σ0/σ1; a column of panels for each network.

    Args:
      records: what ``logs.read_metrics`` gives, singular values being named as by `spectra.scalars`. The horizontal axis
        is ``kimg`` where every record has it, else ``step``.
      title: heading of the figure.
      marks: steps at which something happened, such as collapse, and what to call it: a dashed line each.

    Returns:
      A figure of its own, outside pyplot, coloured from the first layer to the last as far as names tell where a layer
      is; or None if no singular values were logged. Values that are not finite or not positive are gaps.
    """
    names = [
        match for name in dict.fromkeys(n for record in records for n in record) if (match := _NAME.fullmatch(name))
    ]
    if not names:
        return None
    axis = next(key for key in TIME_AXES if all(key in record for record in records))
    found = dict.fromkeys(match[1] for match in names)
    networks = [n for n in NETWORKS if n in found] + [n for n in found if n not in NETWORKS]
    figure = new_figure(4.9 * len(networks), 5.6)
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)
    panels = figure.subplots(3, len(networks), squeeze=False, height_ratios=(1, 1, 0.24))
    for (above, below, words), network in zip(panels.T, networks, strict=True):
        layers = in_order(dict.fromkeys(match[2] for match in names if match[1] == network), network)
        spectra = {layer: _spectrum(records, f"spectra/{network}/{layer}", axis) for layer in layers}
        colours = dict(zip(layers, rank_colours(len(layers)), strict=True))
        _draw(above, {layer: (times, first) for layer, (times, first, _) in spectra.items()}, colours)
        _draw(below, {layer: (times, ratio) for layer, (times, _, ratio) in spectra.items()}, colours)
        style_axes(above, f"{network.capitalize()}: σ0 of every weight")
        style_axes(below, f"{network.capitalize()}: σ0/σ1")
        above.sharex(below)
        above.tick_params(labelbottom=False)
        below.set_xlabel("thousand real images shown" if axis == "kimg" else axis)
        _mark(above, below, _places(marks or {}, records, axis))
        _name_fastest(words, {layer: _growth(first) for layer, (_, first, _) in spectra.items()}, colours)
    _colour_bar(figure, panels[:2])
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    return figure


def in_order(layers: Iterable[str], network: str) -> list[str]:
    """Paths of weights from the first layer to the last, as far as their names tell.

    Numbers count upwards, but resolutions (``b64``) fall in the discriminator. In a BigGAN, attention is listed before
    the convolutions of its block.
    """

    def key(layer: str) -> tuple[int, list[tuple[int, int, str]]]:
        parts = layer.split("/")
        place = 1
        if any(part.startswith(_FIRST.get(network, ())) for part in parts[:1]):
            place = 0
        elif any(part.startswith(_LAST.get(network, ())) for part in parts[:1]):
            place = 2
        return place, [token for part in parts for token in _tokens(part, falling=network == "discriminator")]

    return sorted(layers, key=key)


def _tokens(part: str, falling: bool) -> list[tuple[int, int, str]]:
    """A part of a path so that numbers in it compare as numbers."""
    if resolution := re.fullmatch(r"b(\d+)", part):
        return [(0, int(resolution[1]) * (-1 if falling else 1), "")]
    return [(0, int(x), "") if x.isdecimal() else (1, 0, x) for x in re.split(r"(\d+)", part) if x]


def _spectrum(records: Sequence[Mapping[str, Any]], name: str, axis: str) -> Spectrum:
    """Times, first singular values and their ratio to the second of one weight."""
    rows = [(record[axis], record[f"{name}/0"], record.get(f"{name}/1")) for record in records if f"{name}/0" in record]
    values = np.array([[_positive(x) for x in row[1:]] for row in rows]).reshape(-1, 2)
    return np.array([float(row[0]) for row in rows]), values[:, 0], values[:, 0] / values[:, 1]


def _positive(value: Any) -> float:
    """A number that a logarithmic axis can show, else NaN."""
    return float(value) if value is not None and math.isfinite(value) and value > 0 else math.nan


def _draw(axes: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], colours: Mapping[str, Any]) -> None:
    axes.set_yscale("log")
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    for layer, (x, y) in curves.items():
        marker = "o" if len(y) < 12 else None
        axes.plot(x, y, color=colours[layer], linewidth=1.0, alpha=0.85, marker=marker, markersize=2.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axes.get_ylim()
    if high / low < LEAST_RANGE:
        middle = math.sqrt(low * high)
        axes.set_ylim(middle / math.sqrt(LEAST_RANGE), middle * math.sqrt(LEAST_RANGE))
    if high / low > 30:
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:  # with a decade or less on it, the axis would have no number at all
        axes.yaxis.set_minor_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if _leading(value) in (2, 5) else "")
        )
    axes.tick_params(axis="y", which="minor", labelsize=8, colors=FAINT, length=2)


def _leading(value: float) -> int:
    return round(value / 10 ** math.floor(math.log10(value) + 1e-9))


def _places(marks: Mapping[float, str], records: Sequence[Mapping[str, Any]], axis: str) -> dict[float, str]:
    """Marks at steps, as marks on the horizontal axis."""
    steps, times = np.array(sorted((record["step"], record[axis]) for record in records), float).T
    return {float(np.interp(step, steps, times)): said for step, said in marks.items()}


def _mark(above: Axes, below: Axes, places: Mapping[float, str]) -> None:
    for place, said in places.items():
        for axes in (above, below):
            axes.axvline(place, color=FAINT, linewidth=1, linestyle="--")
        above.annotate(
            said,
            (place, 1),
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
    """How many times its first value the last value of a curve is; 0 without two values."""
    finite = first[np.isfinite(first)]
    return finite[-1] / finite[0] if len(finite) > 1 else 0.0


def _name_fastest(axes: Axes, growth: Mapping[str, float], colours: Mapping[str, Any]) -> None:
    """A legend, in axes of its own, of the layers whose σ0 grew most."""
    axes.axis("off")
    fastest = sorted((layer for layer in growth if growth[layer] > 0), key=lambda layer: -growth[layer])[:NAMED]
    if not fastest:
        return
    lines = [Line2D([], [], color=colours[layer], linewidth=1.5) for layer in fastest]
    names = short_names([layer.removesuffix("/weight") for layer in fastest], 38)
    said = [f"{name} (× {growth[layer]:.3g})" for name, layer in zip(names, fastest, strict=True)]
    axes.legend(
        lines,
        said,
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
