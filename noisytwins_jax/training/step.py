"""The updates of a training step, written for any `Model`, as pure functions of the global batch.

A step is: the generator's update; every few steps its lazy regularisers (path length), each as an update of its own; the
moving average; then `discriminator_updates` times the discriminator's update and, every few of those, its lazy
regularisers (R1) on the same images; every few steps the adjustment of ADA and the singular values. `phases` lists them
with their intervals, `compiled_step` compiles and runs them. Order and constants are those of the published NoisyTwins
code.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from noisytwins_jax.config import RunConfig
from noisytwins_jax.losses.adversarial import adversarial_loss
from noisytwins_jax.losses.base import DiscriminatorContext, GeneratorContext, Loss, Progress, Term
from noisytwins_jax.losses.transitional import transition
from noisytwins_jax.metrics.w_space import class_embedding_norms
from noisytwins_jax.models import singular_values
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.models.model import DiscriminatorInputs, GeneratorInputs, Model
from noisytwins_jax.training.augment import ada
from noisytwins_jax.training.augment.augmentation import Augmentation
from noisytwins_jax.training.ema import ema_decay, update_ema
from noisytwins_jax.training.micro_batches import MicroBatchedNetworks, micro_batch_rows
from noisytwins_jax.training.optimizer import lazy_adam, row_major
from noisytwins_jax.training.random_inputs import ClassTable, RandomInputs
from noisytwins_jax.training.state import AdaState, NetworkState, TrainState, create_state
from noisytwins_jax.utils.randomness import purpose_key
from noisytwins_jax.utils.sharding import Layout

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]
Batch = dict[str, Array]  # {"image": uint8 [N, H, W, C], "label": int32 [N]}, and "instance": int32 [N] with a table


class TrainingStep:
    """The updates of a run. Methods are pure: state in, state out.

    Args:
      config: the run's configuration.
      model: its networks.
      layout: the mesh; by default one device.
    """

    def __init__(self, config: RunConfig, model: Model, layout: Layout | None = None):
        self.config, self.model = config, model
        self.layout = layout or Layout(jax.local_devices()[:1])
        self.losses = config.losses
        self.adversarial = adversarial_loss(config.loss, config.loss_margin)
        self.augmentation = Augmentation(config)
        self.networks = MicroBatchedNetworks(model, micro_batch_rows(config, self.layout), self.layout)
        self.random = RandomInputs(config, model, self.layout)
        opt = config.optimizer
        self.generator_optimizer = lazy_adam(opt, opt.generator_lr, config.path_length.interval)
        self.discriminator_optimizer = lazy_adam(
            opt, opt.discriminator_lr, config.r1.interval, unreached=model.parameters_without_r1
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

    # --- losses ------------------------------------------------------------------------------------------------------

    def generator_loss(
        self,
        params: PyTree,
        state: TrainState,
        table: ClassTable,
        inputs: GeneratorInputs,
        key: Array,
        progress: Progress,
        lazy: Loss | None = None,
    ) -> tuple[Array, tuple[Metrics, PyTree, dict[str, PyTree]]]:
        """Compute the losses of every update, or one lazy regulariser alone.

        `key` is that of the discriminator's pass, or of the regulariser's noise.
        """
        variables = {**state.generator.variables, "params": params}
        w, conditioning, _ = self.model.map(variables, inputs)
        images = fake = noise = None
        stats: PyTree = {}
        if lazy is None:
            images, low_images, stats = self.networks.synthesize(variables, conditioning, inputs.key, update_stats=True)
            fake_inputs = self.random.discriminator_inputs(
                key, table, images, inputs.labels, low_images, inputs.instances
            )
            fake = self.discriminate(state.discriminator.variables, fake_inputs, state.ada.p)
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

    # --- updates -----------------------------------------------------------------------------------------------------

    def update_generator(self, state: TrainState, table: ClassTable) -> tuple[TrainState, Metrics]:
        """Update the generator by all its losses but the lazy ones; counts the generator's update."""
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
        )
        state, metrics = self._step_generator(state, table, inputs, key, progress)
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
            purpose_key(key, update, "discriminator"), table, len(batch["label"]), std=self.random.latent_std(progress)
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
        step = state.generator.updates - 1
        decay = ema_decay(step, self.config.batch_size, config.kimg, config.rampup, config.start_step)
        return state.replace(ema=update_ema(state.ema, state.generator.variables, decay)), {}

    def adapt_augmentation(self, state: TrainState, table: ClassTable) -> tuple[TrainState, Metrics]:
        """Adjust ADA's probability by the signs of all logits of real images since the last time (StyleGAN2-ADA, Sec. 3)."""
        del table
        config, counted = self.config.ada, state.ada
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
    ) -> tuple[TrainState, Metrics]:
        """Differentiate the generator's losses and apply its optimiser."""
        whole = self._gathered(state)
        gradients, (metrics, stats, losses) = jax.grad(self.generator_loss, has_aux=True)(
            whole.generator.params, whole, table, inputs, key, progress, lazy
        )
        rate = state.rates.generator
        network = self._apply(self.generator_optimizer, state.generator, gradients, rate, stats, lazy is not None)
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
            self.discriminator_optimizer, state.discriminator, gradients, rate, stats, lazy is not None
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
        stats: PyTree,
        regularization: bool,
    ) -> NetworkState:
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            row_major(self.layout.scatter(gradients)), network.opt_state, network.params, regularization=regularization
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
