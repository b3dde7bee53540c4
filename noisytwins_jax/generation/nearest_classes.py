"""The class that an image is of, as a generator sees it: that whose generated images are nearest."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.generation.pixel_distance import pixel_pyramid
from noisytwins_jax.generation.trained_generator import TrainedGenerator

Array = jax.Array

SAMPLES, NEAREST = 64, 8  # images that a class is tried with, and how many of them count


def nearest_classes(
    trained: TrainedGenerator,
    images: np.ndarray,
    classes: Sequence[int],
    seed: int = 0,
    report: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Compute how far images are from a generator's classes, by generating images of each.

    A class is as far as the nearest 8 of 64 of its images are on average. Short projections from each class's mean w tell
    classes apart less well the longer they are, since every class's W leads to every image: on 200 digits the start alone
    finds 83 % of the classes, 25 steps 71 %, 100 steps 50 %, and the nearest images 90 %.

    Args:
      trained: the generator.
      images: uint8 ``[n, H, W, C]``, of the size of the generator's images.
      classes: class ids to try.
      seed: of the latents.
      report: called with the number of images of each class generated, when it is so.

    Returns:
      float32 ``[n, len(classes)]``, in the units of `pixel_distance`.
    """
    noise_mode = "const" if trained.config.has_mapping_network else None
    sampler = trained.sampler(None, seed, noise_mode, SAMPLES)
    targets = pixel_pyramid(jnp.asarray(images, jnp.float32))
    distances = []
    for label in classes:
        labels, indices = trained.labels_and_indices([label], SAMPLES)
        between, _ = sampler.extract_features(lambda fakes: (_distances(fakes, targets),), labels, indices)
        distances.append(np.sort(between, axis=0)[:NEAREST].mean(axis=0))
        if report is not None:
            report(SAMPLES)
    return np.stack(distances, axis=1)


@jax.jit
def _distances(fakes: Array, targets: Array) -> Array:
    """Compute the `pixel_distance` ``[m, n]`` of images uint8 ``[m, H, W, C]`` from vectors ``[n, d]`` of `pixel_pyramid`."""
    a = pixel_pyramid(fakes.astype(jnp.float32))
    between = jnp.square(a).sum(axis=1)[:, None] + jnp.square(targets).sum(axis=1)
    return between - 2.0 * jnp.matmul(a, targets.T, precision="highest")
