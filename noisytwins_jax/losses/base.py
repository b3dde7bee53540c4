"""The interface of a term of the training loss, beyond the adversarial one.

An objective is a frozen dataclass in a file of its own. Its fields are its hyper-parameters, and its place in the
configuration is the name it is listed by in `config.Losses`: ``--config.<name>.weight=0.1`` switches it on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from noisytwins_jax.losses.adversarial import AdversarialLoss
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.utils.config_fields import number

Array = jax.Array
PyTree = Any


class Progress(NamedTuple):
    """How far training is."""

    step: Array  # int32, updates of this network before the present one
    kimg: Array  # thousands of real images shown to the discriminator before the present step


class GeneratorContext(NamedTuple):
    """What the generator's update has at hand; everything that depends on `params` carries their gradient."""

    params: PyTree  # of the generator
    w: Array  # [N, D] mapping outputs; rows i and i + N/2 are twins in a run that makes twins
    labels: Array  # [N] int32
    images: Array  # [N, H, W, C]
    fake: DiscriminatorOutput  # of the augmented images
    class_counts: Array  # [C] float32, training images of each class
    progress: Progress
    loss: AdversarialLoss
    replicate: Callable[[Array], Array]  # gathers an array that is split over devices; for use across the whole batch


class DiscriminatorContext(NamedTuple):
    """What the discriminator's update has at hand; both discriminations carry the gradient of `params`."""

    params: PyTree  # of the discriminator
    real: DiscriminatorOutput
    real_labels: Array  # [N] int32
    fake: DiscriminatorOutput
    fake_labels: Array  # [N] int32
    class_counts: Array  # [C] float32, training images of each class
    progress: Progress
    loss: AdversarialLoss
    replicate: Callable[[Array], Array]


@dataclass(frozen=True)
class Loss:
    """A term that adds ``scale(progress) · value`` to a network's loss; it is left out of the program when weight is 0.

    A subclass defines `generator`, `discriminator` or both. Each returns the term's unweighted value, a scalar that is
    logged as ``loss/<network>/<name>``, and the objective's state after it. The state, ``()`` unless `init` says
    otherwise, is part of the training state and saved with it.
    """

    weight: float = number(0.0, at_least=0)
    start_step: int = number(0, at_least=0)  # the term counts from this step on

    twins: ClassVar[bool] = False  # whether the generator's update must make its batch of twins

    def scale(self, progress: Progress) -> Array:
        """What the value is multiplied by."""
        return jnp.where(progress.step >= self.start_step, self.weight, 0.0)

    def init(self, generator_params: PyTree, discriminator_params: PyTree) -> PyTree:
        """The state at the start of training."""
        del generator_params, discriminator_params
        return ()

    def generator(self, seen: GeneratorContext, state: PyTree) -> tuple[Array, PyTree] | None:
        """The term in the generator's loss and the state after it, or ``None`` for no such term."""
        del seen, state
        return None

    def discriminator(self, seen: DiscriminatorContext, state: PyTree) -> tuple[Array, PyTree] | None:
        """The term in the discriminator's loss and the state after it, or ``None`` for no such term."""
        del seen, state
        return None


def add_losses(
    objectives: Mapping[str, Loss],
    network: Literal["generator", "discriminator"],
    loss: Array,
    seen: GeneratorContext | DiscriminatorContext,
    states: Mapping[str, PyTree],
) -> tuple[Array, dict[str, Array], dict[str, PyTree]]:
    """Adds every objective's term in the loss of `network`; their values and their states after it.

    Args:
      objectives: those that are switched on, by name.
      network: whose loss it is.
      loss: a scalar.
      seen: what that network's update has at hand.
      states: the objectives' states, by name.

    Returns:
      The sum, the unweighted values as ``loss/<network>/<name>``, and the states after it.
    """
    metrics, states = {}, dict(states)
    for name, objective in objectives.items():
        term = getattr(objective, network)(seen, states[name])
        if term is not None:
            value, states[name] = term
            metrics[f"loss/{network}/{name}"] = value
            loss = loss + objective.scale(seen.progress) * value
    return loss, metrics, states
