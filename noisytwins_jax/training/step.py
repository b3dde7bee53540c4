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
import numpy as np
import optax

from noisytwins_jax import noisytwins, spectra
from noisytwins_jax.augment import ada, diffaugment
from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.instances import InstanceTable
from noisytwins_jax.latents import annealed_std
from noisytwins_jax.metrics.w_space import class_embedding_norms
from noisytwins_jax.networks.discrimination import Discrimination
from noisytwins_jax.objectives.adversarial import adversarial_loss
from noisytwins_jax.objectives.objective import DiscriminatorPass, GeneratorPass, Progress
from noisytwins_jax.objectives.path_length import path_length_penalty, path_lengths
from noisytwins_jax.objectives.r1 import r1_penalty
from noisytwins_jax.objectives.transitional import transition
from noisytwins_jax.randomness import purpose_key
from noisytwins_jax.training.ema import ema_decay, update_ema
from noisytwins_jax.training.instances import draw_pairs, instance_features
from noisytwins_jax.training.model import DiscriminatorInputs, FakeDraws, Model
from noisytwins_jax.training.optimizer import lazy_adam, row_major
from noisytwins_jax.training.state import AdaState, NetworkState, TrainState, create_state

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]
Batch = dict[str, Array]  # {"image": uint8 [N, H, W, C], "label": int32 [N]}, and "instance": int32 [N] with a table


class ClassTable(NamedTuple):
    """What the step knows of each class, ``[C]``; arguments of the programs, so that one program serves every method.

    And of each training image, where images are conditioned on them.
    """

    noise_std: np.ndarray  # class noise
    fake_logits: np.ndarray  # log-probability, up to a constant, of each class among generated images
    counts: np.ndarray  # training images
    instances: InstanceTable | None = None


class Shown(NamedTuple):
    """Images that a discriminator is shown, before augmentation."""

    images: Array  # [N, H, W, C]
    labels: Array  # [N]
    low_images: Array | None = None  # [N, h, w, C], where the model has a low-resolution objective
    instances: Array | None = None  # [N, d], features of instances


class PassDraws(NamedTuple):
    """What a discriminator pass over a batch draws."""

    class_noise: Array  # [N, class_noise_dims[1]]
    augment: PyTree  # of DiffAugment or ADA
    augment_low: PyTree | None = None  # the same for the low-resolution images
    dropout: Array | None = None  # key


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
        self.loss, self.latents = (
            adversarial_loss(config.loss, config.loss_margin),
            config.z._replace(z_dim=model.z_dim),
        )
        self.policy = diffaugment.parse_policy(config.augment.diffaugment)
        self.ada = ada.parse_operations(config.ada.operations)
        self.ada_impl = "gather" if config.up_impl == "phase" else "matmul"
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

    # --- draws -------------------------------------------------------------------------------------------------------

    def latent_std(self, progress: Progress) -> Array | float:
        """What z is multiplied by at this time of training."""
        config = self.config.latents
        if not config.anneal_kimg:
            return 1.0
        return annealed_std(progress.kimg, config.start_std, 1.0, config.anneal_kimg)

    def draw_fakes(
        self, key: Array, table: ClassTable, n: int, twins: bool = False, std: Array | float = 1.0
    ) -> FakeDraws:
        """Draws for n generated images; with `twins`, n/2 pairs of the same z and label in the layout [a; b].

        `std` is that of z (`latent_std`). With instances, an instance is drawn with the label, of one of its neighbours;
        twins share it.

        z and labels are drawn whole on every device, which costs nothing, and split afterwards: pairing twins then
        needs no communication. Class noise, mixing and per-pixel noise are each row's own.
        """
        names = ("z", "label", "noise", "mix", "mix_z", "mix_noise", "pixel")
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        distinct = n // 2 if twins else n
        z = self.replicate(self.latents.draw(keys["z"], distinct, std))
        instances = None
        if table.instances is None:
            labels = self.replicate(jax.random.categorical(keys["label"], table.fake_logits, shape=(distinct,)))
        else:
            instances, labels = map(self.replicate, draw_pairs(keys["label"], table.instances, distinct))
        if twins:
            z, labels, instances = jax.tree.map(lambda x: self.replicate(noisytwins.twins(x)), (z, labels, instances))
        z, labels = self.batch(z), self.batch(labels.astype(jnp.int32))
        dim = self.model.class_noise_dims[0]
        mixing = (None, None, None)
        if self.config.style_mixing > 0 and self.model.mixing_layers > 1:
            use, where = jax.random.split(keys["mix"])
            cutoff = jax.random.randint(where, (), 1, self.model.mixing_layers)
            mixing = (
                self.batch(self.latents.draw(keys["mix_z"], n, std)),
                noisytwins.class_noise(keys["mix_noise"], labels, table.noise_std, dim),
                jnp.where(jax.random.uniform(use) < self.config.style_mixing, cutoff, self.model.mixing_layers),
            )
        noise = noisytwins.class_noise(keys["noise"], labels, table.noise_std, dim)
        return FakeDraws(z, labels, noise, *mixing, keys["pixel"], self._features(table, instances))

    def draw_pass(self, key: Array, table: ClassTable, labels: Array) -> PassDraws:
        """Draws for a discriminator pass over images of classes `labels`."""
        noise_key, augment_key = jax.random.split(key)
        noise = noisytwins.class_noise(noise_key, labels, table.noise_std, self.model.class_noise_dims[1])
        n, low = labels.shape[0], self.model.low_shape
        return PassDraws(
            noise,
            self.draw_augmentation(augment_key, (n, *self.model.image_shape)),
            None if low is None else self.draw_augmentation(jax.random.fold_in(augment_key, 1), (n, *low)),
            jax.random.fold_in(key, 2) if self.config.biggan.dropout > 0 else None,
        )

    def draw_augmentation(self, key: Array, shape: tuple[int, int, int, int]) -> PyTree:
        """Draws of the run's augmentation for images of `shape`."""
        return ada.draw(key, shape, self.ada) if self.ada else diffaugment.draw(key, shape)

    # --- losses ------------------------------------------------------------------------------------------------------

    def augment(self, images: Array, draws: PyTree, p: Array) -> Array:
        """The run's augmentation; `p` is ADA's probability."""
        if self.ada:
            return ada.apply(images, draws, self.ada, p, self.ada_impl, self.config.dtype)
        return diffaugment.apply(images, draws, self.policy)

    def discriminate(
        self, variables: dict, shown: Shown, draws: PassDraws, p: Array, update_stats: bool = False
    ) -> tuple[Discrimination, PyTree]:
        """Augments and discriminates: the discriminator's outputs, and its statistics after it."""
        return self.model.discriminate(variables, self.augmented(shown, draws, p), update_stats)

    def augmented(self, shown: Shown, draws: PassDraws, p: Array) -> DiscriminatorInputs:
        """What the discriminator looks at, when shown these images."""
        images, low = self.augment(shown.images, draws.augment, p), shown.low_images
        if low is not None:
            low = self.augment(low, draws.augment_low, p)
        return DiscriminatorInputs(images, shown.labels, draws.class_noise, low, draws.dropout, shown.instances)

    def add_objectives(
        self, network: str, loss: Array, seen: GeneratorPass | DiscriminatorPass, states: dict[str, PyTree]
    ) -> tuple[Array, Metrics, dict[str, PyTree]]:
        """Adds every objective's term in the loss of `network`; their values and their states after it."""
        metrics, states = {}, dict(states)
        for name, objective in self.config.objectives.items():
            term = getattr(objective, network)(seen, states[name])
            if term is not None:
                value, states[name] = term
                metrics[f"loss/{network}/{name}"] = value
                loss = loss + objective.scale(seen.progress) * value
        return loss, metrics, states

    def generator_loss(
        self, params: PyTree, state: TrainState, table: ClassTable, fakes: FakeDraws, draws: PassDraws
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
        seen = GeneratorPass(params, w, fakes.labels, images, fake, table.counts, progress, self.loss, self.replicate)
        loss, terms, objectives = self.add_objectives("generator", loss, seen, state.objectives)
        return loss, (metrics | terms, stats, objectives)

    def path_length_loss(
        self, params: PyTree, state: TrainState, fakes: FakeDraws, noise: Array
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
        seen = DiscriminatorPass(
            *(params, real, real_shown.labels, fake, fake_shown.labels),
            *(table.counts, progress, self.loss, self.replicate),
        )
        loss, terms, objectives = self.add_objectives("discriminator", loss, seen, state.objectives)
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
        key, std = purpose_key(state.key, step, "generator"), self.latent_std(self.progress(network))
        fakes = self.draw_fakes(key, table, self.config.batch_size, self.config.makes_twins, std)
        draws = self.draw_pass(purpose_key(state.key, step, "generator/discriminator"), table, fakes.labels)
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
        n, std = self.config.path_length_batch, self.latent_std(self.progress(network.replace(updates=step)))
        fakes = self.draw_fakes(purpose_key(state.key, step, "path_length"), table, n, std=std)
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
        std = self.latent_std(self.progress(network, self.config.optimizer.discriminator_updates))
        fakes = self.draw_fakes(purpose_key(state.key, update, "discriminator"), table, real.labels.shape[0], std=std)
        whole = self.whole(state)
        generator = whole.generator
        _, conditioning, stats = self.model.map(generator.variables, fakes, update_stats=True)
        generator = generator.replace(stats={**generator.stats, **stats})
        images, low_images, stats = self.model.synthesize(
            generator.variables, conditioning, fakes.key, update_stats=True
        )
        generator = generator.replace(stats={**generator.stats, **stats})
        fake = Shown(images, fakes.labels, low_images, fakes.instances)

        real_draws = self.draw_pass(purpose_key(state.key, update, "discriminator/real"), table, real.labels)
        fake_draws = self.draw_pass(purpose_key(state.key, update, "discriminator/fake"), table, fakes.labels)
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
        draws = self.draw_pass(purpose_key(state.key, update, "r1"), table, shown.labels)
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
                clamped = self.scatter(spectra.clamp(params, found, config.clamp))
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
        if not self.ada:
            return state
        signs, seen = jnp.sign(real_logits).sum().astype(state.ada.p.dtype), state.ada
        return state.replace(ada=AdaState(seen.p, seen.sign_sum + signs, seen.count + real_logits.size))

    def _shown(self, batch: Batch, table: ClassTable) -> Shown:
        """Images in [-1, 1], in JAX's default floating-point type, labels and instances."""
        images = batch["image"].astype(float) / 127.5 - 1.0
        instances = self._features(table, batch.get("instance"))
        return Shown(images, batch["label"], self.model.low_images(images), instances)

    def _features(self, table: ClassTable, instances: Array | None) -> Array | None:
        """Features ``[N, d]`` of instances ``[N]``, split over devices as all that is a batch's."""
        return None if instances is None else self.batch(instance_features(table.instances, instances))


def class_table(config: RunConfig, counts: np.ndarray, instances: InstanceTable | None = None) -> ClassTable:
    """The class table of a configuration for a training set with these class counts ``[C]`` and instances, if any."""
    noise = config.noisytwins
    std = noisytwins.class_noise_std(counts, noise.sigma, noise.alpha, noise.noise_normalization, noise.noise_scale)
    logits = np.log(counts) if config.fake_labels == "empirical" else np.zeros(len(counts))
    return ClassTable(std, logits.astype(np.float32), np.asarray(counts, np.float32), instances)
