"""The random inputs of a training step: latents, labels, class noise and keys of augmentation.

Every function is pure and takes its key. What it samples from, beside the configuration, is the class table.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.instance_table import InstanceTable
from noisytwins_jax.losses import noisytwins
from noisytwins_jax.losses.base import Progress
from noisytwins_jax.models.instance_sampling import instance_features, sample_instances_and_labels
from noisytwins_jax.models.latents import annealed_std
from noisytwins_jax.models.model import DiscriminatorInputs, GeneratorInputs, Model
from noisytwins_jax.utils.sharding import Layout

Array = jax.Array
PyTree = Any


class ClassTable(NamedTuple):
    """What the step knows of each class, ``[C]``, and of each training image where images are conditioned on them.

    It is an argument of the compiled programs, so that one program serves every method.
    """

    noise_std: np.ndarray  # class noise
    fake_logits: np.ndarray  # log-probability, up to a constant, of each class among generated images
    counts: np.ndarray  # training images
    instances: InstanceTable | None = None


def class_table(config: RunConfig, counts: np.ndarray, instances: InstanceTable | None = None) -> ClassTable:
    """Build the class table of a training set with these class counts ``[C]`` and instances, if any."""
    noise = config.noisytwins
    std = noisytwins.class_noise_std(counts, noise.sigma, noise.alpha, noise.noise_normalization, noise.noise_scale)
    if config.content_style.active:  # its noise is on another scale
        std = np.full_like(std, config.content_style.sigma)
    logits = np.log(counts) if config.fake_labels != "uniform" else np.zeros(len(counts))
    return ClassTable(std, logits.astype(np.float32), np.asarray(counts, np.float32), instances)


class RandomInputs:
    """Samples the random inputs of a run's networks.

    Args:
      config: the run's configuration.
      model: its networks.
      layout: the mesh of the batch.
    """

    def __init__(self, config: RunConfig, model: Model, layout: Layout):
        self.config, self.model, self.layout = config, model, layout
        self.latents = config.z._replace(z_dim=model.z_dim)

    def latent_std(self, progress: Progress) -> Array | float:
        """Return the factor of z at this time of training."""
        config = self.config.latents
        if not config.anneal_kimg:
            return 1.0
        return annealed_std(progress.kimg, config.start_std, 1.0, config.anneal_kimg)

    def generator_inputs(
        self,
        key: Array,
        table: ClassTable,
        n: int,
        twins: bool = False,
        std: Array | float = 1.0,
        labels: Array | None = None,
    ) -> GeneratorInputs:
        """Sample the inputs of n generated images; with `twins`, n/2 pairs of the same z and label, laid out [a; b].

        With instances, an instance is sampled together with the label, which is that of one of its neighbours; twins
        share it. `std` is that of z (`latent_std`). Labels ``[n]``, of pairs or twins n/2, take the place of sampled ones.

        z and labels are sampled whole on every device, which costs nothing, and split afterwards: pairing twins then
        needs no communication. Class noise, mixing and per-pixel noise are sampled for each row.
        """
        layout = self.layout
        names = ("z", "label", "noise", "mix", "mix_z", "mix_noise", "pixel")
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        distinct = n // 2 if twins else n
        z = layout.replicate(self.latents.draw(keys["z"], distinct, std))
        instances = None
        if labels is not None:
            labels = layout.replicate(labels)
        elif table.instances is None:
            labels = layout.replicate(jax.random.categorical(keys["label"], table.fake_logits, shape=(distinct,)))
        else:
            instances, labels = map(
                layout.replicate, sample_instances_and_labels(keys["label"], table.instances, distinct)
            )
        if twins:
            z, labels, instances = jax.tree.map(lambda x: layout.replicate(noisytwins.twins(x)), (z, labels, instances))
        z, labels = layout.batch(z), layout.batch(labels.astype(jnp.int32))
        dim = self.model.class_noise_dims[0]
        mixing = (None, None, None)
        if self.config.style_mixing > 0 and self.model.mixing_layers > 1:
            use, where = jax.random.split(keys["mix"])
            cutoff = jax.random.randint(where, (), 1, self.model.mixing_layers)
            mixing = (
                layout.batch(self.latents.draw(keys["mix_z"], n, std)),
                noisytwins.class_noise(keys["mix_noise"], labels, table.noise_std, dim),
                jnp.where(jax.random.uniform(use) < self.config.style_mixing, cutoff, self.model.mixing_layers),
            )
        noise = noisytwins.class_noise(keys["noise"], labels, table.noise_std, dim)
        return GeneratorInputs(z, labels, noise, *mixing, keys["pixel"], self.instance_features(table, instances))

    def discriminator_inputs(
        self,
        key: Array,
        table: ClassTable,
        images: Array,
        labels: Array,
        low_images: Array | None = None,
        instances: Array | None = None,
    ) -> DiscriminatorInputs:
        """Join images ``[N, H, W, C]`` and labels ``[N]`` with what the discriminator samples for a pass over them."""
        noise_key, augment_key = jax.random.split(key)
        noise = noisytwins.class_noise(noise_key, labels, table.noise_std, self.model.class_noise_dims[1])
        dropout = jax.random.fold_in(key, 2) if self.config.biggan.dropout > 0 else None
        return DiscriminatorInputs(images, labels, noise, low_images, dropout, instances, augment_key)

    def image_noise(self, key: Array, n: int) -> Array:
        """Sample standard normal noise of the images' shape, ``[n, H, W, C]``."""
        return self.layout.batch(jax.random.normal(key, (n, *self.model.image_shape)))

    def instance_features(self, table: ClassTable, instances: Array | None) -> Array | None:
        """Return features ``[N, d]`` of instances ``[N]``, split over devices like the batch."""
        return None if instances is None else self.layout.batch(instance_features(table.instances, instances))
