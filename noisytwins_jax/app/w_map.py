"""A map of W: samples at their first two principal components, where every point has its image."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from noisytwins_jax.app.painter import Painter
from noisytwins_jax.evaluation.report.w_projection import MAX_CLASSES, pca_projection, w_map_figure
from noisytwins_jax.generation.style_mixing import layer_ws
from noisytwins_jax.utils.plotting import figure_image

_SAMPLES = 640  # in all
_RING = 9  # pixels: radius of the mark


class WMap(NamedTuple):
    """A map and what is needed to find the w of its points.

    Attributes:
      image: RGB.
      ws: each layer's w of the samples, float32 ``[n, num_ws, w_dim]``.
      labels: int ``[n]``.
      points: of the samples in pixels from the upper left, float ``[n, 2]``.
      axes: w per pixel to the right and down, float ``[2, w_dim]``.
    """

    image: Image.Image
    ws: np.ndarray
    labels: np.ndarray
    points: np.ndarray
    axes: np.ndarray

    def at(self, x: float, y: float) -> tuple[np.ndarray, int]:
        """Return each layer's w ``[num_ws, w_dim]`` at a pixel, and the class of the nearest sample.

        It is the w of that sample, moved within the plane of the map.
        """
        offset = np.array([x, y]) - self.points
        nearest = int(np.square(offset).sum(axis=1).argmin())
        return self.ws[nearest] + (offset[nearest] @ self.axes).astype(np.float32), int(self.labels[nearest])

    def marked(self, x: float, y: float) -> Image.Image:
        """Return the map with a ring around a pixel."""
        image = self.image.copy()
        draw = ImageDraw.Draw(image)
        for radius, colour, width in ((_RING + 2, "white", 6), (_RING, "black", 2)):
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=colour, width=width)
        return image


def draw_w_map(painter: Painter, classes: Sequence[int], seed: int) -> WMap:
    """Draw the map of samples of at most 20 classes, untruncated.

    Raises:
      UserError: no class is chosen, or the generator is no StyleGAN2.
    """
    chosen = painter.few(classes, MAX_CLASSES)
    labels, indices = painter.trained.labels_and_indices(chosen, _SAMPLES // len(chosen))
    ws = layer_ws(painter.trained, labels, indices, int(seed))
    w = ws[:, -1].astype(np.float64)  # the last layer has that of the class, for UTLO too
    points, _ = pca_projection(w)
    figure = w_map_figure(points, labels, painter.classes.names, class_counts=painter.classes.counts)
    image = figure_image(figure)
    to_pixels = figure.axes[0].transData.transform
    origin, right, up = to_pixels([(0, 0), (1, 0), (0, 1)])
    pixels = to_pixels(points) * [1, -1] + [0, image.height]
    # Components are orthogonal, so each one's direction is the regression of w on it.
    components = points.T @ (w - w.mean(axis=0)) / np.maximum(np.square(points).sum(axis=0), 1e-12)[:, None]
    return WMap(image, ws, labels, pixels, components / [[(right - origin)[0]], [-(up - origin)[1]]])
