"""How one evaluation is done: a protocol and its counts."""

import dataclasses
from typing import NamedTuple

import numpy as np

from noisytwins_jax.metrics.protocols import PROTOCOLS, Protocol


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a generator is measured.

    Attributes:
      protocol: see `protocols`.
      samples_per_class: generated images of each class, more than `k`.
      pooled_images: at most so many of them are pooled, as nearly the same number of each class as can be.
      neighbours: k of precision, recall, density and coverage; 0 for the protocol's.
      seed: behind the generated images, recorded; it also fixes the halves of the floor.
      weights: which of the generator's weights, recorded ("ema" or "live").
      class_noise: whether class embeddings are perturbed (NoisyTwins evaluates without), recorded.
      truncation_psi: of the generated images, recorded.
      reference_split: what the reference is of the data set, recorded.
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
        """Neighbours."""
        return self.neighbours or self.protocol.neighbours

    def counts(self, num_classes: int, available: np.ndarray | None = None) -> "Counts":
        """How many images of each class there are to be.

        Args:
          num_classes: C.
          available: images of each class ``[C]`` where they come from files, which are all taken then; None for a
            generator.
        """
        each = np.full(num_classes, self.samples_per_class) if available is None else np.asarray(available)
        pooled = each
        if each.sum() > self.pooled_images:
            # As nearly as many of each class as can be; which classes give one more is drawn.
            lots = np.random.default_rng(self.seed).permutation(num_classes)
            level = np.searchsorted([np.minimum(each, n).sum() for n in range(each.max() + 1)], self.pooled_images)
            pooled = np.minimum(each, max(0, level - 1))
            more = lots[(each > pooled)[lots]][: self.pooled_images - pooled.sum()]
            pooled[more] += 1
        return Counts(each, pooled, np.cumsum(each) - each)


class Counts(NamedTuple):
    """Numbers of generated images by class, int64 ``[C]`` each."""

    each: np.ndarray  # all
    pooled: np.ndarray  # the first of them, which are pooled over classes
    start: np.ndarray  # index of a class's first image
