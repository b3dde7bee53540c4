"""Figure of the trade-off between quality and variety under truncation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisytwins_jax.models.latents import TRUNCATION_SYMBOLS
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.plotting import FAINT, INK, RULE, RUN_COLOURS, new_figure, style_axes

Point = Mapping[str, Any]

OPERATING_POINTS: tuple[tuple[str, str], ...] = (  # key, name
    ("best_fid", "best FID"),
    ("real_inception_score", "nearest IS to real images"),
    ("max_inception_score", "highest IS"),
)
# Marker and its size in points: the first is filled, the others are rings around it, so that all are visible at one ψ.
_MARKERS = {"best_fid": ("*", 11), "real_inception_score": ("D", 11), "max_inception_score": ("^", 18)}
# In points: size of a label, and its distance from a point and from a marker.
_LABEL_SIZE, _GAP, _MARKER_GAP = np.array([20.0, 10.0]), 4.0, 8.0


def truncation_figure(truncation: Mapping[str, Any], note: str = "") -> Figure:
    """Draw FID against Inception Score over truncation (Brock et al. 2019), and precision against recall beside it.

    Args:
      truncation: the ``truncation`` of an evaluation (see `evaluate_generator`): points with ``strength`` and metrics,
        ``real_inception_score`` and ``operating_points``. All but ``strength`` may be missing or None: a point without one
        of a panel's two metrics is left out of that panel.
      note: a line below the figure, such as the protocol.

    Returns:
      A figure outside pyplot. A dashed line marks the Inception Score of real images, unless it is farther
      from the sweep than the sweep is wide. Strengths are written beside the points where there is room.

    Raises:
      UserError: no point has both metrics of a panel.
    """
    points = sorted(truncation.get("points") or (), key=lambda point: point["strength"])
    panels = [
        (x, y, names)
        for x, y, names in (
            ("inception_score", "fid", ("Inception Score", "FID")),
            ("recall", "precision", ("Recall", "Precision")),
        )
        if _drawable(points, x, y)
    ]
    if not panels:
        raise UserError("The truncation sweep has no numbers to draw: evaluate at one or more strengths.")
    operating = truncation.get("operating_points") or {}
    symbol = TRUNCATION_SYMBOLS[truncation.get("kind", "psi")]
    meaning = symbol.rstrip(" =≤")
    figure = new_figure(8.6 if len(panels) == 2 else 4.6, 4.0)
    for axes, (x, y, (x_name, y_name)) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        style_axes(axes, f"{y_name} against {x_name.lower() if x == 'recall' else x_name}, {meaning} at the points")
        axes.grid(color=RULE, linewidth=0.6)
        axes.set_xlabel(f"{x_name} (higher is better)")
        axes.set_ylabel(f"{y_name} ({'lower' if y == 'fid' else 'higher'} is better)")
        positions = np.array([(point[x], point[y]) for point in _drawable(points, x, y)], dtype=float)
        axes.plot(*positions.T, color=RUN_COLOURS[0], linewidth=1.3, marker="o", markersize=4, zorder=3)
        axes.margins(0.14)
        real = truncation.get("real_inception_score")
        if x == "inception_score" and _near(real, positions[:, 0]):
            axes.axvline(real, color=FAINT, linewidth=1, linestyle="--", label=f"IS of real images ({real:.3g})")
        for i, (key, name) in enumerate(OPERATING_POINTS, start=1):
            (marker, size), filled = _MARKERS[key], i == 1
            for point in _drawable([operating.get(key) or {}], x, y):
                axes.plot(
                    point[x],
                    point[y],
                    marker,
                    color=RUN_COLOURS[i],
                    linestyle="none",
                    markeredgecolor="white" if filled else RUN_COLOURS[i],
                    markerfacecolor=RUN_COLOURS[i] if filled else "none",
                    markeredgewidth=0.6 if filled else 1.6,
                    markersize=size,
                    label=f"{name} ({symbol} {point['strength']:g})",
                    zorder=5 if filled else 4,
                )
    _legend(figure)
    if note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=7, color=FAINT, wrap=True)
    figure.draw_without_rendering()  # determines the positions of the points
    for axes, (x, y, _) in zip(figure.axes, panels, strict=True):
        _write_strengths(axes, _drawable(points, x, y), x, y, [_drawable([p or {}], x, y) for p in operating.values()])
    return figure


def _near(score: float | None, scores: np.ndarray) -> bool:
    """Return whether a score can be drawn beside others [n] without squeezing them to a point."""
    room = max(np.ptp(scores), 0.5 * abs(scores).max())
    return score is not None and scores.min() - room <= score <= scores.max() + room


def unreached_score(truncation: Mapping[str, Any]) -> str:
    """Return a note if no truncation of a sweep reaches the Inception Score of the real images, else ""."""
    real, operating = truncation.get("real_inception_score"), truncation.get("operating_points") or {}
    scores = [p["inception_score"] for p in truncation.get("points") or () if p.get("inception_score") is not None]
    if real is None or operating.get("real_inception_score") is not None or not scores:
        return ""
    return (
        f"The sweep does not reach the Inception Score of the real images, {real:.3g}: its own are from {min(scores):.3g} "
        f"to {max(scores):.3g}."
    )


def _drawable(points: Sequence[Point], x: str, y: str) -> list[Point]:
    """Return the points that have both metrics."""
    return [p for p in points if all(p.get(key) is not None and math.isfinite(p[key]) for key in (x, y))]


def _legend(figure: Figure) -> None:
    entries = {}
    for axes in figure.axes:
        entries |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if entries:
        figure.legend(
            entries.values(),
            entries,
            loc="outside upper left",
            ncols=4 if len(figure.axes) > 1 else 2,
            fontsize=8,
            frameon=False,
            labelcolor=INK,
            markerscale=0.7,  # beside text, the rings would touch each other
        )


def _write_strengths(axes: Axes, points: Sequence[Point], x: str, y: str, operating: Sequence[Sequence[Point]]) -> None:
    """Write its strength beside each point where it overlaps nothing; operating points and ends have priority."""
    dots = axes.figure.dpi / 72
    values = {p["strength"]: (p[x], p[y]) for p in points}
    positions = {strength: axes.transData.transform(value) / dots for strength, value in values.items()}
    corners = np.array(list(positions.values()))
    steps = np.linspace(0, 1, 60)[:, None, None]
    curve = np.concatenate([corners, ((1 - steps) * corners[:-1] + steps * corners[1:]).reshape(-1, 2)])
    marked = [p["strength"] for group in operating for p in group if p["strength"] in positions]
    taken: list[np.ndarray] = []
    for strength in dict.fromkeys([*marked, max(positions), min(positions), *positions]):
        for right, below in ((True, False), (True, True), (False, True), (False, False)):
            gap = _MARKER_GAP if strength in marked else _GAP
            low = positions[strength] + (
                gap if right else -gap - _LABEL_SIZE[0],
                -gap - _LABEL_SIZE[1] if below else gap,
            )
            on_curve = ((curve > low) & (curve < low + _LABEL_SIZE)).all(axis=1).any()
            if on_curve or any((np.abs(low - other) < _LABEL_SIZE).all() for other in taken):
                continue
            axes.annotate(
                f"{strength:g}",
                values[strength],
                xytext=(gap if right else -gap, -gap if below else gap),
                textcoords="offset points",
                ha="left" if right else "right",
                va="top" if below else "bottom",
                fontsize=8,
                color=INK,
            )
            taken.append(low)
            break
