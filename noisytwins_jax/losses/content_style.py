"""Content–Style (Timilsina, Shrestha and Fu, 2026; no paper yet: their code, and their page on long-tailed generation).

The mapping network has a head for the content, which is shared by all classes, and one for the class's style (see
`models.stylegan2.mapping`). The style should change little with the class embedding, so that a rare class takes after
frequent ones of a near embedding: twins of one z and class, apart by the noise on the normalised embedding, are pulled
together.

As published, noise is on the embeddings of both networks in every pass. Here generated images come as twins in the
generator's update alone; in the published code the discriminator's do, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from typing_extensions import override

from noisytwins_jax.losses.base import GeneratorContext, WeightedLoss
from noisytwins_jax.utils.config_fields import number

Array = jax.Array


def style_distance(style: Array, reference_pairs: int, replicate: Callable[[Array], Array] = lambda x: x) -> Array:
    """Compute ``√(n · mean_i ‖s_i − s_i'‖²)``: the published ``‖S − S'‖_F`` of a batch of n pairs, for a batch of any size.

    Args:
      style: ``[2N, S]`` in the layout of `noisytwins.twins`: rows i and i + N are twins.
      reference_pairs: n.
      replicate: gathers `style` to every device of a mesh, once.

    Returns:
      A scalar; 0, with gradient 0, where twins are equal.
    """
    first, second = jnp.split(replicate(style), 2)
    squares = reference_pairs * jnp.square(first - second).sum(axis=1).mean()
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


@dataclass(frozen=True)
class ContentStyle(WeightedLoss):
    """`style_distance` in the generator's loss, and noise on both networks' normalised class embeddings.

    Published with weight 0.1. Any weight above 0 also gives the generator the mapping network of two heads.
    """

    sigma: float = number(0.5, at_least=0)  # σ of the noise; coordinates of normalised embeddings have mean square 1
    reference_pairs: int = number(16, at_least=1)  # n

    twins: ClassVar[bool] = True

    @override
    def generator(self, ctx: GeneratorContext, state: tuple) -> tuple[Array, tuple]:
        if ctx.style is None:
            raise ValueError("Content–Style needs a generator with a style, but this one has none.")
        return style_distance(ctx.style, self.reference_pairs, ctx.replicate), state
