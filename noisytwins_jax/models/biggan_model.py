"""The BigGAN and BigGAN-deep networks as a `Model`."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from typing_extensions import override

from noisytwins_jax.models.biggan import Discriminator, Generator
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.models.model import DiscriminatorInputs, GeneratorInputs, Model, lerp
from noisytwins_jax.models.rows import Rows

Array = jax.Array
PyTree = Any

_STATS = ("spectral", "batch_stats")


@dataclass(frozen=True)
class BigGANModel(Model):
    """BigGAN or BigGAN-deep, which have no mapping network.

    What NoisyTwins takes as w is our choice, not that of a paper: the vectors that condition the blocks, which are the
    (noisy) shared class embedding, the instance embedding if any, and the chunks of z that go with them, each once.
    """

    generator: Generator
    discriminator: Discriminator
    instance_features: int = 0  # where both networks are conditioned on instances

    needs_standing_statistics: ClassVar[bool] = True

    @property
    @override
    def class_noise_dims(self) -> tuple[int, int]:
        generator = self.generator  # the discriminator's class embedding takes no noise
        return (generator.embedding_dim if generator.shared_embedding else generator.num_classes, 0)

    @override
    def init(self, key: Array) -> tuple[dict, dict]:
        g_key, d_key = jax.random.split(key)
        labels = jnp.zeros((1,), jnp.int32)
        instances = {"instances": jnp.zeros((1, self.instance_features))} if self.instance_features else {}
        return (
            self.generator.init(g_key, jnp.zeros((1, self.z_dim)), labels, **instances),
            self.discriminator.init(d_key, jnp.zeros((1, *self.image_shape)), labels, **instances),
        )

    @override
    def map(
        self, variables: dict, inputs: GeneratorInputs, update_stats: bool = False
    ) -> tuple[Array, tuple[Array, Array], PyTree]:
        del update_stats
        embedding = self._embed(variables, inputs.labels, inputs.instances, inputs.class_noise)
        return self._w(inputs.z, embedding), (inputs.z, embedding), {}

    @override
    def synthesize(
        self,
        variables: dict,
        conditioning: tuple[Array, Array],
        key: Array,
        update_stats: bool = False,
        rows: Rows | None = None,
    ) -> tuple[Array, None, PyTree]:
        del key, rows
        images, stats = self.generator.apply(
            variables,
            *conditioning,
            train=True,
            update_stats=update_stats,
            method="synthesize",
            mutable=_STATS if update_stats else (),
        )
        return images, None, dict(stats)

    @override
    def discriminate(
        self, variables: dict, inputs: DiscriminatorInputs, update_stats: bool = False
    ) -> tuple[DiscriminatorOutput, PyTree]:
        dropout = inputs.dropout
        output, stats = self.discriminator.apply(
            variables,
            inputs.images,
            inputs.labels,
            update_stats=update_stats,
            train=dropout is not None,
            instances=inputs.instances,
            rngs=None if dropout is None else {"dropout": dropout},
            mutable=["spectral"] if update_stats else (),
        )
        return output, dict(stats)

    @override
    def discriminate_both(
        self, variables: dict, real: DiscriminatorInputs, fake: DiscriminatorInputs
    ) -> tuple[DiscriminatorOutput, DiscriminatorOutput, PyTree]:
        n = real.labels.shape[0]

        # One pass over both, as no operation mixes images. Alternating rows keeps every row on its device.
        def alternate(a: Array, b: Array) -> Array:
            return jnp.stack([a, b], axis=1).reshape(2 * n, *a.shape[1:])

        dropout = real.dropout
        both = jax.tree.map(alternate, real._replace(dropout=None), fake._replace(dropout=None))
        both, stats = self.discriminate(variables, both._replace(dropout=dropout), update_stats=True)
        real_output, fake_output = (
            jax.tree.map(lambda x, i=i: x.reshape(n, 2, *x.shape[1:])[:, i], both) for i in (0, 1)
        )
        return real_output, fake_output, stats

    @override
    def latent_w(self, variables: dict, z: Array, labels: Array, instances: Array | None = None) -> Array:
        return self._w(z, self._embed(variables, labels, instances))

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
        del key, psi
        embedding = self._embed(variables, labels, instances)
        return self.generator.apply(variables, z, embedding, method="synthesize"), self._w(z, embedding)

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
        del key, psi
        first, second = (
            self._embed(variables, labels[:, i], None if instances is None else instances[:, i]) for i in (0, 1)
        )
        return self.generator.apply(variables, z, lerp(first, second, t), method="synthesize")

    @override
    def batch_statistics(self, variables: dict, z: Array, labels: Array, instances: Array | None = None) -> PyTree:
        embedding = self._embed(variables, labels, instances)
        # With decay 0 the running statistics are those of the last batch.
        _, stats = self.generator.clone(bn_decay=0.0).apply(
            variables, z, embedding, train=True, update_stats=True, method="synthesize", mutable=["batch_stats"]
        )
        return {"batch_stats": stats["batch_stats"]}

    def _embed(
        self, variables: dict, labels: Array, instances: Array | None, class_noise: Array | None = None
    ) -> Array:
        return self.generator.apply(variables, labels, class_noise, instances, method="embed")

    def _w(self, z: Array, embedding: Array) -> Array:
        """Return w ``[N, D]``, the conditioning of the blocks."""
        return jnp.concatenate([embedding, self.generator.apply({}, z, method="block_latents")], axis=-1)
