"""A BigGAN with instances that is small enough for tests."""

from typing import Any

import numpy as np
import tiny_biggan

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.instance_table import InstanceTable, build_instance_table, unit_features

COUNTS = np.array([30, 9, 5, 2])  # images a class
N, K, D = int(COUNTS.sum()), 3, 64  # the classifier's features
CHANGES = {
    "biggan.attention": "none",
    "fake_labels": "empirical",
    "instances.neighbours": K,
    "instances.embedding_dim": 5,
}


def config(**changes: Any) -> RunConfig:
    """A configuration; `changes` are fields by dotted path."""
    return tiny_biggan.tiny_config(**CHANGES | changes)


def table() -> InstanceTable:
    """A table of drawn features, with neighbours of any class."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(len(COUNTS)), COUNTS))
    neighbours = np.stack([np.r_[i, rng.choice(np.delete(np.arange(N), i), K - 1, replace=False)] for i in range(N)])
    return build_instance_table(unit_features(rng.standard_normal((N, D))), neighbours, labels, len(COUNTS))
