"""Random numbers of the rows of a micro-batch: those that the rows have in the whole batch."""

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array


class Rows(flax.struct.PyTreeNode):
    """Which rows of a batch a micro-batch is."""

    indices: Array  # [N]
    total: int = flax.struct.field(pytree_node=False)  # rows of the batch


def normal(key: Array, n: int, shape: tuple[int, ...], dtype: jnp.dtype, rows: Rows | None = None) -> Array:
    """Sample standard normal noise ``[n, *shape]`` for a batch, or for n rows of one."""
    if rows is None:
        return jax.random.normal(key, (n, *shape), dtype)
    return jnp.take(jax.random.normal(key, (rows.total, *shape), dtype), rows.indices, axis=0)
