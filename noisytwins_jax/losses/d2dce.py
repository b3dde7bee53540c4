"""Data-to-data cross-entropy, D2D-CE (Kang et al., "Rebooting ACGAN" (ReACGAN), NeurIPS 2021).

The discriminator embeds images on a sphere: close to the proxy of their class, far from images of other classes. Easy
positives and easy negatives, those beyond a margin, are ignored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.nn import relu
from typing_extensions import override

from noisytwins_jax.losses.embedded import EmbeddedLoss
from noisytwins_jax.utils.config_fields import number

Array = jax.Array


def d2dce_loss(
    embedding: Array,
    proxy: Array,
    labels: Array,
    temperature: float,
    margin: float,
    replicate: Callable[[Array], Array] = lambda x: x,
) -> Array:
    """Compute D2D-CE over the whole global batch.

    With cosines ``c_ij = e_i·e_j`` and ``c_i = e_i·p_i``, temperature τ and margin m::

        pos_i = relu(m - c_i)/τ        s_ij = (c_ij + m - 1)/τ        r_ij = relu(s_ij) - max_{j≠i} s_ij
        mean_i  pos_i + log(exp(-pos_i) + Σ_{j: y_j ≠ y_i} exp r_ij)

    As published, the maximum carries no gradient and is subtracted from the negatives only, so that it changes the value;
    and one m gives both margins, ``m`` of the positives and ``1 - m`` of the negatives.

    Args:
      embedding: e, ``[N, E]`` of unit length; N at least 2.
      proxy: p, the vector of each image's class, ``[N, E]`` of unit length.
      labels: y, ``[N]`` int32.
      temperature: τ, above 0.
      margin: m.
      replicate: gathers embeddings and labels to every device of a mesh; each device compares its images with all.

    Returns:
      A scalar.
    """
    all_embeddings, all_labels = replicate(embedding), replicate(labels)
    positive = relu(margin - (embedding * proxy).sum(axis=1)) / temperature
    # Full precision: a TPU would multiply in bfloat16 by default.
    similarity = (jnp.matmul(embedding, all_embeddings.T, precision="highest") + margin - 1.0) / temperature
    others = ~jnp.eye(labels.shape[0], dtype=bool)
    largest = jax.lax.stop_gradient(similarity).max(axis=1, keepdims=True, where=others, initial=-jnp.inf)
    negatives = jnp.exp(relu(similarity) - largest).sum(axis=1, where=labels[:, None] != all_labels)
    return (positive + jnp.log(jnp.exp(-positive) + negatives)).mean()


@dataclass(frozen=True)
class D2DCE(EmbeddedLoss):
    """`d2dce_loss` of real images in the discriminator's loss and of generated ones in the generator's.

    Published with weight 0.25.
    """

    temperature: float = number(0.25, above=0)  # τ
    margin: float = number(0.98, at_least=-1, at_most=1)  # m

    title: ClassVar[str] = "D2D-CE"

    @override
    def loss(self, embedding: Array, proxy: Array, labels: Array, replicate: Callable[[Array], Array]) -> Array:
        return d2dce_loss(embedding, proxy, labels, self.temperature, self.margin, replicate)
