"""Settings of one evaluation: its protocol, and how many images of each class it takes."""

import dataclasses
from typing import NamedTuple

import numpy as np

from noisytwins_jax.metrics.protocols import PROTOCOLS, Protocol


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of one evaluation.

    Attributes:
      protocol: what to compute and how, see `protocols`.
      samples_per_class: generated images of each class, more than `k`.
      pooled_images: the most images that are pooled over classes, spread over the classes as evenly as possible.
      neighbours: k of precision, recall, density and coverage; 0 for the protocol's.
      seed: of the generated images, recorded; it also fixes the halves of the real images in ``real_vs_real``.
      weights: which of the generator's weights are used ("ema" or "live"), recorded.
      class_noise: whether class embeddings are perturbed (NoisyTwins evaluates without), recorded.
      truncation_psi: truncation of the generated images, recorded.
      reference_split: the data set's split that serves as reference, recorded.
      per_device_batch: images per device and call; changing it changes the last bits of the features.
      prefetch: batches in flight at once; it changes memory and speed, not the result.
    """

    protocol: Protocol = PROTOCOLS["embedded"]
    samples_per_class: int = 180
    pooled_images: int = 50_000
    neighbours: int = 0
    seed: int = 0
    weights: str = "ema"
    class_noise: bool = False
    truncation_psi: float = 1.0
    reference_split: str = "reference"
    per_device_batch: int = 64
    prefetch: int = 2

    @property
    def k(self) -> int:
        """Return the number of neighbours."""
        return self.neighbours or self.protocol.neighbours

    def counts(self, num_classes: int, available: np.ndarray | None = None) -> "Counts":
        """Return how many images of each class to take.

        Args:
          num_classes: C.
          available: images of each class ``[C]`` that come from files, all of which are taken; None for a generator.
        """
        each = np.full(num_classes, self.samples_per_class) if available is None else np.asarray(available)
        pooled = each
        if each.sum() > self.pooled_images:
            # Spread as evenly as possible; a random permutation chooses the classes that give one more.
            order = np.random.default_rng(self.seed).permutation(num_classes)
            level = np.searchsorted([np.minimum(each, n).sum() for n in range(each.max() + 1)], self.pooled_images)
            pooled = np.minimum(each, max(0, level - 1))
            more = order[(each > pooled)[order]][: self.pooled_images - pooled.sum()]
            pooled[more] += 1
        return Counts(each, pooled, np.cumsum(each) - each)


class Counts(NamedTuple):
    """Numbers of images by class, int64 ``[C]`` each."""

    each: np.ndarray  # all
    pooled: np.ndarray  # those pooled over classes, the first ones of each class
    start: np.ndarray  # index of a class's first image
