"""Random instances, in functions that can be traced with the table of instances as an argument."""

import jax
import jax.numpy as jnp

from noisytwins_jax.data.instance_table import InstanceTable

Array = jax.Array


def sample_instances_and_labels(key: Array, table: InstanceTable, n: int) -> tuple[Array, Array]:
    """Sample instances i ``[n]`` uniformly, and labels ``[n]`` of images j, uniformly from each A_i; int32."""
    instance_key, neighbour_key = jax.random.split(key)
    count, k = table.neighbours.shape
    instances = jax.random.randint(instance_key, (n,), 0, count, jnp.int32)
    chosen = jax.random.randint(neighbour_key, (n,), 0, k, jnp.int32)
    images = jnp.asarray(table.neighbours)[instances, chosen]
    return instances, jnp.asarray(table.labels)[images]


def sample_instance_of_class(key: Array, table: InstanceTable, label: Array) -> Array:
    """Sample an instance of a class uniformly: int32, a scalar as `label` is."""
    starts = jnp.asarray(table.starts)
    first, count = starts[label], starts[label + 1] - starts[label]
    return jnp.asarray(table.members)[first + jax.random.randint(key, (), 0, count, jnp.int32)]


def sample_features_of_classes(keys: Array, table: InstanceTable | None, labels: Array) -> Array | None:
    """Sample an instance of each class with keys ``[N]`` and return its features ``[N, d]``; None without a table."""
    if table is None:
        return None
    return instance_features(table, jax.vmap(sample_instance_of_class, in_axes=(0, None, 0))(keys, table, labels))


def instance_features(table: InstanceTable, instances: Array) -> Array:
    """Look up the features ``[..., d]`` of instances ``[...]``, in JAX's default floating-point type."""
    return jnp.asarray(table.features)[instances].astype(float)
