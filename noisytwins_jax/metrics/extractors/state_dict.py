"""PyTorch state dicts as NumPy arrays, from which feature extractors take their weights."""

from collections.abc import Mapping

import numpy as np

State = Mapping[str, np.ndarray]  # tensors of a file by name, of any floating type
Shapes = dict[str, tuple[int, ...]]


def float32(array: np.ndarray) -> np.ndarray:
    """Convert to a contiguous float32 array, as parameters are stored."""
    return np.ascontiguousarray(array, np.float32)
