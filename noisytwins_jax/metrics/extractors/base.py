"""Interface of feature extractors: a pure function of weights and uint8 images."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

Array = jax.Array
PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """Feature extractor: weights, and the compiled function that maps images to features.

    Attributes:
      name: short name for tables, with the first digits of `sha256`.
      sha256: hexadecimal SHA-256 of names and values of the weights, as `weights_file.weights_sha256` gives it.
      description: architecture, origin of the weights and preprocessing, for ``evaluation.json``.
      feature_dim: d.
      variables: the weights; on the host, or already where `apply` is to run.
      apply: jitted: (variables, images uint8 ``[n, H, W, C]``, C 1 or 3) → features float32 ``[n, d]`` and logits
        float32 ``[n, k]`` (k = 0 without logits). Row i depends on image i alone. Compiled once per H, W, C and n.
    """

    name: str
    sha256: str
    description: dict[str, Any]
    feature_dim: int
    variables: PyTree
    apply: Callable[[PyTree, Array], tuple[Array, Array]]
