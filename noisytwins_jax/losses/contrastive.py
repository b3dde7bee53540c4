"""Conditional contrastive loss, 2C (Kang & Park, "ContraGAN: Contrastive Learning for Conditional Image Generation",
NeurIPS 2020).

The discriminator embeds images on a sphere: close to the proxy of their class and to images of that class, far from the
rest of the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from typing_extensions import override

from noisytwins_jax.losses.embedded import EmbeddedLoss
from noisytwins_jax.utils.config_fields import number

Array = jax.Array


def contrastive_loss(
    embedding: Array,
    proxy: Array,
    labels: Array,
    temperature: float,
    replicate: Callable[[Array], Array] = lambda x: x,
) -> Array:
    """Compute 2C over the whole global batch.

    With ``s_i = e_i·p_i/τ`` and ``s_ij = e_i·e_j/τ``, the mean over i of::

        -log (exp s_i + Σ_{j≠i, y_j=y_i} exp s_ij) / (exp s_i + Σ_{j≠i} exp s_ij)

    Args:
      embedding: e, ``[N, E]`` of unit length.
      proxy: p, the vector of each image's class, ``[N, E]`` of unit length.
      labels: y, ``[N]`` int32.
      temperature: τ, above 0.
      replicate: gathers embeddings and labels to every device of a mesh; each device compares its images with all.

    Returns:
      A scalar.
    """
    all_embeddings, all_labels = replicate(embedding), replicate(labels)
    to_proxy = (embedding * proxy).sum(axis=1, keepdims=True) / temperature
    # Full precision: a TPU would multiply in bfloat16 by default.
    to_others = jnp.matmul(embedding, all_embeddings.T, precision="highest") / temperature
    others = ~jnp.eye(labels.shape[0], dtype=bool)
    same_class = others & (labels[:, None] == all_labels)

    def log_sum(mask: Array) -> Array:
        terms = jnp.concatenate([to_proxy, to_others], axis=1)
        mask = jnp.concatenate([jnp.ones_like(to_proxy, dtype=bool), mask], axis=1)
        return logsumexp(terms, axis=1, where=mask)

    return (log_sum(others) - log_sum(same_class)).mean()


@dataclass(frozen=True)
class Contrastive(EmbeddedLoss):
    """`contrastive_loss` of real images in the discriminator's loss and of generated ones in the generator's.

    Published with weight 0.25.
    """

    temperature: float = number(0.25, above=0)  # τ

    title: ClassVar[str] = "2C"

    @override
    def loss(self, embedding: Array, proxy: Array, labels: Array, replicate: Callable[[Array], Array]) -> Array:
        return contrastive_loss(embedding, proxy, labels, self.temperature, replicate)
