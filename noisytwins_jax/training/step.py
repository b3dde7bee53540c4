"""The updates of a training step, written for any `Model`, as pure functions of the global batch.

A step is: the generator's update; every few steps its lazy regularisers (path length), each as an update of its own; the
moving average; then `discriminator_updates` times the discriminator's update and, every few of those, its lazy
regularisers (R1) on the same images; every few steps the adjustment of ADA and the singular values. `phases` lists them
with their intervals, `compiled_step` compiles and runs them. Order and constants are those of the published NoisyTwins
code.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from noisytwins_jax.config import RunConfig
from noisytwins_jax.losses.base import Loss, Progress
from noisytwins_jax.losses.noisytwins import twins
from noisytwins_jax.losses.transitional import transition
from noisytwins_jax.metrics.w_space import class_embedding_norms
from noisytwins_jax.models import singular_values
from noisytwins_jax.models.image_side import convolutions_from_image
from noisytwins_jax.models.model import DiscriminatorInputs, GeneratorInputs, Model
from noisytwins_jax.training.augment import ada
from noisytwins_jax.training.ema import ema_decay, update_ema
from noisytwins_jax.training.network_losses import Metrics, NetworkLosses
from noisytwins_jax.training.optimizer import lazy_adam, row_major
from noisytwins_jax.training.random_inputs import ClassTable
from noisytwins_jax.training.state import AdaState, NetworkState, TrainState, create_state
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.randomness import purpose_key
from noisytwins_jax.utils.schedules import cosine
from noisytwins_jax.utils.sharding import Layout

Array = jax.Array
PyTree = Any
Batch = dict[str, Array]  # {"image": uint8 [N, H, W, C], "label": int32 [N]}, and "instance": int32 [N] with a table


class TrainingStep(NetworkLosses):
    """The updates of a run. Methods are pure: state in, state out.

    Args:
      config: the run's configuration.
      model: its networks.
      layout: the mesh; by default one device.
    """

    def __init__(self, config: RunConfig, model: Model, layout: Layout | None = None):
        super().__init__(config, model, layout or Layout(jax.local_devices()[:1]))
        opt = config.optimizer
        self.generator_optimizer = lazy_adam(opt, opt.generator_lr, config.path_length.interval)
        self.discriminator_optimizer = lazy_adam(
            *(opt, opt.discriminator_lr, config.r1.interval, model.parameters_without_r1),
            frozen=_frozen(model, config.finetune.freeze_discriminator),
        )

    def init(self, seed: int) -> TrainState:
        """Create the state at the start of training; call inside ``jit``."""
        config, optimizers = self.config, (self.generator_optimizer, self.discriminator_optimizer)
        watched = config.spectra.interval > 0
        return create_state(seed, self.model, *optimizers, self.losses, config.ada.initial_p, watched)

    def abstract_state(self, shardings: jax.sharding.Sharding | Callable[[PyTree], PyTree]) -> TrainState:
        """Return shapes, dtypes and shardings of the state, without computing it: what a checkpoint is restored into.

        `shardings` is one for all leaves, or a function of the tree of shapes (`Layout.state_shardings`).
        """
        shapes = jax.eval_shape(lambda: self.init(0))
        tree = shardings(shapes) if callable(shardings) else jax.tree.map(lambda _: shardings, shapes)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, tree)

    # --- updates -----------------------------------------------------------------------------------------------------

    def update_generator(self, state: TrainState, table: ClassTable) -> tuple[TrainState, Metrics]:
        """Update the generator by all its losses but the lazy ones; counts the generator's update."""
        return self._update_generator(state, table)

    def update_generator_by_pairs(
        self, state: TrainState, batch: Batch, table: ClassTable
    ) -> tuple[TrainState, Metrics]:
        """Update the generator as `update_generator`, by a loss that compares each image with a real one of its class.

        Twins are compared with the same real image: with twins, the first half of the batch counts.
        """
        half = len(batch["label"]) // 2
        if self.config.makes_twins:
            batch = {name: x[:half] for name, x in batch.items()}
        return self._update_generator(state, table, batch)

    def _update_generator(
        self, state: TrainState, table: ClassTable, batch: Batch | None = None
    ) -> tuple[TrainState, Metrics]:
        if self.config.transitional.active:
            state = self._move_transition(state)
        update, progress = state.generator.updates, self._progress(state.generator.updates)
        key = purpose_key(state.key, update, "generator/discriminator")
        inputs = self.random.generator_inputs(
            purpose_key(state.key, update, "generator"),
            table,
            self.config.batch_size,
            self.config.makes_twins,
            self.random.latent_std(progress),
            labels=None if batch is None else batch["label"],
        )
        real = None
        if batch is not None:
            if self.config.makes_twins:
                batch = {name: self.layout.batch(twins(self.layout.replicate(x))) for name, x in batch.items()}
            real = self._real_inputs(purpose_key(state.key, update, "generator/real"), batch, table)
        state, metrics = self._step_generator(state, table, inputs, key, progress, real=real)
        return state.replace(generator=state.generator.replace(updates=update + 1)), metrics

    def regularize_generator(self, name: str, state: TrainState, table: ClassTable) -> tuple[TrainState, Metrics]:
        """Update the generator by a lazy regulariser, after the generator's update of the same step."""
        loss, update = self.losses[name], state.generator.updates - 1
        progress = self._progress(update)
        inputs = self.random.generator_inputs(
            purpose_key(state.key, update, name),
            table,
            self.config.lazy_batch(loss),
            std=self.random.latent_std(progress),
        )
        key = purpose_key(state.key, update, f"{name}/noise")
        return self._step_generator(state, table, inputs, key, progress, loss)

    def update_discriminator(self, state: TrainState, batch: Batch, table: ClassTable) -> tuple[TrainState, Metrics]:
        """Update the discriminator by all its losses but the lazy ones, on as many generated as real images."""
        update, key = state.discriminator.updates, state.key
        progress = self._progress(update, self.config.optimizer.discriminator_updates)
        inputs = self.random.generator_inputs(
            purpose_key(key, update, "discriminator"),
            table,
            len(batch["label"]),
            std=self.random.latent_std(progress),
            labels=batch["label"] if self.adversarial.pairs else None,
        )
        state, images, low_images = self._generate(state, inputs)
        real = self._real_inputs(purpose_key(key, update, "discriminator/real"), batch, table)
        fake = self.random.discriminator_inputs(
            purpose_key(key, update, "discriminator/fake"), table, images, inputs.labels, low_images, inputs.instances
        )
        state, metrics = self._step_discriminator(state, table, real, fake, progress)
        return state.replace(discriminator=state.discriminator.replace(updates=update + 1)), metrics

    def regularize_discriminator(
        self, name: str, state: TrainState, batch: Batch, table: ClassTable
    ) -> tuple[TrainState, Metrics]:
        """Update the discriminator by a lazy regulariser, on the batch of its update before, augmented again."""
        update = state.discriminator.updates - 1
        real = self._real_inputs(purpose_key(state.key, update, name), batch, table)
        progress = self._progress(update, self.config.optimizer.discriminator_updates)
        return self._step_discriminator(state, table, real, None, progress, self.losses[name])

    def update_average(self, state: TrainState, table: ClassTable) -> tuple[TrainState, Metrics]:
        """Update the averaged generator; ends the generator's half of a step and has nothing to report."""
        del table
        config = self.config.ema
        step, kimg = state.generator.updates - 1, config.kimg
        if config.anneal_kimg:
            kimg = cosine(self._progress(step).kimg, 0.0, kimg, config.anneal_kimg)
        decay = ema_decay(step, self.config.batch_size, kimg, config.rampup, config.start_step)
        return state.replace(ema=update_ema(state.ema, state.generator.variables, decay)), {}

    def adapt_augmentation(self, state: TrainState, table: ClassTable) -> tuple[TrainState, Metrics]:
        """Adjust ADA's probability by the signs of all logits of real images since the last time (StyleGAN2-ADA, Sec. 3)."""
        del table
        config, counted = self.config.ada, state.ada
        if config.anneal_kimg:
            kimg = self._progress(state.generator.updates).kimg
            p = cosine(kimg, config.initial_p, config.final_p, config.anneal_kimg).astype(counted.p.dtype)
        else:
            p = ada.adapt(counted.p, counted.sign_sum, counted.count, config.target, config.kimg)
        fresh = AdaState(p, jnp.zeros_like(counted.sign_sum), jnp.zeros_like(counted.count))
        return state.replace(ada=fresh), {"augment/p": p}

    def compute_singular_values(self, state: TrainState, table: ClassTable) -> tuple[TrainState, Metrics]:
        """Compute the largest singular values of every weight (BigGAN, Sec. 4) and norms of class vectors; clamp if configured."""
        del table
        config, metrics, bases = self.config.spectra, {}, {}
        whole = self._gathered(state)
        networks = {"generator": whole.generator.params, "discriminator": whole.discriminator.params}
        for name, params in networks.items():
            found = singular_values.subspace_iteration(params, state.singular_vectors[name], config.iterations)
            bases[name], metrics = found.bases, metrics | singular_values.to_metrics(found.values, name)
            if config.clamp > 0:
                network = getattr(state, name)
                limit = jnp.where(getattr(state.rates, name) > 0, config.clamp, jnp.inf)  # a frozen network stays
                clamped = self.layout.scatter(singular_values.clamp(params, found, limit))
                state = state.replace(**{name: network.replace(params=clamped)})
        return state.replace(singular_vectors=bases), metrics | class_embedding_norms(whole.generator.params)

    # --- parts of updates --------------------------------------------------------------------------------------------

    def _step_generator(
        self,
        state: TrainState,
        table: ClassTable,
        inputs: GeneratorInputs,
        key: Array,
        progress: Progress,
        lazy: Loss | None = None,
        real: DiscriminatorInputs | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Differentiate the generator's losses and apply its optimiser."""
        whole = self._gathered(state)
        gradients, (metrics, stats, losses) = jax.grad(self.generator_loss, has_aux=True)(
            whole.generator.params, whole, table, inputs, key, progress, lazy, real
        )
        rate = state.rates.generator
        network = self._apply(
            self.generator_optimizer, state.generator, gradients, rate, progress, stats, lazy is not None
        )
        return state.replace(generator=network, losses=losses), metrics

    def _step_discriminator(
        self,
        state: TrainState,
        table: ClassTable,
        real: DiscriminatorInputs,
        fake: DiscriminatorInputs | None,
        progress: Progress,
        lazy: Loss | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Differentiate the discriminator's losses, apply its optimiser, and count signs of real logits for ADA."""
        whole = self._gathered(state)
        gradients, (metrics, stats, losses, real_logits) = jax.grad(self.discriminator_loss, has_aux=True)(
            whole.discriminator.params, whole, table, real, fake, progress, lazy
        )
        rate = state.rates.discriminator
        network = self._apply(
            self.discriminator_optimizer, state.discriminator, gradients, rate, progress, stats, lazy is not None
        )
        state = state.replace(discriminator=network, losses=losses)
        if not self.augmentation.ada or real_logits is None:
            return state, metrics
        signs, counted = jnp.sign(real_logits).sum().astype(state.ada.p.dtype), state.ada
        ada_state = AdaState(counted.p, counted.sign_sum + signs, counted.count + real_logits.size)
        return state.replace(ada=ada_state), metrics

    def _apply(
        self,
        optimizer: optax.GradientTransformation,
        network: NetworkState,
        gradients: PyTree,
        rate: Array,
        progress: Progress,
        stats: PyTree,
        regularization: bool,
    ) -> NetworkState:
        config, extra = self.config.optimizer, {"regularization": regularization}
        if config.anneal_kimg:
            rate = rate * cosine(progress.kimg, 1.0, config.final_lr, config.anneal_kimg)
            extra |= {"beta2": cosine(progress.kimg, config.beta2, config.final_beta2, config.anneal_kimg)}
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            row_major(self.layout.scatter(gradients)), network.opt_state, network.params, **extra
        )
        updates = optax.tree.scale(rate, updates)
        params = optax.apply_updates(network.params, updates)
        return network.replace(params=params, opt_state=opt_state, stats={**network.stats, **stats})

    def _generate(self, state: TrainState, inputs: GeneratorInputs) -> tuple[TrainState, Array, Array | None]:
        """Generate images for the discriminator; the generator's statistics follow them."""
        generator = self._gathered(state).generator
        _, conditioning, stats = self.model.map(generator.variables, inputs, update_stats=True)
        generator = generator.replace(stats={**generator.stats, **stats})
        images, low_images, stats = self.networks.synthesize(
            generator.variables, conditioning, inputs.key, update_stats=True
        )
        state = state.replace(generator=state.generator.replace(stats={**generator.stats, **stats}))
        return state, images, low_images

    def _real_inputs(self, key: Array, batch: Batch, table: ClassTable) -> DiscriminatorInputs:
        """Return the discriminator's inputs of a batch: images in [-1, 1], in JAX's default floating-point type."""
        images = batch["image"].astype(float) / 127.5 - 1.0
        instances = self.random.instance_features(table, batch.get("instance"))
        return self.random.discriminator_inputs(
            key, table, images, batch["label"], self.model.low_images(images), instances
        )

    def _gathered(self, state: TrainState) -> TrainState:
        """Return the state with its networks' parameters gathered, for as long as a program uses them."""
        generator, discriminator = state.generator, state.discriminator
        return state.replace(
            generator=generator.replace(params=self.layout.gather(generator.params)),
            discriminator=discriminator.replace(params=self.layout.gather(discriminator.params)),
        )

    def _progress(self, updates: Array, updates_per_step: int = 1) -> Progress:
        """Return how far training was before a network's update of this number."""
        return Progress(updates, updates // updates_per_step * (self.config.images_per_step / 1000))

    def _move_transition(self, state: TrainState) -> TrainState:
        """Set how far the generator is class-conditional by now (Transitional-cGAN, Sec. 4)."""
        config, generator = self.config.transitional, state.generator
        t = transition(self._progress(generator.updates).kimg, config.start_kimg, config.end_kimg)
        return state.replace(generator=generator.replace(stats=self.model.with_transition(generator.stats, t)))


def _frozen(model: Model, count: int) -> list[tuple[str, ...]]:
    """Return the paths of the first `count` convolutions of the discriminator."""
    if not count:
        return []
    _, variables = jax.eval_shape(model.init, jax.random.key(0))
    found = convolutions_from_image(variables["params"])
    if count > len(found):
        raise UserError(
            f"The discriminator has {len(found)} convolutions before its last block: "
            f"config.finetune.freeze_discriminator={count} cannot freeze more."
        )
    return found[:count]
