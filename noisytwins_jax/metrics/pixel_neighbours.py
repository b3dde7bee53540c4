"""Nearest training images in pixel space, where a copy is at distance 0 whatever a network makes of it."""

import numpy as np

from noisytwins_jax.data.source import ImageSource, read_images
from noisytwins_jax.metrics.nearest import nearest
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.progress_bar import images_bar

_BLOCK = 256  # images of the source in memory


def nearest_in_pixels(images: np.ndarray, source: ImageSource, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the k images of the source nearest to each of a few images, nearest first; the first of equally near ones.

    Ordered by exact Euclidean distances between pixel values. Reads all images of the source.

    Args:
      images: uint8 [m, H, W, C], of the source's size.
      source: the images to search.
      k: at least 1; a source with fewer images gives all of them.

    Returns:
      Root mean square differences of pixel values, 0 to 255, float64 [m, k], and indices of images, int64 [m, k].

    Raises:
      UserError: the images are of another type or size.
    """
    size = (source.resolution, source.resolution, source.channels)
    if images.dtype != np.uint8 or images.shape[1:] != size:
        raise UserError(
            f"Pixels of {images.dtype} images of size {list(images.shape[1:])} cannot be compared with those of uint8 images "
            f"of size {list(size)}; give images of the same size."
        )
    queries = images.reshape(len(images), -1).astype(np.float32)
    distances, indices = np.empty((len(images), 0)), np.empty((len(images), 0), np.int64)
    with images_bar("Training images, pixels", len(source)) as bar:
        for start in range(0, len(source), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(source)))
            keys = read_images(source, rows)["image"].reshape(len(rows), -1).astype(np.float32)
            block_distances, columns = nearest(queries=queries, keys=keys, k=min(k, len(rows)))
            distances = np.hstack([distances, block_distances])
            indices = np.hstack([indices, rows[columns]])
            order = np.argsort(distances, axis=1, kind="stable")[:, :k]  # earlier images come first
            distances, indices = (np.take_along_axis(x, order, axis=1) for x in (distances, indices))
            bar.update(len(rows))
    return distances / np.sqrt(queries.shape[1]), indices
