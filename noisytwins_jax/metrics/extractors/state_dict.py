"""Tensors by their names in PyTorch, as the networks that measure take their weights."""

from collections.abc import Mapping

import numpy as np

State = Mapping[str, np.ndarray]  # of a file, of any floating type
Shapes = dict[str, tuple[int, ...]]


def float32(array: np.ndarray) -> np.ndarray:
    """The array in float32 and contiguous, as parameters are kept."""
    return np.ascontiguousarray(array, np.float32)
