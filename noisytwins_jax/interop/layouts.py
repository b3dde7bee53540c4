"""The layouts of weights in PyTorch and in Flax."""

import numpy as np


def to_jax_layout(x: np.ndarray) -> np.ndarray:
    """Transpose from PyTorch's layout to Flax's: ``[out, in]`` → ``[in, out]``, OIHW → HWIO, CHW → HWC; others stay."""
    return x.transpose({2: (1, 0), 3: (1, 2, 0), 4: (2, 3, 1, 0)}.get(x.ndim, range(x.ndim)))


def to_torch_layout(x: np.ndarray) -> np.ndarray:
    """Invert `to_jax_layout`."""
    return x.transpose({2: (1, 0), 3: (2, 0, 1), 4: (3, 2, 0, 1)}.get(x.ndim, range(x.ndim)))


def pixels_first(x: np.ndarray, size: int = 4) -> np.ndarray:
    """Reorder rows ``[C size², …]`` from (channel, y, x), as PyTorch flattens NCHW, to (y, x, channel)."""
    return np.moveaxis(x.reshape(-1, size, size, *x.shape[1:]), 0, 2).reshape(x.shape)


def channels_first(x: np.ndarray, size: int = 4) -> np.ndarray:
    """Invert `pixels_first`."""
    return np.moveaxis(x.reshape(size, size, -1, *x.shape[1:]), 2, 0).reshape(x.shape)
