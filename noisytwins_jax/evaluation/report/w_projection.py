"""Figures of the latent space W in two dimensions, class by class.

A class whose samples lie on one spot has collapsed: every latent z gives nearly the same w, hence nearly the same
image. A class spread over an area of its own is diverse and consistent. Judge spread by the principal components:
t-SNE, which NoisyTwins (Rangwani et al., CVPR 2023) uses, evens out densities, so a collapsed class looks as wide as
any other; it shows which classes are separate and which are mixed.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from noisytwins_jax.generation.sheets import head_to_tail
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.plotting import INK, RULE, new_figure, rank_colours, short_names, style_axes

WSet = tuple[np.ndarray, np.ndarray]  # w float [n, D], labels int [n]
MAX_CLASSES = 20
LEGEND_CLASSES = 12  # up to here every class is in the legend; for more there is a colour bar from head to tail
MAX_POINTS = 1000  # samples drawn of each set; t-SNE takes about 3 s for 1000
PERPLEXITY = 30.0  # effective number of neighbours of t-SNE, lowered to (n - 1)/3 for small sets


def _check_w(w: np.ndarray, labels: np.ndarray) -> WSet:
    w, labels = np.asarray(w, np.float64), np.asarray(labels)
    if w.ndim != 2 or labels.shape != w.shape[:1] or len(w) < 3 or w.shape[1] < 2:
        raise UserError(f"W must be [n >= 3, D >= 2] with n labels; got {list(w.shape)} and {list(labels.shape)}.")
    if not np.isfinite(w).all():
        raise UserError("W has values that are not finite: the generator has diverged; use an earlier checkpoint.")
    return w, labels


def balanced_subset(labels: np.ndarray, size: int) -> np.ndarray:
    """Return ascending indices of at most ``size`` samples: the first of every class in equal number (at least one)."""
    labels = np.asarray(labels)
    if len(labels) <= size:
        return np.arange(len(labels))
    classes = np.unique(labels)
    each = max(1, size // len(classes))
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in classes]))


def pca_projection(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project W to its first two principal components.

    Args:
      w: float [n, D], n >= 3, D >= 2.

    Returns:
      Coordinates float64 [n, 2] and the shares [2] of the total variance that they hold (0 if W is a single point).
    """
    w, _ = _check_w(w, np.zeros(len(w)))
    if not np.ptp(w, axis=0).any():
        return np.zeros((len(w), 2)), np.zeros(2)
    pca = PCA(n_components=2, svd_solver="full").fit(w)
    return pca.transform(w), pca.explained_variance_ratio_


def tsne_projection(w: np.ndarray) -> np.ndarray:
    """Project W by t-SNE (van der Maaten & Hinton 2008), started from its principal components.

    Args:
      w: float [n, D], n >= 3, D >= 2.

    Returns:
      Coordinates float64 [n, 2] of arbitrary scale: neither distances between groups nor their sizes mean much.
    """
    start, _ = pca_projection(w)
    spread = start[:, 0].std()
    if spread == 0:
        return start
    tsne = TSNE(init=start / spread * 1e-4, perplexity=min(PERPLEXITY, (len(w) - 1) / 3), max_iter=500, random_state=0)
    # t-SNE's threads spin while waiting: on cores shared with a training run, two are five times slower than one.
    with threadpool_limits(1):
        return tsne.fit_transform(np.asarray(w, np.float64)).astype(np.float64)


def _select_classes(
    labels: Sequence[np.ndarray], class_counts: Sequence[int] | np.ndarray | None
) -> tuple[list[int], np.ndarray]:
    """Return class ids from head to tail and their colours, at most `MAX_CLASSES` at even distances."""
    present = [int(c) for c in np.unique(np.concatenate(labels))]
    order = present if class_counts is None else head_to_tail(class_counts, present)
    if len(order) > MAX_CLASSES:
        order = [order[i] for i in np.linspace(0, len(order) - 1, MAX_CLASSES).round().astype(int)]
    return order, rank_colours(len(order))


def _scatter(axes: Axes, points: np.ndarray, labels: np.ndarray, order: Sequence[int], colours: np.ndarray) -> None:
    size = float(np.clip(9000 / len(points), 4, 26))
    for c, colour in zip(order, colours, strict=True):  # the tail is drawn last, on top
        axes.scatter(*points[labels == c].T, s=size, color=colour, edgecolors="white", linewidths=0.25)
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.set_adjustable("datalim")
    for spine in axes.spines.values():
        spine.set(visible=True, color=RULE)


def _legend(figure: Figure, axes: Sequence[Axes], names: Sequence[str], colours: np.ndarray) -> None:
    if len(names) > LEGEND_CLASSES:
        bar = figure.colorbar(ScalarMappable(cmap=ListedColormap(colours)), ax=list(axes), shrink=0.6, ticks=[0, 1])
        bar.ax.set_yticklabels(["head", "tail"], fontsize=9, color=INK)
        bar.outline.set_visible(False)
        return
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=name)
        for name, colour in zip(short_names(names), colours, strict=True)
    ]
    heading = "head to tail"
    figure.legend(
        handles=handles, loc="outside right center", fontsize=9, title=heading, title_fontsize=9, frameon=False
    )


def w_comparison_figure(
    sets: Mapping[str, WSet],
    class_names: Sequence[str],
    *,
    class_counts: Sequence[int] | np.ndarray | None = None,
) -> Figure:
    """Draw W of several generators, a column each: principal components above, t-SNE below.

    Each panel is fitted to its own set, so compare shapes, not positions. At most `MAX_POINTS` samples of a set are
    drawn, equally many for each class, and at most 20 classes, evenly spaced from head to tail.

    Args:
      sets: name -> (w float [n, D], labels int [n]); D may differ between sets.
      class_names: a name for every class id.
      class_counts: training images of every class id, for the order from head (dark) to tail (bright); without them
        class ids are taken to be in that order.

    Returns:
      A figure outside pyplot.

    Raises:
      UserError: a set of the wrong shape or with values that are not finite, or no set.
    """
    checked = {name: _check_w(*pair) for name, pair in sets.items()}
    if not checked:
        raise UserError("A W projection needs at least one set of latents.")
    order, colours = _select_classes([labels for _, labels in checked.values()], class_counts)
    total = len(np.unique(np.concatenate([labels for _, labels in checked.values()])))
    single = len(checked) == 1
    rows, columns = (1, 2) if single else (2, len(checked))
    figure = new_figure(8.6 if single else 3.5 * columns + 1.2, 4.1 if single else 7.2)
    grid = figure.subplots(rows, columns, squeeze=False)
    for column, (name, (w, labels)) in enumerate(checked.items()):
        drawn = np.flatnonzero(np.isin(labels, order))
        drawn = drawn[balanced_subset(labels[drawn], MAX_POINTS)]
        w, labels = w[drawn], labels[drawn]
        above, below = grid[0] if single else grid[:, column]
        points, shares = pca_projection(w)
        style_axes(above, "Principal components" if single else name)
        _scatter(above, points, labels, order, colours)
        above.set(xlabel=f"PC 1 ({shares[0]:.0%} of variance)", ylabel=f"PC 2 ({shares[1]:.0%})")
        style_axes(below, "t-SNE" if single else "")
        _scatter(below, tsne_projection(w), labels, order, colours)
        selected = f", {len(order)} of {total} classes" if len(order) < total else ""
        below.set_xlabel(f"t-SNE of {len(w)} samples{selected}")
    _legend(figure, list(grid.flat), [str(class_names[c]) for c in order], colours)
    return figure


def w_projection_figure(
    w: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    class_counts: Sequence[int] | np.ndarray | None = None,
) -> Figure:
    """Draw W of one generator, principal components and t-SNE side by side; see `w_comparison_figure`.

    Args:
      w: float [n, D].
      labels: int [n], class ids.
      class_names: a name for every class id.
      class_counts: training images of every class id, for the order from head to tail.

    Returns:
      A figure outside pyplot.

    Raises:
      UserError: see `w_comparison_figure`.
    """
    return w_comparison_figure({"W": (w, labels)}, class_names, class_counts=class_counts)


def w_map_figure(
    points: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    class_counts: Sequence[int] | np.ndarray | None = None,
) -> Figure:
    """Draw all samples of at most 20 classes at their points of a plane, such as the first of `pca_projection`.

    Args:
      points: float [n, 2].
      labels: int [n], class ids.
      class_names: a name for every class id.
      class_counts: as for `w_comparison_figure`.

    Returns:
      A figure outside pyplot, whose first axes have the points as data.
    """
    order, colours = _select_classes([labels], class_counts)
    figure = new_figure(6.4, 4.8)
    axes = style_axes(figure.subplots())
    _scatter(axes, points, labels, order, colours)
    _legend(figure, [axes], [str(class_names[c]) for c in order], colours)
    return figure
