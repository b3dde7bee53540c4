"""The R3GAN networks as a `Model`."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from typing_extensions import override

from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.models.model import DiscriminatorInputs, GeneratorInputs, Model, lerp
from noisytwins_jax.models.r3gan import Discriminator, Generator
from noisytwins_jax.models.rows import Rows

Array = jax.Array
PyTree = Any


@dataclass(frozen=True)
class R3GANModel(Model):
    """The R3GAN networks, which have no mapping network.

    What NoisyTwins takes as w is our choice, as for BigGAN: the generator's input, which is z and the (noisy) class
    embedding. Both networks' class embeddings take noise. Neither network has statistics.
    """

    generator: Generator
    discriminator: Discriminator

    @property
    @override
    def class_noise_dims(self) -> tuple[int, int]:
        return (self.generator.embedding_dim, self.discriminator.embedding_dim)

    @override
    def init(self, key: Array) -> tuple[dict, dict]:
        g_key, d_key = jax.random.split(key)
        labels = jnp.zeros((1,), jnp.int32)
        return (
            self.generator.init(g_key, jnp.zeros((1, self.z_dim)), labels),
            self.discriminator.init(d_key, jnp.zeros((1, *self.image_shape)), labels),
        )

    @override
    def map(self, variables: dict, inputs: GeneratorInputs, update_stats: bool = False) -> tuple[Array, Array, PyTree]:
        del update_stats
        w = self.generator.apply(variables, inputs.z, inputs.labels, inputs.class_noise, method="map")
        return w, w, {}

    @override
    def synthesize(
        self, variables: dict, conditioning: Array, key: Array, update_stats: bool = False, rows: Rows | None = None
    ) -> tuple[Array, None, PyTree]:
        del key, update_stats, rows
        return self.generator.apply(variables, conditioning, method="synthesize"), None, {}

    @override
    def discriminate(
        self, variables: dict, inputs: DiscriminatorInputs, update_stats: bool = False
    ) -> tuple[DiscriminatorOutput, PyTree]:
        del update_stats
        return self.discriminator.apply(variables, inputs.images, inputs.labels, inputs.class_noise), {}

    @override
    def discriminate_both(
        self, variables: dict, real: DiscriminatorInputs, fake: DiscriminatorInputs
    ) -> tuple[DiscriminatorOutput, DiscriminatorOutput, PyTree]:
        n = real.labels.shape[0]

        # One pass over both, as no operation mixes images. Alternating rows keeps every row on its device.
        def alternate(a: Array, b: Array) -> Array:
            return jnp.stack([a, b], axis=1).reshape(2 * n, *a.shape[1:])

        # No other inputs, which may be keys.
        real, fake = (DiscriminatorInputs(x.images, x.labels, x.class_noise) for x in (real, fake))
        output, stats = self.discriminate(variables, jax.tree.map(alternate, real, fake))
        logits = output.logits.reshape(n, 2)
        return DiscriminatorOutput(logits[:, 0]), DiscriminatorOutput(logits[:, 1]), stats

    @override
    def latent_w(self, variables: dict, z: Array, labels: Array, instances: Array | None = None) -> Array:
        del instances
        return self.generator.apply(variables, z, labels, method="map")

    @override
    def sample(
        self,
        variables: dict,
        z: Array,
        labels: Array,
        key: Array,
        psi: Array | None = None,
        instances: Array | None = None,
    ) -> tuple[Array, Array]:
        del key, psi, instances
        w = self.latent_w(variables, z, labels)
        return self._images(variables, w), w

    @override
    def sample_between(
        self,
        variables: dict,
        z: Array,
        labels: Array,
        t: Array,
        key: Array,
        psi: Array | None = None,
        instances: Array | None = None,
    ) -> Array:
        del key, psi, instances
        first, second = (self.latent_w(variables, z, labels[:, i]) for i in (0, 1))
        return self._images(variables, lerp(first, second, t))

    def _images(self, variables: dict, w: Array) -> Array:
        return self.generator.apply(variables, w, method="synthesize")
