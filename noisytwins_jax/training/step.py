"""The updates that make a training step, written for any `Model`, as pure functions of the global batch.

A step is: the generator's update (adversarial and NoisyTwins losses); every few steps path length, as an update of its
own; the moving average; then `discriminator_updates` times the discriminator's update and, every few of those, R1 on the
same images as an update of its own. `programs` compiles and schedules them. Order and constants are those of the
published NoisyTwins code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from noisytwins_jax import noisytwins
from noisytwins_jax.augment import diffaugment
from noisytwins_jax.config import RunConfig
from noisytwins_jax.objectives.adversarial import ADVERSARIAL_LOSSES
from noisytwins_jax.objectives.path_length import path_length_penalty, path_lengths
from noisytwins_jax.objectives.r1 import r1_penalty
from noisytwins_jax.randomness import purpose_key
from noisytwins_jax.training.ema import ema_decay, update_ema
from noisytwins_jax.training.model import FakeDraws, Model
from noisytwins_jax.training.optimizer import lazy_adam
from noisytwins_jax.training.state import NetworkState, TrainState, create_state

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]
Batch = dict[str, Array]  # {"image": uint8 [N, H, W, C], "label": int32 [N]}


class ClassTable(NamedTuple):
    """What the step knows of each class, ``[C]``; arguments of the programs, so that one program serves every method."""

    noise_std: np.ndarray  # class noise
    fake_logits: np.ndarray  # log-probability, up to a constant, of each class among generated images


class PassDraws(NamedTuple):
    """What a discriminator pass over a batch draws."""

    class_noise: Array  # [N, class_noise_dims[1]]
    augment: diffaugment.DiffAugmentDraws


class TrainingStep:
    """The updates of a run. Methods are pure: state in, state out.

    Args:
      config: the run's configuration.
      model: its networks.
      batch: splits an array's leading axis over devices (`sharding.Layout.batch`); default: nothing to do.
      replicate: gathers an array to every device (`sharding.Layout.replicate`); default: nothing to do.
    """

    def __init__(
        self,
        config: RunConfig,
        model: Model,
        batch: Callable[[Array], Array] = lambda x: x,
        replicate: Callable[[Array], Array] = lambda x: x,
    ):
        self.config, self.model, self.batch, self.replicate = config, model, batch, replicate
        self.loss = ADVERSARIAL_LOSSES[config.loss]
        self.policy = diffaugment.parse_policy(config.augment.diffaugment)
        self.twins = config.noisytwins.weight > 0
        opt = config.optimizer
        self.generator_optimizer = lazy_adam(opt, opt.generator_lr, config.path_length.interval)
        self.discriminator_optimizer = lazy_adam(opt, opt.discriminator_lr, config.r1.interval)

    def init(self, seed: int) -> TrainState:
        """A fresh state; call inside ``jit``."""
        return create_state(seed, self.model, self.generator_optimizer, self.discriminator_optimizer)

    def abstract_state(self, sharding: jax.sharding.Sharding) -> TrainState:
        """Shapes, dtypes and shardings of the state, without computing it: what a checkpoint is restored into."""
        shapes = jax.eval_shape(lambda: self.init(0))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)

    # --- draws -------------------------------------------------------------------------------------------------------

    def draw_fakes(self, key: Array, table: ClassTable, n: int, twins: bool = False) -> FakeDraws:
        """Draws for n generated images; with `twins`, n/2 pairs of the same z and label in the layout [a; b].

        z and labels are drawn whole on every device, which costs nothing, and split afterwards: pairing twins then
        needs no communication. Class noise, mixing and per-pixel noise are each row's own.
        """
        names = ("z", "label", "noise", "mix", "mix_z", "mix_noise", "pixel")
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        distinct = n // 2 if twins else n
        z = self.replicate(jax.random.normal(keys["z"], (distinct, self.model.z_dim)))
        labels = self.replicate(jax.random.categorical(keys["label"], table.fake_logits, shape=(distinct,)))
        if twins:
            z, labels = self.replicate(noisytwins.twins(z)), self.replicate(noisytwins.twins(labels))
        z, labels = self.batch(z), self.batch(labels.astype(jnp.int32))
        dim = self.model.class_noise_dims[0]
        mixing = (None, None, None)
        if self.config.style_mixing > 0 and self.model.mixing_layers > 1:
            use, where = jax.random.split(keys["mix"])
            cutoff = jax.random.randint(where, (), 1, self.model.mixing_layers)
            mixing = (
                self.batch(jax.random.normal(keys["mix_z"], z.shape)),
                noisytwins.class_noise(keys["mix_noise"], labels, table.noise_std, dim),
                jnp.where(jax.random.uniform(use) < self.config.style_mixing, cutoff, self.model.mixing_layers),
            )
        noise = noisytwins.class_noise(keys["noise"], labels, table.noise_std, dim)
        return FakeDraws(z, labels, noise, *mixing, key=keys["pixel"])

    def draw_pass(self, key: Array, table: ClassTable, labels: Array) -> PassDraws:
        """Draws for a discriminator pass over images of classes `labels`."""
        noise_key, augment_key = jax.random.split(key)
        noise = noisytwins.class_noise(noise_key, labels, table.noise_std, self.model.class_noise_dims[1])
        return PassDraws(noise, diffaugment.draw(augment_key, (labels.shape[0], *self.model.image_shape)))

    # --- losses ------------------------------------------------------------------------------------------------------

    def logits(
        self, variables: dict, images: Array, labels: Array, draws: PassDraws, update_stats: bool = False
    ) -> tuple[Array, PyTree]:
        """Augments and discriminates: logits ``[N]`` and the discriminator's statistics after it."""
        images = diffaugment.apply(images, draws.augment, self.policy)
        return self.model.discriminate(variables, images, labels, draws.class_noise, update_stats)

    def generator_loss(
        self, params: PyTree, state: TrainState, fakes: FakeDraws, draws: PassDraws
    ) -> tuple[Array, tuple[Metrics, PyTree]]:
        """Adversarial loss plus λ · L_NT (NoisyTwins Sec. 4.2)."""
        variables = {**state.generator.variables, "params": params}
        w, conditioning, _ = self.model.map(variables, fakes)
        images, stats = self.model.synthesize(variables, conditioning, fakes.key, update_stats=True)
        logits, _ = self.logits(state.discriminator.variables, images, fakes.labels, draws)
        loss = self.loss.generator(logits).mean()
        metrics = {"loss/generator": loss, "logits/generator": logits.mean()}
        if self.twins:
            nt = self.config.noisytwins
            twin_loss = noisytwins.noisytwins_loss(w, nt.gamma, nt.correlation, nt.diagonal, self.replicate)
            metrics["loss/noisytwins"] = twin_loss
            loss = loss + jnp.where(state.generator.updates >= nt.start_step, nt.weight, 0.0) * twin_loss
        return loss, (metrics, stats)

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
        real: tuple[Array, Array, PassDraws],
        fake: tuple[Array, Array, PassDraws],
    ) -> tuple[Array, tuple[Metrics, PyTree]]:
        """Adversarial loss on (images, labels, draws) of real and of generated images, passed one after the other."""
        variables = {**state.discriminator.variables, "params": params}
        real_logits, stats = self.logits(variables, *real, update_stats=True)
        fake_logits, fake_stats = self.logits({**variables, **stats}, *fake, update_stats=True)
        stats = {**stats, **fake_stats}
        loss = self.loss.discriminator(real_logits, fake_logits).mean()
        metrics = {
            "loss/discriminator": loss,
            "logits/real": real_logits.mean(),
            "logits/fake": fake_logits.mean(),
            "logits/real_sign": jnp.sign(real_logits).mean(),
        }
        return loss, (metrics, stats)

    def r1_loss(self, params: PyTree, state: TrainState, images: Array, labels: Array, draws: PassDraws) -> Array:
        """Weighted R1 penalty, through the augmentation."""
        variables = {**state.discriminator.variables, "params": params}
        penalty = r1_penalty(lambda x: self.logits(variables, x, labels, draws)[0], images)
        return self.config.r1.gamma * self.config.r1.interval * penalty

    # --- updates -----------------------------------------------------------------------------------------------------

    def generator_update(self, state: TrainState, table: ClassTable) -> tuple[TrainState, Metrics]:
        """Adversarial and NoisyTwins losses; counts the generator's update."""
        step, network = state.generator.updates, state.generator
        fakes = self.draw_fakes(
            purpose_key(state.key, step, "generator"), table, self.config.batch_size, twins=self.twins
        )
        draws = self.draw_pass(purpose_key(state.key, step, "generator/discriminator"), table, fakes.labels)
        gradients, (metrics, stats) = jax.grad(self.generator_loss, has_aux=True)(network.params, state, fakes, draws)
        network = _apply(self.generator_optimizer, network, gradients, stats).replace(updates=step + 1)
        return state.replace(generator=network), metrics

    def path_length_update(self, state: TrainState, table: ClassTable) -> tuple[TrainState, Metrics]:
        """Path length, after the generator's update of the same step."""
        step, network = state.generator.updates - 1, state.generator
        n = self.config.path_length_batch
        fakes = self.draw_fakes(purpose_key(state.key, step, "path_length"), table, n)
        noise = jax.random.normal(purpose_key(state.key, step, "path_length/noise"), (n, *self.model.image_shape))
        (loss, mean), gradients = jax.value_and_grad(self.path_length_loss, has_aux=True)(
            network.params, state, fakes, self.batch(noise)
        )
        network = _apply(self.generator_optimizer, network, gradients)
        return state.replace(generator=network, path_length_mean=mean), {"loss/path_length": loss}

    def average(self, state: TrainState) -> TrainState:
        """Moves the averaged generator; ends the generator's half of a step."""
        config = self.config.ema
        decay = ema_decay(state.generator.updates - 1, self.config.batch_size, config.kimg, config.rampup)
        return state.replace(ema=update_ema(state.ema, state.generator.variables, decay))

    def discriminator_update(self, state: TrainState, batch: Batch, table: ClassTable) -> tuple[TrainState, Metrics]:
        """Adversarial loss on a batch of real and as many generated images; counts the discriminator's update."""
        update, network = state.discriminator.updates, state.discriminator
        images, labels = _to_float(batch)
        fakes = self.draw_fakes(purpose_key(state.key, update, "discriminator"), table, labels.shape[0])
        generator = state.generator
        _, conditioning, stats = self.model.map(generator.variables, fakes, update_stats=True)
        generator = generator.replace(stats={**generator.stats, **stats})
        generated, stats = self.model.synthesize(generator.variables, conditioning, fakes.key, update_stats=True)
        generator = generator.replace(stats={**generator.stats, **stats})

        real_draws = self.draw_pass(purpose_key(state.key, update, "discriminator/real"), table, labels)
        fake_draws = self.draw_pass(purpose_key(state.key, update, "discriminator/fake"), table, fakes.labels)
        gradients, (metrics, stats) = jax.grad(self.discriminator_loss, has_aux=True)(
            network.params, state, (images, labels, real_draws), (generated, fakes.labels, fake_draws)
        )
        network = _apply(self.discriminator_optimizer, network, gradients, stats).replace(updates=update + 1)
        return state.replace(generator=generator, discriminator=network), metrics

    def r1_update(self, state: TrainState, batch: Batch, table: ClassTable) -> tuple[TrainState, Metrics]:
        """R1 on the batch of the discriminator's update before it, augmented anew."""
        update, network = state.discriminator.updates - 1, state.discriminator
        images, labels = _to_float(batch)
        draws = self.draw_pass(purpose_key(state.key, update, "r1"), table, labels)
        loss, gradients = jax.value_and_grad(self.r1_loss)(network.params, state, images, labels, draws)
        return state.replace(discriminator=_apply(self.discriminator_optimizer, network, gradients)), {"loss/r1": loss}


def class_table(config: RunConfig, counts: np.ndarray) -> ClassTable:
    """The class table of a configuration for a training set with these class counts ``[C]``."""
    noise = config.class_noise
    std = noisytwins.class_noise_std(counts, noise.sigma, noise.alpha, noise.normalization, noise.scale)
    logits = np.log(counts) if config.fake_labels == "empirical" else np.zeros(len(counts))
    return ClassTable(std, logits.astype(np.float32))


def _apply(
    optimizer: optax.GradientTransformation, network: NetworkState, gradients: PyTree, stats: PyTree | None = None
) -> NetworkState:
    updates, opt_state = optimizer.update(gradients, network.opt_state, network.params)
    params = optax.apply_updates(network.params, updates)
    return network.replace(params=params, opt_state=opt_state, stats={**network.stats, **(stats or {})})


def _to_float(batch: Batch) -> tuple[Array, Array]:
    """Images in [-1, 1], in JAX's default floating-point type, and labels."""
    return batch["image"].astype(float) / 127.5 - 1.0, batch["label"]
