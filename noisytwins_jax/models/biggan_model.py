"""`Model` of the BigGAN and BigGAN-deep networks."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from noisytwins_jax.models.biggan import Discriminator, Generator
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.models.model import DiscriminatorInputs, GeneratorInputs, OfItsGenerator, between

Array = jax.Array
PyTree = Any

_STATS = ("spectral", "batch_stats")


@dataclass(frozen=True)
class BigGANModel(OfItsGenerator):
    """`Model` of BigGAN, which has no mapping network.

    Its W, of which NoisyTwins makes twins, is ours and not of a paper: the vectors that condition the blocks, which are
    the (noisy) shared class embedding, the instance's where there is one, and the parts of z beside it, each once.
    """

    generator: Generator
    discriminator: Discriminator
    instance_features: int = 0  # d, where both networks take instances

    mixing_layers: ClassVar[int] = 0
    low_shape: ClassVar[None] = None
    parameters_without_r1: ClassVar[tuple] = ()
    w_is_truncated: ClassVar[bool] = False
    standing_statistics: ClassVar[bool] = True

    @property
    def class_noise_dims(self) -> tuple[int, int]:
        """See `Model`: noise is on the generator's embedding alone."""
        generator = self.generator
        return (generator.embedding_dim if generator.shared_embedding else generator.num_classes, 0)

    def init(self, key: Array) -> tuple[dict, dict]:
        """See `Model`."""
        g_key, d_key = jax.random.split(key)
        labels = jnp.zeros((1,), jnp.int32)
        instances = {"instances": jnp.zeros((1, self.instance_features))} if self.instance_features else {}
        return (
            self.generator.init(g_key, jnp.zeros((1, self.z_dim)), labels, **instances),
            self.discriminator.init(d_key, jnp.zeros((1, *self.image_shape)), labels, **instances),
        )

    def map(
        self, variables: dict, draws: GeneratorInputs, update_stats: bool = False
    ) -> tuple[Array, tuple[Array, Array], PyTree]:
        """See `Model`. The conditioning is z and what `Generator.embed` makes; no statistics change."""
        del update_stats
        embedding = self._embed(variables, draws.labels, draws.instances, draws.class_noise)
        return self._w(draws.z, embedding), (draws.z, embedding), {}

    def synthesize(
        self, variables: dict, conditioning: tuple[Array, Array], key: Array, update_stats: bool = False
    ) -> tuple[Array, None, PyTree]:
        """See `Model`. BatchNorm normalises by the moments of this batch."""
        del key
        images, stats = self.generator.apply(
            variables,
            *conditioning,
            train=True,
            update_stats=update_stats,
            method="synthesize",
            mutable=_STATS if update_stats else (),
        )
        return images, None, dict(stats)

    def low_images(self, images: Array) -> None:
        """See `Model`."""
        del images

    def discriminate(
        self, variables: dict, inputs: DiscriminatorInputs, update_stats: bool = False
    ) -> tuple[DiscriminatorOutput, PyTree]:
        """See `Model`. The class embedding takes no noise."""
        dropout = inputs.dropout
        said, stats = self.discriminator.apply(
            variables,
            inputs.images,
            inputs.labels,
            update_stats=update_stats,
            train=dropout is not None,
            instances=inputs.instances,
            rngs=None if dropout is None else {"dropout": dropout},
            mutable=["spectral"] if update_stats else (),
        )
        return said, dict(stats)

    def discriminate_both(
        self, variables: dict, real: DiscriminatorInputs, fake: DiscriminatorInputs
    ) -> tuple[DiscriminatorOutput, DiscriminatorOutput, PyTree]:
        """See `Model`. One pass over both, in which nothing looks across images."""
        n = real.labels.shape[0]

        def alternate(a: Array, b: Array) -> Array:  # a device that has some rows of both has as many after
            return jnp.stack([a, b], axis=1).reshape(2 * n, *a.shape[1:])

        dropout = real.dropout
        both = jax.tree.map(alternate, real._replace(dropout=None), fake._replace(dropout=None))
        both, stats = self.discriminate(variables, both._replace(dropout=dropout), update_stats=True)
        real_said, fake_said = (jax.tree.map(lambda x, i=i: x.reshape(n, 2, *x.shape[1:])[:, i], both) for i in (0, 1))
        return real_said, fake_said, stats

    def latent_w(self, variables: dict, z: Array, labels: Array, instances: Array | None = None) -> Array:
        """See `Model`."""
        return self._w(z, self._embed(variables, labels, instances))

    def sample(
        self,
        variables: dict,
        z: Array,
        labels: Array,
        key: Array,
        psi: Array | None = None,
        instances: Array | None = None,
    ) -> tuple[Array, Array]:
        """See `Model`. There is no W to be truncated, nor per-pixel noise."""
        del key, psi
        embedding = self._embed(variables, labels, instances)
        return self.generator.apply(variables, z, embedding, method="synthesize"), self._w(z, embedding)

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
        """See `Model`. The line is between the embeddings, of classes and of instances."""
        del key, psi
        first, second = (
            self._embed(variables, labels[:, i], None if instances is None else instances[:, i]) for i in (0, 1)
        )
        return self.generator.apply(variables, z, between(first, second, t), method="synthesize")

    def batch_statistics(self, variables: dict, z: Array, labels: Array, instances: Array | None = None) -> PyTree:
        """See `Model`: ``{"batch_stats": …}`` of every BatchNorm, float32. Weights are as in `sample`."""
        embedding = self._embed(variables, labels, instances)
        # With this decay, running moments are the last batch's.
        _, stats = self.generator.clone(bn_decay=0.0).apply(
            variables, z, embedding, train=True, update_stats=True, method="synthesize", mutable=["batch_stats"]
        )
        return {"batch_stats": stats["batch_stats"]}

    def with_transition(self, stats: dict, t: Array) -> dict:
        """See `Model`: there is none."""
        del t
        return stats

    def _embed(
        self, variables: dict, labels: Array, instances: Array | None, class_noise: Array | None = None
    ) -> Array:
        return self.generator.apply(variables, labels, class_noise, instances, method="embed")

    def _w(self, z: Array, embedding: Array) -> Array:
        """``[N, D]``: what conditions the blocks."""
        return jnp.concatenate([embedding, self.generator.apply({}, z, method="block_latents")], axis=-1)
