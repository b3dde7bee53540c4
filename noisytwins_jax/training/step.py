"""The training step: a generator update and a discriminator update, each with its lazy regulariser.

Written for any `Model`. A step is one `generator_step` (adversarial and NoisyTwins losses; every few steps path length
as an update of its own; then the moving average) followed by `discriminator_updates` × `discriminator_step` (adversarial
loss; every few updates R1 as an update of its own on the same images). This order and all constants are those of the
published NoisyTwins code. Everything is a pure function of the global batch.
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
from noisytwins_jax.training.state import NetworkState, TrainState, create_state, lazy_adam

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]


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

    # --- draws -------------------------------------------------------------------------------------------------------

    def draw_fakes(self, key: Array, table: ClassTable, n: int, twins: bool = False) -> FakeDraws:
        """Draws for n generated images; with `twins`, n/2 pairs of the same z and label in the layout [a; b].

        z and labels are drawn whole on every device, which costs nothing, and split afterwards: pairing twins then
        needs no communication. Class noise, mixing and per-pixel noise are each row's own.
        """
        keys = dict(zip(("z", "label", "noise", "mix", "mix_z", "mix_noise", "pixel"), jax.random.split(key, 7)))
        distinct = n // 2 if twins else n
        z = self.replicate(jax.random.normal(keys["z"], (distinct, self.model.z_dim)))
        labels = self.replicate(jax.random.categorical(keys["label"], table.fake_logits, shape=(distinct,)))
        if twins:
            z, labels = noisytwins.twins(z), noisytwins.twins(labels)
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

    def draw_pass(self, key: Array, table: ClassTable, labels: Array, shape: tuple[int, ...]) -> PassDraws:
        """Draws for a discriminator pass over images of `shape`."""
        noise_key, augment_key = jax.random.split(key)
        noise = noisytwins.class_noise(noise_key, labels, table.noise_std, self.model.class_noise_dims[1])
        return PassDraws(noise, diffaugment.draw(augment_key, shape))

    # --- losses ------------------------------------------------------------------------------------------------------

    def logits(self, variables: dict, images: Array, labels: Array, draws: PassDraws) -> tuple[Array, PyTree]:
        """Augments and discriminates: logits ``[N]`` and the discriminator's statistics after it."""
        images = diffaugment.apply(images, draws.augment, self.policy)
        return self.model.discriminate(variables, images, labels, draws.class_noise)

    def generator_loss(
        self, params: PyTree, state: TrainState, fakes: FakeDraws, draw_pass: Callable[[Array], PassDraws]
    ) -> tuple[Array, tuple[Metrics, PyTree]]:
        """Adversarial loss plus λ · L_NT (NoisyTwins Sec. 4.2). `draw_pass` takes the images' shape."""
        variables = {**state.generator.variables, "params": params}
        w, conditioning, stats = self.model.map(variables, fakes)
        images = self.model.synthesize(variables, conditioning, fakes.key)
        logits, _ = self.logits(state.discriminator.variables, images, fakes.labels, draw_pass(images.shape))
        loss = self.loss.generator(logits).mean()
        metrics = {"loss/generator": loss, "logits/generator": logits.mean()}
        if self.twins:
            nt = self.config.noisytwins
            twin_loss = noisytwins.noisytwins_loss(w, nt.gamma, nt.correlation, nt.diagonal, self.replicate)
            metrics["loss/noisytwins"] = twin_loss
            loss = loss + jnp.where(state.generator.updates >= nt.start_step, nt.weight, 0.0) * twin_loss
        return loss, (metrics, stats)

    def path_length_loss(
        self, params: PyTree, state: TrainState, fakes: FakeDraws, noise_key: Array
    ) -> tuple[Array, Array]:
        """Weighted path-length penalty and the new running mean of lengths."""
        config, variables = self.config.path_length, {**state.generator.variables, "params": params}
        _, conditioning, _ = self.model.map(variables, fakes)

        def synthesize(v: Array) -> Array:
            return self.model.synthesize(variables, v, fakes.key)

        shape = jax.eval_shape(synthesize, conditioning).shape
        noise = self.batch(jax.random.normal(noise_key, shape))
        lengths = path_lengths(synthesize, conditioning, noise)
        penalty, mean = path_length_penalty(lengths, state.path_length_mean, config.decay)
        weight = config.weight * config.interval * (config.weight if config.weight_twice else 1.0)
        return weight * penalty, mean

    def discriminator_loss(
        self, params: PyTree, state: TrainState, real: tuple[Array, Array, PassDraws], fake: tuple[Array, Array, PassDraws]
    ) -> tuple[Array, tuple[Metrics, PyTree]]:
        """Adversarial loss on (images, labels, draws) of real and of generated images, passed one after the other."""
        variables = {**state.discriminator.variables, "params": params}
        real_logits, stats = self.logits(variables, *real)
        fake_logits, stats = self.logits({**variables, **stats}, *fake)
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

    def generator_step(self, state: TrainState, table: ClassTable) -> tuple[TrainState, Metrics]:
        """One generator update, path length when it is due, then the moving average."""
        config, step = self.config, state.generator.updates
        fakes = self.draw_fakes(purpose_key(state.key, step, "generator"), table, config.batch_size, self.twins)
        pass_key = purpose_key(state.key, step, "generator/discriminator")

        def draw_pass(shape: tuple[int, ...]) -> PassDraws:
            return self.draw_pass(pass_key, table, fakes.labels, shape)

        gradients, (metrics, stats) = jax.grad(self.generator_loss, has_aux=True)(
            state.generator.params, state, fakes, draw_pass
        )
        generator = _apply(self.generator_optimizer, state.generator, gradients)
        state = state.replace(generator=generator.replace(stats={**generator.stats, **stats}))

        pl = config.path_length
        if pl.weight > 0:
            due = (step % pl.interval == 0) & (step >= pl.start_step)
            state, metrics["loss/path_length"] = jax.lax.cond(
                due, lambda s: self._path_length_update(s, table, step), lambda s: (s, jnp.float32(jnp.nan)), state
            )
        decay = ema_decay(step, config.batch_size, config.ema.kimg, config.ema.rampup)
        state = state.replace(
            ema=update_ema(state.ema, state.generator.variables, decay),
            generator=state.generator.replace(updates=step + 1),
        )
        return state, metrics

    def discriminator_step(
        self, state: TrainState, batch: dict[str, Array], table: ClassTable
    ) -> tuple[TrainState, Metrics]:
        """One discriminator update on ``{"image": uint8 [N, H, W, C], "label": int32 [N]}``, and R1 when it is due."""
        update = state.discriminator.updates
        images, labels = batch["image"].astype(jnp.float32) / 127.5 - 1.0, batch["label"]
        keys = {name: purpose_key(state.key, update, f"discriminator/{name}") for name in ("fakes", "real", "fake", "r1")}

        fakes = self.draw_fakes(keys["fakes"], table, labels.shape[0])
        _, conditioning, g_stats = self.model.map(state.generator.variables, fakes, update_stats=True)
        generated = self.model.synthesize({**state.generator.variables, **g_stats}, conditioning, fakes.key)
        state = state.replace(generator=state.generator.replace(stats={**state.generator.stats, **g_stats}))

        real = (images, labels, self.draw_pass(keys["real"], table, labels, images.shape))
        fake = (generated, fakes.labels, self.draw_pass(keys["fake"], table, fakes.labels, images.shape))
        gradients, (metrics, d_stats) = jax.grad(self.discriminator_loss, has_aux=True)(
            state.discriminator.params, state, real, fake
        )
        discriminator = _apply(self.discriminator_optimizer, state.discriminator, gradients)
        discriminator = discriminator.replace(stats={**discriminator.stats, **d_stats}, updates=update + 1)
        state = state.replace(discriminator=discriminator)

        if self.config.r1.gamma > 0:
            draws = self.draw_pass(keys["r1"], table, labels, images.shape)

            def r1_update(s: TrainState) -> tuple[TrainState, Array]:
                loss, gradients = jax.value_and_grad(self.r1_loss)(s.discriminator.params, s, images, labels, draws)
                return s.replace(discriminator=_apply(self.discriminator_optimizer, s.discriminator, gradients)), loss

            due = update % self.config.r1.interval == 0
            state, metrics["loss/r1"] = jax.lax.cond(due, r1_update, lambda s: (s, jnp.float32(jnp.nan)), state)
        return state, metrics

    def _path_length_update(self, state: TrainState, table: ClassTable, step: Array) -> tuple[TrainState, Array]:
        n = max(1, round(self.config.batch_size * self.config.path_length.batch_fraction))
        fakes = self.draw_fakes(purpose_key(state.key, step, "path_length"), table, n)
        noise_key = purpose_key(state.key, step, "path_length/noise")
        (loss, mean), gradients = jax.value_and_grad(self.path_length_loss, has_aux=True)(
            state.generator.params, state, fakes, noise_key
        )
        generator = _apply(self.generator_optimizer, state.generator, gradients)
        return state.replace(generator=generator, path_length_mean=mean), loss


def class_table(config: RunConfig, counts: np.ndarray) -> ClassTable:
    """The class table of a configuration for a training set with these class counts ``[C]``."""
    noise = config.class_noise
    std = noisytwins.class_noise_std(counts, noise.sigma, noise.alpha, noise.normalization, noise.scale)
    logits = np.log(counts) if config.fake_labels == "empirical" else np.zeros(len(counts))
    return ClassTable(std, logits.astype(np.float32))


def _apply(optimizer: optax.GradientTransformation, network: NetworkState, gradients: PyTree) -> NetworkState:
    updates, opt_state = optimizer.update(gradients, network.opt_state, network.params)
    return network.replace(params=optax.apply_updates(network.params, updates), opt_state=opt_state)
