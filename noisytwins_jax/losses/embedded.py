"""The base class of losses on a discriminator's embedding of images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
from typing_extensions import override

from noisytwins_jax.losses.base import DiscriminatorContext, GeneratorContext, WeightedLoss
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput

Array = jax.Array


@dataclass(frozen=True)
class EmbeddedLoss(WeightedLoss):
    """`loss` of real images in the discriminator's loss and of generated ones in the generator's."""

    title: ClassVar[str]  # for error messages

    def loss(self, embedding: Array, proxy: Array, labels: Array, replicate: Callable[[Array], Array]) -> Array:
        """Compute the loss, a scalar.

        Args:
          embedding: unit vectors of images, ``[N, E]``.
          proxy: unit vectors of their classes, ``[N, E]``.
          labels: ``[N]`` int32.
          replicate: gathers an array to every device of a mesh.
        """
        raise NotImplementedError

    @override
    def generator(self, ctx: GeneratorContext, state: tuple) -> tuple[Array, tuple]:
        return self._loss(ctx.fake, ctx.labels, ctx.replicate), state

    @override
    def discriminator(self, ctx: DiscriminatorContext, state: tuple) -> tuple[Array, tuple]:
        return self._loss(ctx.real, ctx.real_labels, ctx.replicate), state

    def _loss(self, images: DiscriminatorOutput, labels: Array, replicate: Callable[[Array], Array]) -> Array:
        if images.embedding is None or images.proxy is None:
            raise ValueError(
                f"{self.title} needs a discriminator with an embedding and a proxy, but this one has none."
            )
        return self.loss(images.embedding, images.proxy, labels, replicate)
