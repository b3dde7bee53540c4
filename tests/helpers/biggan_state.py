"""PyTorch-layout BigGAN tensors to Flax variables and back, for the tests."""

import re

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

COLLECTIONS = {"u0": ("spectral", "u"), "stored_mean": ("batch_stats", "mean"), "stored_var": ("batch_stats", "var")}


def path_of(key: str, pairs: bool) -> tuple[str, ...]:
    """Collection and path of a tensor; `pairs` of blocks have one number in the discriminator of BigGAN-deep."""
    blocks = 2 if pairs else 1

    def block(match: re.Match) -> str:
        first, inner = blocks * int(match[1]), int(match[2])
        return f"blocks_{first + inner}." if inner < blocks else f"blocks_{first + blocks - 1}.attention."

    key = re.sub(r"^blocks\.(\d+)\.(\d+)\.", block, key)
    key = key.replace("output_layer.0.", "output_bn.").replace("output_layer.2.", "output_conv.")
    *path, leaf = key.split(".")
    collection, leaf = COLLECTIONS.get(leaf, ("params", leaf))
    return (collection, *path, leaf)


def to_flax(path: tuple[str, ...], value: np.ndarray, first: bool) -> np.ndarray:
    if path[0] == "spectral":
        value = value.reshape(-1)
    if first:
        value = np.moveaxis(value.reshape(-1, 4, 4, *value.shape[1:]), 0, 2).reshape(value.shape)
    if path[-2] in ("embed", "shared"):
        return value
    return {2: np.transpose, 4: lambda v: v.transpose(2, 3, 1, 0)}.get(value.ndim, lambda v: v)(value)


def to_torch(path: tuple[str, ...], value: np.ndarray, first: bool) -> np.ndarray:
    value = np.asarray(value)
    if path[-2] not in ("embed", "shared"):
        value = {2: np.transpose, 4: lambda v: v.transpose(3, 2, 0, 1)}.get(value.ndim, lambda v: v)(value)
    if first:
        value = np.moveaxis(value.reshape(4, 4, -1, *value.shape[1:]), 2, 0).reshape(value.shape)
    return value[None] if path[0] == "spectral" else value


class State:
    """Names of one network: `generator` or not, `deep` or not."""

    def __init__(self, generator: bool, deep: bool):
        self.generator, self.pairs = generator, deep and not generator

    def _first(self, path: tuple[str, ...]) -> bool:
        """Whether the outputs of this tensor are ordered (channel, y, x) in PyTorch."""
        return self.generator and path[1] == "linear"

    def variables(self, weights: dict[str, np.ndarray]) -> dict:
        """``{"params": …, "spectral": …, "batch_stats": …}`` from a PyTorch-layout state dict."""
        flat = {}
        for key, value in weights.items():
            if not key.endswith("sv0"):  # the singular value: what the network computes
                path = path_of(key, self.pairs)
                flat[path] = to_flax(path, value, self._first(path))
        return unflatten_dict(flat)

    def tensors(self, variables: dict, order: list[str]) -> list[np.ndarray]:
        """The named tensors, in PyTorch layout."""
        flat = flatten_dict(variables)
        paths = [path_of(key, self.pairs) for key in order]
        return [to_torch(path, flat[path], self._first(path)) for path in paths]
