"""What a training step draws at random: latents, labels, class noise and augmentation.

Every function is pure and takes its key. What it draws from, beside the configuration, is the class table.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.instance_table import InstanceTable
from noisytwins_jax.losses import noisytwins
from noisytwins_jax.losses.base import Progress
from noisytwins_jax.models.instance_sampling import draw_pairs, instance_features
from noisytwins_jax.models.latents import annealed_std
from noisytwins_jax.models.model import GeneratorInputs, Model
from noisytwins_jax.training.augment.augmentation import Augmentation

Array = jax.Array
PyTree = Any


class ClassTable(NamedTuple):
    """What the step knows of each class, ``[C]``; arguments of the programs, so that one program serves every method.

    And of each training image, where images are conditioned on them.
    """

    noise_std: np.ndarray  # class noise
    fake_logits: np.ndarray  # log-probability, up to a constant, of each class among generated images
    counts: np.ndarray  # training images
    instances: InstanceTable | None = None


def class_table(config: RunConfig, counts: np.ndarray, instances: InstanceTable | None = None) -> ClassTable:
    """The class table of a configuration for a training set with these class counts ``[C]`` and instances, if any."""
    noise = config.noisytwins
    std = noisytwins.class_noise_std(counts, noise.sigma, noise.alpha, noise.noise_normalization, noise.noise_scale)
    logits = np.log(counts) if config.fake_labels == "empirical" else np.zeros(len(counts))
    return ClassTable(std, logits.astype(np.float32), np.asarray(counts, np.float32), instances)


class PassDraws(NamedTuple):
    """What a discriminator pass over a batch draws."""

    class_noise: Array  # [N, class_noise_dims[1]]
    augment: PyTree  # of DiffAugment or ADA
    augment_low: PyTree | None = None  # the same for the low-resolution images
    dropout: Array | None = None  # key


class Draws:
    """The draws of a run.

    Args:
      config: the run's configuration.
      model: its networks.
      augmentation: of what the discriminator looks at.
      batch: splits an array's leading axis over devices (`sharding.Layout.batch`); default: nothing to do.
      replicate: gathers an array to every device (`sharding.Layout.replicate`); default: nothing to do.
    """

    def __init__(
        self,
        config: RunConfig,
        model: Model,
        augmentation: Augmentation,
        batch: Callable[[Array], Array] = lambda x: x,
        replicate: Callable[[Array], Array] = lambda x: x,
    ):
        self.config, self.model, self.augmentation = config, model, augmentation
        self.batch, self.replicate = batch, replicate
        self.latents = config.z._replace(z_dim=model.z_dim)

    def latent_std(self, progress: Progress) -> Array | float:
        """What z is multiplied by at this time of training."""
        config = self.config.latents
        if not config.anneal_kimg:
            return 1.0
        return annealed_std(progress.kimg, config.start_std, 1.0, config.anneal_kimg)

    def fakes(
        self, key: Array, table: ClassTable, n: int, twins: bool = False, std: Array | float = 1.0
    ) -> GeneratorInputs:
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
        return GeneratorInputs(z, labels, noise, *mixing, keys["pixel"], self.features(table, instances))

    def of_pass(self, key: Array, table: ClassTable, labels: Array) -> PassDraws:
        """Draws for a discriminator pass over images of classes `labels`."""
        noise_key, augment_key = jax.random.split(key)
        noise = noisytwins.class_noise(noise_key, labels, table.noise_std, self.model.class_noise_dims[1])
        n, low = labels.shape[0], self.model.low_shape
        return PassDraws(
            noise,
            self.augmentation.draw(augment_key, (n, *self.model.image_shape)),
            None if low is None else self.augmentation.draw(jax.random.fold_in(augment_key, 1), (n, *low)),
            jax.random.fold_in(key, 2) if self.config.biggan.dropout > 0 else None,
        )

    def features(self, table: ClassTable, instances: Array | None) -> Array | None:
        """Features ``[N, d]`` of instances ``[N]``, split over devices as all that is a batch's."""
        return None if instances is None else self.batch(instance_features(table.instances, instances))
