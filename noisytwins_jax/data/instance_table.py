"""Training images as conditions: features and neighbourhoods (Casanova et al., "Instance-Conditioned GAN" (IC-GAN),
NeurIPS 2021, Sec. 3).

An instance i is a training image. Its neighbourhood A_i are its nearest images in a feature space, including itself.
A real input of the discriminator is an image of A_i with the instance's features h_i, the generator's condition.
`training.instance_conditioning` extracts the features and finds the neighbours.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class InstanceTable(NamedTuple):
    """Features, neighbourhoods and labels of the n training images; replicated on every device.

    For ImageNet-LT (n = 115,846) and Inception features (d = 2048), these are 0.47 GB in bfloat16.
    """

    features: np.ndarray  # float32 or bfloat16 [n, d], of unit length
    neighbours: np.ndarray  # int32 [n, k], the image itself first, then the nearest others
    labels: np.ndarray  # int32 [n]
    members: np.ndarray  # int32 [n], instances sorted by class
    starts: np.ndarray  # int32 [C + 1], where each class begins in `members`


def unit_features(features: np.ndarray) -> np.ndarray:
    """Divide features ``[n, d]`` by their Euclidean norms; return float32, where zero rows stay zero."""
    features = np.asarray(features, np.float64)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.where(norms == 0, 1.0, norms)).astype(np.float32)


def neighbourhoods(features: np.ndarray, k: int, nearest_others: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """Find the neighbourhood of each image: itself and its k - 1 nearest others, int32 ``[n, k]``.

    Args:
      features: ``[n, d]``.
      k: size of a neighbourhood, from 1 to n.
      nearest_others: (features, number) → indices ``[n, number]`` of the nearest other rows, nearest first.
    """
    selves = np.arange(len(features), dtype=np.int32)[:, None]
    others = nearest_others(features, k - 1) if k > 1 else selves[:, :0]
    return np.concatenate([selves, others.astype(np.int32)], axis=1)


def build_instance_table(
    features: np.ndarray, neighbours: np.ndarray, labels: np.ndarray, num_classes: int
) -> InstanceTable:
    """Build the table of features ``[n, d]`` of unit length, neighbourhoods ``[n, k]`` and labels ``[n]``."""
    labels = np.asarray(labels, np.int32)
    members = np.argsort(labels, kind="stable").astype(np.int32)
    starts = np.concatenate([[0], np.bincount(labels, minlength=num_classes).cumsum()]).astype(np.int32)
    return InstanceTable(features, np.asarray(neighbours, np.int32), labels, members, starts)
