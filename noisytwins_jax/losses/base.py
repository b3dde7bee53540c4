"""The interface of every term of the training losses.

A loss is a frozen dataclass in a file of its own, whose fields are its hyper-parameters. It is listed in
`config.run_config.Losses` under the name of its configuration fields: ``--config.<name>.weight=0.1`` switches it on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.utils.config_fields import number

Array = jax.Array
PyTree = Any


class Progress(NamedTuple):
    """How far training is."""

    step: Array  # int32, updates of this network before the present one
    kimg: Array  # thousands of real images shown to the discriminator before the present step


class AdversarialLoss(NamedTuple):
    """The two sides of an adversarial game, unreduced; see `losses.adversarial`."""

    discriminator: Callable[[Array, Array], Array]  # real logits [N], fake logits [N] → [N]
    generator: Callable[..., Array]  # fake logits [N], and real logits [N] for a loss of pairs → [N]
    pairs: bool = False  # whether either side compares a real with a generated image of its class


class GeneratorContext(NamedTuple):
    """What a loss of the generator is computed from; everything that depends on `params` carries their gradient.

    In the update of a lazy regulariser, `images` and `fake` are None, as computing them would cost a pass, and `noise`
    is given.
    """

    params: PyTree  # of the generator
    w: Array  # [N, D] mapping outputs; rows i and i + N/2 are twins in a run that makes twins
    labels: Array  # [N] int32
    images: Array | None  # [N, H, W, C]
    fake: DiscriminatorOutput | None  # of the augmented images
    conditioning: PyTree  # what the synthesis network takes; StyleGAN2: ws [N, num_ws, w_dim]
    synthesize: Callable[[PyTree], Array]  # conditioning → images
    noise: Array | None  # [N, H, W, C] standard normal
    class_counts: Array  # [C] float32, training images of each class
    progress: Progress
    adversarial: AdversarialLoss
    replicate: Callable[[Array], Array]  # gathers an array to all devices; for use across the whole batch
    real: DiscriminatorOutput | None = None  # of augmented real images with these labels, for a loss of pairs
    style: Array | None = None  # [N, S], of a mapping network with a head for the class's style


class DiscriminatorContext(NamedTuple):
    """What a loss of the discriminator is computed from; its outputs carry the gradient of `params`.

    In the update of a lazy regulariser, `real`, `fake` and all that is of generated images are None, as computing them would cost a pass.
    """

    params: PyTree  # of the discriminator
    real: DiscriminatorOutput | None
    real_labels: Array  # [N] int32
    fake: DiscriminatorOutput | None
    fake_labels: Array | None  # [N] int32
    real_images: Array  # [N, H, W, C] in [-1, 1], before augmentation
    discriminate: Callable[[Array], Array]  # images, of the real labels → logits [N], through augmentation
    class_counts: Array  # [C] float32, training images of each class
    progress: Progress
    adversarial: AdversarialLoss
    replicate: Callable[[Array], Array]
    fake_images: Array | None = None  # [N, H, W, C], before augmentation
    discriminate_fake: Callable[[Array], Array] | None = None  # as `discriminate`, of the generated images' labels


class Term(NamedTuple):
    """What a loss returns; most return the first two, as a plain tuple."""

    value: Array  # scalar, unweighted
    state: PyTree  # the loss's state after it
    real_logits: Array | None = None  # [N], of a pass over real images of the loss's own: ADA counts their signs


class Loss:
    """A term of the losses: adds ``scale(progress) · value`` to a network's loss while it is `active`.

    A subclass defines `generator`, `discriminator` or both. Its state, ``()`` unless `init` says otherwise, is part of
    the training state and saved with it.

    Attributes:
      twins: whether the generator's update must make its batch of twins.
      lazy: the network that the loss regularises in updates of its own, every `interval` updates of that network (lazy
        regularisation, StyleGAN2, appendix B); None for a term of every update.
      batch_fraction: images in such an update of the generator, as a fraction of the batch size.
    """

    twins: ClassVar[bool] = False
    lazy: ClassVar[Literal["generator", "discriminator"] | None] = None
    interval: int
    start_step: int = 0
    batch_fraction: float = 1.0

    @property
    def active(self) -> bool:
        """Whether the loss is switched on; otherwise it is left out of the program."""
        raise NotImplementedError

    def scale(self, progress: Progress) -> Array | float:
        """Return the weight of the value at this time of training."""
        raise NotImplementedError

    def init(self, generator_params: PyTree, discriminator_params: PyTree) -> PyTree:
        """Return the state at the start of training."""
        del generator_params, discriminator_params
        return ()

    def generator(self, ctx: GeneratorContext, state: PyTree) -> tuple[Array, PyTree] | Term | None:
        """Compute the term of the generator's loss and the state after it, or return ``None`` for no such term."""
        del ctx, state
        return None

    def discriminator(self, ctx: DiscriminatorContext, state: PyTree) -> tuple[Array, PyTree] | Term | None:
        """Compute the term of the discriminator's loss and the state after it, or return ``None`` for no such term."""
        del ctx, state
        return None


@dataclass(frozen=True)
class WeightedLoss(Loss):
    """A loss with a weight, which counts from a step on. Values are logged as ``loss/<network>/<name>``."""

    weight: float = number(0.0, at_least=0)
    start_step: int = number(0, at_least=0)  # the term counts from this step on

    @property
    def active(self) -> bool:
        """Whether the weight is above 0."""
        return self.weight > 0

    def scale(self, progress: Progress) -> Array | float:
        """Return the weight from `start_step` on, 0 before."""
        return jnp.where(progress.step >= self.start_step, self.weight, 0.0)
