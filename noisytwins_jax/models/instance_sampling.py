"""Draws of instances inside programs; the table is an argument of every program that draws from it."""

import jax
import jax.numpy as jnp

from noisytwins_jax.data.instance_table import InstanceTable

Array = jax.Array


def draw_pairs(key: Array, table: InstanceTable, n: int) -> tuple[Array, Array]:
    """Instances i ``[n]``, uniformly drawn, and labels ``[n]`` of images j, uniformly drawn from each A_i; int32."""
    instance_key, neighbour_key = jax.random.split(key)
    count, k = table.neighbours.shape
    instances = jax.random.randint(instance_key, (n,), 0, count, jnp.int32)
    chosen = jax.random.randint(neighbour_key, (n,), 0, k, jnp.int32)
    images = jnp.asarray(table.neighbours)[instances, chosen]
    return instances, jnp.asarray(table.labels)[images]


def draw_of_class(key: Array, table: InstanceTable, label: Array) -> Array:
    """An instance of a class, uniformly drawn: int32, a scalar as `label` is."""
    starts = jnp.asarray(table.starts)
    first, count = starts[label], starts[label + 1] - starts[label]
    return jnp.asarray(table.members)[first + jax.random.randint(key, (), 0, count, jnp.int32)]


def draw_features_of_classes(keys: Array, table: InstanceTable | None, labels: Array) -> Array | None:
    """Features ``[N, d]`` of an instance of each class, by a key each ``[N]``; None without a table."""
    if table is None:
        return None
    return instance_features(table, jax.vmap(draw_of_class, in_axes=(0, None, 0))(keys, table, labels))


def instance_features(table: InstanceTable, instances: Array) -> Array:
    """Features ``[..., d]`` of instances ``[...]``, in JAX's default floating-point type."""
    return jnp.asarray(table.features)[instances].astype(float)
