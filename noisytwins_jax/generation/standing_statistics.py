"""Standing statistics of BatchNorm: batch statistics averaged over many passes, for sampling (BigGAN).

Brock et al., ICLR 2019, Sec. 2.1 and appendix C.
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from noisytwins_jax.data.instance_table import InstanceTable
from noisytwins_jax.generation.sample_programs import Strength, instance_features
from noisytwins_jax.models.latents import Latents, Truncation
from noisytwins_jax.models.model import Model
from noisytwins_jax.utils.multihost import distributed_map
from noisytwins_jax.utils.sharding import Layout

Array = jax.Array
PyTree = Any
_KEY = 0x5354  # separates the random inputs of standing statistics from those of images
_MAX_CACHED = 64

_cache: dict[tuple, PyTree] = {}  # statistics of this process, by all that they depend on


def standing_statistics(
    model: Model,
    latents: Latents,
    variables: dict,
    truncation: Truncation | None,
    passes: int,
    batch: int,
    instances: InstanceTable | None = None,
) -> dict:
    """Return the variables with standing statistics: means of the batch statistics of many passes.

    In each pass the generator runs on random z and uniformly sampled classes. The statistics belong to one truncation, and
    make a sample independent of its batch. Each pass runs on one device, so that the result is the same up to rounding on
    any number of devices. To be called by all processes, which share the passes.

    Args:
      model: the networks; if they have no BatchNorm, the variables are returned unchanged.
      latents: the distribution of z.
      variables: the generator's collections; whole in this process.
      truncation: of the latents, None for none.
      passes: number of passes.
      batch: images per pass.
      instances: the table, where the model is conditioned on instances; each image has one of its class.
    """
    if not model.needs_standing_statistics:
        return variables
    key = (model, latents, tree_sha256(variables), truncation, passes, batch, tree_sha256(instances))
    if key not in _cache:
        while len(_cache) >= _MAX_CACHED:
            _cache.pop(next(iter(_cache)))
        _cache[key] = _compute(model, latents, variables, truncation, passes, batch, instances)
    return {**variables, **_cache[key]}


def tree_sha256(tree: PyTree) -> str:
    """Compute the hexadecimal SHA-256 of the names and values of a tree, as of a generator's variables."""
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(np.asarray(value)).tobytes())
    return digest.hexdigest()


def _compute(
    model: Model,
    latents: Latents,
    variables: dict,
    truncation: Truncation | None,
    passes: int,
    batch: int,
    instances: InstanceTable | None,
) -> PyTree:
    layout = Layout(jax.local_devices())
    program = _pass_program(model, latents, batch, truncation and truncation.kind)
    strength = None if truncation is None else np.float32(truncation.strength)
    arguments = layout.replicate_to_devices((variables, instances))
    structure = jax.tree.structure({"batch_stats": variables["batch_stats"]})

    def compute(numbers: np.ndarray) -> tuple[np.ndarray, ...]:
        return layout.map_batches(
            lambda arguments, numbers: program(arguments[0], arguments[1], strength, numbers),
            arguments,
            numbers.astype(np.int32),
            per_device_batch=1,
            prefetch=2,
        )

    statistics = distributed_map(compute, passes)
    means = [x.astype(np.float64).mean(axis=0).astype(np.float32) for x in statistics]
    return jax.tree.unflatten(structure, means)


@functools.lru_cache(maxsize=8)
def _pass_program(
    model: Model, latents: Latents, batch: int, truncation: str | None
) -> Callable[..., tuple[Array, ...]]:
    """Build the program of passes.

    Returns:
      (variables, instances or None, strength or None, numbers of passes int32 ``[n]``) → the leaves ``[n, …]`` of the batch
      statistics.
    """
    num_classes = model.num_classes

    def compute_one(
        variables: dict, instances: InstanceTable | None, strength: Strength, number: Array
    ) -> tuple[Array, ...]:
        z_key, label_key = jax.random.split(jax.random.fold_in(jax.random.key(_KEY), number))
        z = latents.draw(z_key, batch, truncation_kind=truncation, strength=strength)
        labels = jax.random.randint(label_key, (batch,), 0, num_classes)
        features = instance_features(jax.random.split(label_key, batch), instances, labels)
        return tuple(jax.tree.leaves(model.batch_statistics(variables, z, labels, features)))

    return jax.jit(jax.vmap(compute_one, in_axes=(None, None, None, 0)))
