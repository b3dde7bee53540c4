"""A BigGAN run small enough for tests: `tiny_run` with twins and class noise."""

from typing import Any

import jax
import numpy as np
import tiny_run
from flax.traverse_util import flatten_dict

from noisytwins_jax.config import RunConfig

CHANGES = {
    "network": "biggan",
    "loss": "hinge",
    "generator.z_dim": 6,  # chunks for the first layer and the one block
    "biggan.generator_width": 4,
    "biggan.discriminator_width": 4,
    "biggan.embedding_dim": 8,
    "biggan.attention": "none",
    "r1.gamma": 0.0,
    "r1.interval": 1,
    "path_length.weight": 0.0,
    "path_length.interval": 1,
}


def tiny_config(**changes: Any) -> RunConfig:
    """A configuration; `changes` are fields by dotted path."""
    return tiny_run.tiny_config(**CHANGES | changes)


def perturbed(params: Any, seed: int) -> Any:
    """Parameters of which none is zero, so that no gradient is zero for want of a path."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, noisy)


def power_iteration(variables: dict) -> dict[str, np.ndarray]:
    """Every u by its layer's path, after a step of power iteration with the variables' weights."""
    flat = {path: np.asarray(x, np.float64) for path, x in flatten_dict(variables).items()}
    moved = {}
    for (collection, *path, name), u in flat.items():
        if collection != "spectral":
            continue
        weight = flat["params", *path, "weight"]
        matrix = weight.T if path[-1] == "embed" else weight.reshape(-1, weight.shape[-1])  # [inputs, outputs]
        v = matrix @ u
        u = matrix.T @ (v / np.linalg.norm(v))
        moved["/".join((*path, name))] = u / np.linalg.norm(u)
    return moved
