"""The losses of a training step's updates, as functions of a network's parameters."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from noisytwins_jax.config import RunConfig
from noisytwins_jax.losses.adversarial import adversarial_loss
from noisytwins_jax.losses.base import DiscriminatorContext, GeneratorContext, Loss, Progress, Term
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.models.model import DiscriminatorInputs, GeneratorInputs, Model
from noisytwins_jax.training.augment.augmentation import Augmentation
from noisytwins_jax.training.micro_batches import MicroBatchedNetworks, micro_batch_rows
from noisytwins_jax.training.random_inputs import ClassTable, RandomInputs
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.utils.sharding import Layout

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]


class NetworkLosses:
    """The losses of both networks.

    Args:
      config: the run's configuration.
      model: its networks.
      layout: the mesh.
    """

    def __init__(self, config: RunConfig, model: Model, layout: Layout):
        self.config, self.model, self.layout = config, model, layout
        self.losses = config.losses
        self.adversarial = adversarial_loss(config.loss, config.loss_margin)
        self.augmentation = Augmentation(config)
        self.networks = MicroBatchedNetworks(model, micro_batch_rows(config, layout), layout)
        self.random = RandomInputs(config, model, layout)

    def generator_loss(
        self,
        params: PyTree,
        state: TrainState,
        table: ClassTable,
        inputs: GeneratorInputs,
        key: Array,
        progress: Progress,
        lazy: Loss | None = None,
        real_inputs: DiscriminatorInputs | None = None,
    ) -> tuple[Array, tuple[Metrics, PyTree, dict[str, PyTree]]]:
        """Compute the losses of every update, or one lazy regulariser alone.

        `key` is that of the discriminator's pass, or of the regulariser's noise. A loss of pairs takes real images, too.
        """
        variables = {**state.generator.variables, "params": params}
        w, conditioning, _ = self.model.map(variables, inputs)
        images = fake = noise = real = None
        stats: PyTree = {}
        if lazy is None:
            images, low_images, stats = self.networks.synthesize(variables, conditioning, inputs.key, update_stats=True)
            fake_inputs = self.random.discriminator_inputs(
                key, table, images, inputs.labels, low_images, inputs.instances
            )
            fake = self.discriminate(state.discriminator.variables, fake_inputs, state.ada.p)
            if real_inputs is not None:
                real = self.discriminate(state.discriminator.variables, real_inputs, state.ada.p)
        else:
            noise = self.random.image_noise(key, inputs.labels.shape[0])
        ctx = GeneratorContext(
            params=params,
            w=w,
            labels=inputs.labels,
            images=images,
            fake=fake,
            conditioning=conditioning,
            synthesize=lambda v: self.networks.synthesize(variables, v, inputs.key)[0],
            noise=noise,
            class_counts=table.counts,
            progress=progress,
            adversarial=self.adversarial,
            replicate=self.layout.replicate,
            real=real,
            style=self.model.style(variables, inputs),
        )
        loss, metrics, loss_states, _ = self._sum_losses("generator", ctx, state.losses, lazy)
        if fake is not None:
            metrics["logits/generator"] = fake.logits.mean()
        return loss, (metrics, stats, loss_states)

    def discriminator_loss(
        self,
        params: PyTree,
        state: TrainState,
        table: ClassTable,
        real_inputs: DiscriminatorInputs,
        fake_inputs: DiscriminatorInputs | None,
        progress: Progress,
        lazy: Loss | None = None,
    ) -> tuple[Array, tuple[Metrics, PyTree, dict[str, PyTree], Array]]:
        """Compute the losses of every update on real and generated images, or one lazy regulariser on real ones alone."""
        variables, p = {**state.discriminator.variables, "params": params}, state.ada.p
        real = fake = None
        stats: PyTree = {}
        if fake_inputs is not None:
            real, fake, stats = self.networks.discriminate_both(
                variables, self.augment(real_inputs, p), self.augment(fake_inputs, p)
            )
        ctx = DiscriminatorContext(
            params=params,
            real=real,
            real_labels=real_inputs.labels,
            fake=fake,
            fake_labels=None if fake_inputs is None else fake_inputs.labels,
            real_images=real_inputs.images,
            discriminate=lambda images: (
                self.discriminate(variables, real_inputs._replace(images=images, low_images=None), p).logits
            ),
            class_counts=table.counts,
            progress=progress,
            adversarial=self.adversarial,
            replicate=self.layout.replicate,
            fake_images=None if fake_inputs is None else fake_inputs.images,
            discriminate_fake=lambda images: (
                self.discriminate(variables, fake_inputs._replace(images=images, low_images=None), p).logits
            ),
        )
        loss, metrics, loss_states, logits = self._sum_losses("discriminator", ctx, state.losses, lazy)
        if real is not None and fake is not None:
            logits = real.logits
            metrics |= {
                "logits/real": logits.mean(),
                "logits/fake": fake.logits.mean(),
                "logits/real_sign": jnp.sign(logits).mean(),
            }
        return loss, (metrics, stats, loss_states, logits)

    def _sum_losses(
        self,
        network: Literal["generator", "discriminator"],
        ctx: GeneratorContext | DiscriminatorContext,
        states: dict[str, PyTree],
        lazy: Loss | None,
    ) -> tuple[Array, Metrics, dict[str, PyTree], Array | None]:
        """Sum the weighted losses of an update: all that are not lazy, or the lazy one.

        Returns:
          The sum; values by the names they are logged under; the losses' states after it; and logits of real images that
          a loss computed.
        """
        total, metrics, states, real_logits = jnp.zeros(()), {}, dict(states), None
        for name, loss in self.losses.items():
            if loss is not lazy and (lazy is not None or loss.lazy):
                continue
            found = getattr(loss, network)(ctx, states[name])
            if found is None:
                continue
            term = Term(*found)
            scaled = loss.scale(ctx.progress) * term.value
            total, states[name] = total + scaled, term.state
            real_logits = term.real_logits if real_logits is None else real_logits
            if loss.lazy:
                metrics[f"loss/{name}"] = scaled
            else:
                metrics[f"loss/{network}" + ("" if name == "adversarial" else f"/{name}")] = term.value
        return total, metrics, states, real_logits

    def discriminate(self, variables: dict, inputs: DiscriminatorInputs, p: Array) -> DiscriminatorOutput:
        """Augment images with probability `p` (of ADA) and discriminate them; statistics stay as they are."""
        return self.networks.discriminate(variables, self.augment(inputs, p))

    def augment(self, inputs: DiscriminatorInputs, p: Array) -> DiscriminatorInputs:
        """Augment the images of the discriminator's inputs with probability `p` (of ADA)."""
        key, low_images = inputs.augment_key, inputs.low_images
        images = self.networks.augment(self.augmentation, key, inputs.images, p)
        if low_images is not None:
            low_images = self.networks.augment(self.augmentation, jax.random.fold_in(key, 1), low_images, p)
        return inputs._replace(images=images, low_images=low_images, augment_key=None)
