"""The updates that make a training step, written for any `Model`, as pure functions of the global batch.

A step is: the generator's update (adversarial loss and objectives); every few steps path length, as an update of its
own; the moving average; then `discriminator_updates` times the discriminator's update and, every few of those, R1 on the
same images as an update of its own; every few steps the adjustment of ADA. `programs` compiles and schedules them. Order
and constants are those of the published NoisyTwins code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from noisytwins_jax.config import RunConfig
from noisytwins_jax.losses.adversarial import adversarial_loss
from noisytwins_jax.losses.base import DiscriminatorContext, GeneratorContext, Progress, add_losses
from noisytwins_jax.losses.path_length import path_length_penalty, path_lengths
from noisytwins_jax.losses.r1 import r1_penalty
from noisytwins_jax.losses.transitional import transition
from noisytwins_jax.metrics.w_space import class_embedding_norms
from noisytwins_jax.models import singular_values as spectra
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.models.model import DiscriminatorInputs, GeneratorInputs, Model
from noisytwins_jax.training.augment import ada
from noisytwins_jax.training.augment.augmentation import Augmentation
from noisytwins_jax.training.ema import ema_decay, update_ema
from noisytwins_jax.training.optimizer import lazy_adam, row_major
from noisytwins_jax.training.random_inputs import ClassTable, Draws, PassDraws
from noisytwins_jax.training.state import AdaState, NetworkState, TrainState, create_state
from noisytwins_jax.utils.randomness import purpose_key

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]
Batch = dict[str, Array]  # {"image": uint8 [N, H, W, C], "label": int32 [N]}, and "instance": int32 [N] with a table


class Shown(NamedTuple):
    """Images that a discriminator is shown, before augmentation."""

    images: Array  # [N, H, W, C]
    labels: Array  # [N]
    low_images: Array | None = None  # [N, h, w, C], where the model has a low-resolution objective
    instances: Array | None = None  # [N, d], features of instances


class TrainingStep:
    """The updates of a run. Methods are pure: state in, state out.

    Args:
      config: the run's configuration.
      model: its networks.
      batch: splits an array's leading axis over devices (`sharding.Layout.batch`); default: nothing to do.
      replicate: gathers an array to every device (`sharding.Layout.replicate`); default: nothing to do.
      gather: makes parameters whole on every device, to be used (`sharding.Layout.gather`); default: they are.
      scatter: splits gradients as parameters are kept (`sharding.Layout.scatter`); default: they are not.
    """

    def __init__(
        self,
        config: RunConfig,
        model: Model,
        batch: Callable[[Array], Array] = lambda x: x,
        replicate: Callable[[Array], Array] = lambda x: x,
        gather: Callable[[PyTree], PyTree] = lambda x: x,
        scatter: Callable[[PyTree], PyTree] = lambda x: x,
    ):
        self.config, self.model, self.batch, self.replicate = config, model, batch, replicate
        self.gather, self.scatter = gather, scatter
        self.loss = adversarial_loss(config.loss, config.loss_margin)
        self.augmentation = Augmentation(config)
        self.draws = Draws(config, model, self.augmentation, batch, replicate)
        opt = config.optimizer
        self.generator_optimizer = lazy_adam(opt, opt.generator_lr, config.path_length.interval)
        self.discriminator_optimizer = lazy_adam(
            opt, opt.discriminator_lr, config.r1.interval, unreached=model.parameters_without_r1
        )

    def init(self, seed: int) -> TrainState:
        """A fresh state; call inside ``jit``."""
        config, optimizers = self.config, (self.generator_optimizer, self.discriminator_optimizer)
        watched = config.spectra.interval > 0
        return create_state(seed, self.model, *optimizers, config.objectives, config.ada.initial_p, watched)

    def abstract_state(self, shardings: jax.sharding.Sharding | Callable[[PyTree], PyTree]) -> TrainState:
        """Shapes, dtypes and shardings of the state, without computing it: what a checkpoint is restored into.

        `shardings` is one for all leaves, or a function of the tree of shapes (`sharding.Layout.state_shardings`).
        """
        shapes = jax.eval_shape(lambda: self.init(0))
        tree = shardings(shapes) if callable(shardings) else jax.tree.map(lambda _: shardings, shapes)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, tree)

    def whole(self, state: TrainState) -> TrainState:
        """The state as losses take it: its networks' parameters gathered, for as long as a program uses them."""
        generator, discriminator = state.generator, state.discriminator
        return state.replace(
            generator=generator.replace(params=self.gather(generator.params)),
            discriminator=discriminator.replace(params=self.gather(discriminator.params)),
        )

    def progress(self, network: NetworkState, updates_per_step: int = 1) -> Progress:
        """How far training was before the present step, as a network's own updates tell."""
        images = network.updates // updates_per_step * (self.config.images_per_step / 1000)
        return Progress(network.updates, images)

    # --- losses ------------------------------------------------------------------------------------------------------

    def discriminate(
        self, variables: dict, shown: Shown, draws: PassDraws, p: Array, update_stats: bool = False
    ) -> tuple[DiscriminatorOutput, PyTree]:
        """Augments and discriminates: the discriminator's outputs, and its statistics after it."""
        return self.model.discriminate(variables, self.augmented(shown, draws, p), update_stats)

    def augmented(self, shown: Shown, draws: PassDraws, p: Array) -> DiscriminatorInputs:
        """What the discriminator looks at, when shown these images."""
        images, low = self.augmentation.apply(shown.images, draws.augment, p), shown.low_images
        if low is not None:
            low = self.augmentation.apply(low, draws.augment_low, p)
        return DiscriminatorInputs(images, shown.labels, draws.class_noise, low, draws.dropout, shown.instances)

    def generator_loss(
        self, params: PyTree, state: TrainState, table: ClassTable, fakes: GeneratorInputs, draws: PassDraws
    ) -> tuple[Array, tuple[Metrics, PyTree, dict[str, PyTree]]]:
        """Adversarial loss and the objectives' terms."""
        variables = {**state.generator.variables, "params": params}
        w, conditioning, _ = self.model.map(variables, fakes)
        images, low_images, stats = self.model.synthesize(variables, conditioning, fakes.key, update_stats=True)
        shown = Shown(images, fakes.labels, low_images, fakes.instances)
        fake, _ = self.discriminate(state.discriminator.variables, shown, draws, state.ada.p)
        loss = self.loss.generator(fake.logits).mean()
        metrics = {"loss/generator": loss, "logits/generator": fake.logits.mean()}
        progress = self.progress(state.generator)
        seen = GeneratorContext(
            params, w, fakes.labels, images, fake, table.counts, progress, self.loss, self.replicate
        )
        loss, terms, objectives = add_losses(self.config.objectives, "generator", loss, seen, state.objectives)
        return loss, (metrics | terms, stats, objectives)

    def path_length_loss(
        self, params: PyTree, state: TrainState, fakes: GeneratorInputs, noise: Array
    ) -> tuple[Array, Array]:
        """Weighted path-length penalty and the new running mean of lengths; `noise` is shaped like the images."""
        config, variables = self.config.path_length, {**state.generator.variables, "params": params}
        _, conditioning, _ = self.model.map(variables, fakes)

        def synthesize(v: Array) -> Array:
            return self.model.synthesize(variables, v, fakes.key)[0]

        lengths = path_lengths(synthesize, conditioning, noise)
        penalty, mean = path_length_penalty(lengths, state.path_length_mean, config.decay)
        weight = config.weight * config.interval * (config.weight if config.weight_twice else 1.0)
        return weight * penalty, mean

    def discriminator_loss(
        self,
        params: PyTree,
        state: TrainState,
        table: ClassTable,
        real_shown: Shown,
        real_draws: PassDraws,
        fake_shown: Shown,
        fake_draws: PassDraws,
    ) -> tuple[Array, tuple[Metrics, PyTree, dict[str, PyTree], Array]]:
        """Adversarial loss and the objectives' terms on real and on generated images."""
        variables, p = {**state.discriminator.variables, "params": params}, state.ada.p
        real, fake, stats = self.model.discriminate_both(
            variables, self.augmented(real_shown, real_draws, p), self.augmented(fake_shown, fake_draws, p)
        )
        loss = self.loss.discriminator(real.logits, fake.logits).mean()
        metrics = {
            "loss/discriminator": loss,
            "logits/real": real.logits.mean(),
            "logits/fake": fake.logits.mean(),
            "logits/real_sign": jnp.sign(real.logits).mean(),
        }
        progress = self.progress(state.discriminator, self.config.optimizer.discriminator_updates)
        seen = DiscriminatorContext(
            *(params, real, real_shown.labels, fake, fake_shown.labels),
            *(table.counts, progress, self.loss, self.replicate),
        )
        loss, terms, objectives = add_losses(self.config.objectives, "discriminator", loss, seen, state.objectives)
        return loss, (metrics | terms, stats, objectives, real.logits)

    def r1_loss(self, params: PyTree, state: TrainState, shown: Shown, draws: PassDraws) -> tuple[Array, Array]:
        """Weighted R1 penalty, through the augmentation, and the logits."""
        variables = {**state.discriminator.variables, "params": params}

        def discriminate(images: Array) -> Array:
            shown_now = Shown(images, shown.labels, instances=shown.instances)
            return self.discriminate(variables, shown_now, draws, state.ada.p)[0].logits

        penalty, logits = r1_penalty(discriminate, shown.images)
        return self.config.r1.gamma * self.config.r1.interval * penalty, logits

    # --- updates -----------------------------------------------------------------------------------------------------

    def generator_update(self, state: TrainState, table: ClassTable) -> tuple[TrainState, Metrics]:
        """Adversarial loss and objectives; counts the generator's update."""
        if self.config.transitional.weight > 0:
            state = self._move_transition(state)
        step, network = state.generator.updates, state.generator
        key, std = purpose_key(state.key, step, "generator"), self.draws.latent_std(self.progress(network))
        fakes = self.draws.fakes(key, table, self.config.batch_size, self.config.makes_twins, std)
        draws = self.draws.of_pass(purpose_key(state.key, step, "generator/discriminator"), table, fakes.labels)
        whole = self.whole(state)
        gradients, (metrics, stats, objectives) = jax.grad(self.generator_loss, has_aux=True)(
            whole.generator.params, whole, table, fakes, draws
        )
        network = self._apply(self.generator_optimizer, network, gradients, state.rates.generator, stats)
        network = network.replace(updates=step + 1)
        return state.replace(generator=network, objectives=objectives), metrics

    def path_length_update(self, state: TrainState, table: ClassTable) -> tuple[TrainState, Metrics]:
        """Path length, after the generator's update of the same step."""
        step, network = state.generator.updates - 1, state.generator
        n, std = self.config.path_length_batch, self.draws.latent_std(self.progress(network.replace(updates=step)))
        fakes = self.draws.fakes(purpose_key(state.key, step, "path_length"), table, n, std=std)
        noise = jax.random.normal(purpose_key(state.key, step, "path_length/noise"), (n, *self.model.image_shape))
        whole = self.whole(state)
        (loss, mean), gradients = jax.value_and_grad(self.path_length_loss, has_aux=True)(
            whole.generator.params, whole, fakes, self.batch(noise)
        )
        rate = state.rates.generator
        network = self._apply(self.generator_optimizer, network, gradients, rate, regularization=True)
        return state.replace(generator=network, path_length_mean=mean), {"loss/path_length": loss}

    def average(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """Moves the averaged generator; ends the generator's half of a step and has nothing to report."""
        config = self.config.ema
        step = state.generator.updates - 1
        decay = ema_decay(step, self.config.batch_size, config.kimg, config.rampup, config.start_step)
        return state.replace(ema=update_ema(state.ema, state.generator.variables, decay)), {}

    def discriminator_update(self, state: TrainState, batch: Batch, table: ClassTable) -> tuple[TrainState, Metrics]:
        """Adversarial loss and objectives on real and as many generated images; counts the discriminator's update."""
        update, network = state.discriminator.updates, state.discriminator
        real = self._shown(batch, table)
        std = self.draws.latent_std(self.progress(network, self.config.optimizer.discriminator_updates))
        fakes = self.draws.fakes(purpose_key(state.key, update, "discriminator"), table, real.labels.shape[0], std=std)
        whole = self.whole(state)
        generator = whole.generator
        _, conditioning, stats = self.model.map(generator.variables, fakes, update_stats=True)
        generator = generator.replace(stats={**generator.stats, **stats})
        images, low_images, stats = self.model.synthesize(
            generator.variables, conditioning, fakes.key, update_stats=True
        )
        generator = generator.replace(stats={**generator.stats, **stats})
        fake = Shown(images, fakes.labels, low_images, fakes.instances)

        real_draws = self.draws.of_pass(purpose_key(state.key, update, "discriminator/real"), table, real.labels)
        fake_draws = self.draws.of_pass(purpose_key(state.key, update, "discriminator/fake"), table, fakes.labels)
        gradients, (metrics, stats, objectives, real_logits) = jax.grad(self.discriminator_loss, has_aux=True)(
            whole.discriminator.params, whole, table, real, real_draws, fake, fake_draws
        )
        network = self._apply(self.discriminator_optimizer, network, gradients, state.rates.discriminator, stats)
        network = network.replace(updates=update + 1)
        generator = state.generator.replace(stats=generator.stats)
        state = state.replace(generator=generator, discriminator=network, objectives=objectives)
        return self._count_signs(state, real_logits), metrics

    def r1_update(self, state: TrainState, batch: Batch, table: ClassTable) -> tuple[TrainState, Metrics]:
        """R1 on the batch of the discriminator's update before it, augmented anew."""
        update, network = state.discriminator.updates - 1, state.discriminator
        shown = self._shown(batch, table)
        draws = self.draws.of_pass(purpose_key(state.key, update, "r1"), table, shown.labels)
        whole = self.whole(state)
        (loss, logits), gradients = jax.value_and_grad(self.r1_loss, has_aux=True)(
            whole.discriminator.params, whole, shown, draws
        )
        rate = state.rates.discriminator
        network = self._apply(self.discriminator_optimizer, network, gradients, rate, regularization=True)
        return self._count_signs(state.replace(discriminator=network), logits), {"loss/r1": loss}

    def adapt(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """Moves ADA's probability by the signs of all logits of real images since the last time (StyleGAN2-ADA, Sec. 3)."""
        config, seen = self.config.ada, state.ada
        p = ada.adapt(seen.p, seen.sign_sum, seen.count, config.target, config.kimg)
        fresh = AdaState(p, jnp.zeros_like(seen.sign_sum), jnp.zeros_like(seen.count))
        return state.replace(ada=fresh), {"augment/p": p}

    def look_at_spectra(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """The largest singular values of every weight (BigGAN, Sec. 4), clamped if asked for, and norms of class vectors."""
        config, metrics, bases = self.config.spectra, {}, {}
        whole = self.whole(state)
        networks = {"generator": whole.generator.params, "discriminator": whole.discriminator.params}
        for name, params in networks.items():
            found = spectra.advance(params, state.spectra[name], config.iterations)
            bases[name], metrics = found.bases, metrics | spectra.scalars(found.values, name)
            if config.clamp > 0:
                network = getattr(state, name)
                limit = jnp.where(getattr(state.rates, name) > 0, config.clamp, jnp.inf)  # a frozen network stays
                clamped = self.scatter(spectra.clamp(params, found, limit))
                state = state.replace(**{name: network.replace(params=clamped)})
        return state.replace(spectra=bases), metrics | class_embedding_norms(whole.generator.params)

    # --- parts of updates --------------------------------------------------------------------------------------------

    def _move_transition(self, state: TrainState) -> TrainState:
        """Sets how far the generator is class-conditional by now (Transitional-cGAN, Sec. 4)."""
        config, generator = self.config.transitional, state.generator
        t = transition(self.progress(generator).kimg, config.start_kimg, config.end_kimg)
        return state.replace(generator=generator.replace(stats=self.model.with_transition(generator.stats, t)))

    def _apply(
        self,
        optimizer: optax.GradientTransformation,
        network: NetworkState,
        gradients: PyTree,
        rate: Array,
        stats: PyTree | None = None,
        regularization: bool = False,
    ) -> NetworkState:
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            row_major(self.scatter(gradients)), network.opt_state, network.params, regularization=regularization
        )
        updates = optax.tree.scale(rate, updates)
        params = optax.apply_updates(network.params, updates)
        return network.replace(params=params, opt_state=opt_state, stats={**network.stats, **(stats or {})})

    def _count_signs(self, state: TrainState, real_logits: Array) -> TrainState:
        if not self.augmentation.ada:
            return state
        signs, seen = jnp.sign(real_logits).sum().astype(state.ada.p.dtype), state.ada
        return state.replace(ada=AdaState(seen.p, seen.sign_sum + signs, seen.count + real_logits.size))

    def _shown(self, batch: Batch, table: ClassTable) -> Shown:
        """Images in [-1, 1], in JAX's default floating-point type, labels and instances."""
        images = batch["image"].astype(float) / 127.5 - 1.0
        instances = self.draws.features(table, batch.get("instance"))
        return Shown(images, batch["label"], self.model.low_images(images), instances)
