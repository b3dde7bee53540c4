"""What every public format of checkpoints is turned into and made from: one network, in this project's layout."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ConvertedNetwork:
    """One network, of a generator or a discriminator.

    Attributes:
      role: ``"generator"`` or ``"discriminator"``.
      fields: what its tensors say of the configuration, by dotted name: ``{"network": "biggan", "data.resolution": 64}``.
      num_classes: 0 for none.
      channels: of images.
      variables: Flax collections of float32 arrays, ``{"params": …}`` and the network's others.
    """

    role: str
    fields: dict[str, Any]
    num_classes: int
    channels: int
    variables: dict[str, Any]


def to_jax_layout(x: np.ndarray) -> np.ndarray:
    """PyTorch's layout to ours: ``[out, in]`` to ``[in, out]``, OIHW to HWIO, CHW to HWC; others as they are."""
    return x.transpose({2: (1, 0), 3: (1, 2, 0), 4: (2, 3, 1, 0)}.get(x.ndim, range(x.ndim)))


def to_torch_layout(x: np.ndarray) -> np.ndarray:
    """The inverse of `to_jax_layout`."""
    return x.transpose({2: (1, 0), 3: (2, 0, 1), 4: (3, 2, 0, 1)}.get(x.ndim, range(x.ndim)))


def pixels_first(x: np.ndarray, size: int = 4) -> np.ndarray:
    """Rows ordered (channel, y, x), as PyTorch flattens NCHW, to rows ordered (y, x, channel): ``[16 C, …]``."""
    return np.moveaxis(x.reshape(-1, size, size, *x.shape[1:]), 0, 2).reshape(x.shape)


def channels_first(x: np.ndarray, size: int = 4) -> np.ndarray:
    """The inverse of `pixels_first`."""
    return np.moveaxis(x.reshape(size, size, -1, *x.shape[1:]), 2, 0).reshape(x.shape)
