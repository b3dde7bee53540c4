"""PyTorch-layout StyleGAN2 tensors to Flax variables and back, for the tests."""

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def to_flax(key: str, value: np.ndarray) -> np.ndarray:
    if key == "b4.fc.weight":  # columns (channel, y, x) → rows (y, x, channel)
        return value.reshape(value.shape[0], -1, 4, 4).transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    if key.endswith("noise_const"):
        return value[..., None]
    return {0: lambda v: v, 1: lambda v: v, 2: np.transpose, 3: lambda v: v.transpose(1, 2, 0)}.get(
        value.ndim, lambda v: v.transpose(2, 3, 1, 0)
    )(value)


def to_torch(key: str, value: np.ndarray) -> np.ndarray:
    value = np.asarray(value)
    if key == "b4.fc.weight":
        return value.reshape(4, 4, -1, value.shape[1]).transpose(3, 2, 0, 1).reshape(value.shape[1], -1)
    return {2: np.transpose, 3: lambda v: v.transpose(2, 0, 1), 4: lambda v: v.transpose(3, 2, 0, 1)}.get(
        value.ndim, lambda v: v
    )(value)


def path_of(key: str) -> tuple[str, ...]:
    for name in ("b4.out.", "linear1."):
        key = key.replace(name, "output.")
    return tuple(key.split("."))


def variables(weights: dict[str, np.ndarray]) -> dict:
    """``{"params": …, "buffers": …}`` from a PyTorch-layout state dict."""
    collections: dict = {"params": {}, "buffers": {}}
    for key, value in weights.items():
        if key.endswith("resample_filter"):
            continue
        collection = "buffers" if key.endswith(("w_avg", "noise_const")) else "params"
        collections[collection][path_of(key)] = to_flax(key, value)
    return {name: unflatten_dict(tree) for name, tree in collections.items() if tree}


def tensors(params: dict, order: list[str]) -> list[np.ndarray]:
    """The named tensors of a parameter tree, in PyTorch layout."""
    flat = flatten_dict(params)
    return [to_torch(key, flat[path_of(key)]) for key in order]
