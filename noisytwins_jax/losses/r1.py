"""R1 gradient penalty (Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018, eq. 9)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def r1_penalty(discriminate: Callable[[Array], Array], images: Array) -> tuple[Array, Array]:
    """``½ · mean_n |∂ Σ logits / ∂ images_n|²``, without γ, and the logits ``[N]``.

    The sum over the batch is differentiated, not each sample alone: minibatch standard deviation couples samples.

    Args:
      discriminate: images to logits ``[N]``, augmentation included.
      images: real images ``[N, H, W, C]``.
    """

    def total(x: Array) -> tuple[Array, Array]:
        logits = discriminate(x)
        return logits.sum(), logits

    gradients, logits = jax.grad(total, has_aux=True)(images)
    return 0.5 * jnp.square(gradients).sum(axis=(1, 2, 3)).mean(), logits
