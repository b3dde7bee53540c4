"""The style that all figures share, and their rendering."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

INK, FAINT, RULE = "#1c1e26", "#6b6f7d", "#dcdfe6"
# Okabe & Ito's colours: told apart by readers with any colour vision, and in print.
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5d5d5d")


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure of ``width`` x ``height`` inches at 144 dots per inch, outside pyplot's global state."""
    figure = Figure(figsize=(width, height), dpi=144, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes, title: str = "") -> Axes:
    """Style axes with thin rules, no box, and the title on the left."""
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.tick_params(labelsize=8, colors=FAINT, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.xaxis.label.set(color=FAINT, fontsize=9)
    axes.yaxis.label.set(color=FAINT, fontsize=9)
    axes.set_axisbelow(True)
    return axes


def rank_colours(count: int) -> np.ndarray:
    """Return RGBA colours [count, 4], dark for the head to bright for the tail, of a perceptually uniform map."""
    # The last eighth of the map is too pale to see on white.
    return matplotlib.colormaps["plasma"](np.linspace(0.0, 0.88, max(count, 1))[:count])


def figure_png(figure: Figure) -> bytes:
    """Render a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def figure_image(figure: Figure) -> Image.Image:
    """Render a figure as an RGB image."""
    return Image.open(io.BytesIO(figure_png(figure))).convert("RGB")


def short_names(names: Sequence[str], longest: int = 18) -> list[str]:
    """Shorten names to fit a legend or an axis."""
    return [name if len(name) <= longest else name[: longest - 1] + "…" for name in names]
