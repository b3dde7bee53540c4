"""A network between formats: its Flax variables and what they say of the configuration."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ConvertedNetwork:
    """One generator or discriminator, read from a public format or to be written in one.

    Attributes:
      role: ``"generator"`` or ``"discriminator"``.
      fields: configuration fields that follow from the tensors, by dotted name:
        ``{"network": "biggan", "data.resolution": 64}``.
      num_classes: 0 for none.
      channels: image channels.
      variables: Flax collections of float32 arrays, ``{"params": …}`` and the network's others.
    """

    role: str
    fields: dict[str, Any]
    num_classes: int
    channels: int
    variables: dict[str, Any]
