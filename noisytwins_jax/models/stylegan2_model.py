"""`Model` of the conditional StyleGAN2 networks."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.models.model import DiscriminatorInputs, GeneratorInputs, OfItsGenerator, between
from noisytwins_jax.models.stylegan2 import Discriminator, Generator, shrink, truncate

Array = jax.Array
PyTree = Any


@dataclass(frozen=True)
class StyleGAN2Model(OfItsGenerator):
    """`Model` of the conditional StyleGAN2 networks."""

    generator: Generator
    discriminator: Discriminator
    noise_mode: str = "random"  # of per-pixel noise

    w_is_truncated: ClassVar[bool] = True
    instance_features: ClassVar[int] = 0
    standing_statistics: ClassVar[bool] = False

    @property
    def class_noise_dims(self) -> tuple[int, int]:
        """See `Model`."""
        return (self.generator.w_dim, self.discriminator.embedding_dim)

    @property
    def mixing_layers(self) -> int:
        """See `Model`."""
        return self.generator.num_ws

    @property
    def low_shape(self) -> tuple[int, int, int] | None:
        """See `Model`."""
        low = self.generator.low_resolution
        return (low, low, self.generator.channels) if low else None

    @property
    def parameters_without_r1(self) -> tuple[tuple[str, ...], ...]:
        """See `Model`."""
        return self.discriminator.parameters_without_r1

    def init(self, key: Array) -> tuple[dict, dict]:
        """See `Model`."""
        g_key, d_key = jax.random.split(key)
        g, d = self.generator, self.discriminator
        labels = jnp.zeros((1,), jnp.int32)
        image = jnp.zeros((1, *self.image_shape))
        return (
            g.init(g_key, jnp.zeros((1, g.z_dim)), labels, noise_mode="const"),
            d.init(d_key, image, labels, low_images=self.low_images(image)),
        )

    def map(self, variables: dict, draws: GeneratorInputs, update_stats: bool = False) -> tuple[Array, Array, PyTree]:
        """See `Model`. Style mixing leaves w itself, the first layers' input, alone."""

        def styles(z: Array, noise: Array, update: bool) -> tuple[tuple[Array, Array], PyTree]:
            return self.generator.apply(
                variables, z, draws.labels, noise, update, method="styles", mutable=["buffers"] if update else []
            )

        (w, ws), stats = styles(draws.z, draws.class_noise, update_stats)
        if draws.mixing_z is not None:
            (_, second), _ = styles(draws.mixing_z, draws.mixing_noise, False)
            ws = jnp.where(jnp.arange(ws.shape[1])[:, None] < draws.mixing_cutoff, ws, second)
        if update_stats:  # the mapping holds only part of the generator's buffers
            stats = {"buffers": {**variables["buffers"], **stats["buffers"]}}
        return w, ws, stats

    def synthesize(
        self, variables: dict, conditioning: Array, key: Array, update_stats: bool = False
    ) -> tuple[Array, Array | None, PyTree]:
        """See `Model`. The synthesis network keeps no statistics."""
        del update_stats
        rngs = {"noise": key}
        return *self.generator.apply(variables, conditioning, self.noise_mode, method="synthesize_both", rngs=rngs), {}

    def low_images(self, images: Array) -> Array | None:
        """See `Model`."""
        return None if self.low_shape is None else shrink(images, self.low_shape[0])

    def discriminate(
        self, variables: dict, inputs: DiscriminatorInputs, update_stats: bool = False
    ) -> tuple[DiscriminatorOutput, PyTree]:
        """See `Model`. The discriminator keeps no statistics, and drops nothing."""
        del update_stats
        return self.discriminator.apply(
            variables, inputs.images, inputs.labels, inputs.class_noise, inputs.low_images
        ), {}

    def discriminate_both(
        self, variables: dict, real: DiscriminatorInputs, fake: DiscriminatorInputs
    ) -> tuple[DiscriminatorOutput, DiscriminatorOutput, PyTree]:
        """See `Model`. One pass over both: only minibatch-std groups look across images, and they stay as they are."""
        group = self.discriminator.mbstd_group_size
        if group > real.labels.shape[0]:  # each kind is a group, and smaller than a group of both
            passes = [self.discriminate(variables, inputs, update_stats=True)[0] for inputs in (real, fake)]
            return *passes, {}
        both, stats = self.discriminate(variables, _alternate(real, fake, group), update_stats=True)
        return *_separate(both, group), stats

    def latent_w(self, variables: dict, z: Array, labels: Array, instances: None = None) -> Array:
        """See `Model`: the mapping network's output."""
        del instances
        return self.generator.apply(variables, z, labels, method="map")

    def sample(
        self,
        variables: dict,
        z: Array,
        labels: Array,
        key: Array,
        psi: Array | None = None,
        instances: None = None,
    ) -> tuple[Array, Array]:
        """See `Model`."""
        del instances
        w, ws = self.generator.apply(variables, z, labels, method="styles")
        if psi is not None:
            w = truncate(w, variables["buffers"]["mapping"]["w_avg"], psi)
        return self._images(variables, ws, key, psi), w

    def sample_between(
        self,
        variables: dict,
        z: Array,
        labels: Array,
        t: Array,
        key: Array,
        psi: Array | None = None,
        instances: None = None,
    ) -> Array:
        """See `Model`. The line is in W."""
        del instances
        (_, first), (_, second) = (self.generator.apply(variables, z, labels[:, i], method="styles") for i in (0, 1))
        return self._images(variables, between(first, second, t), key, psi)

    def with_transition(self, stats: dict, t: Array) -> dict:
        """See `Model`: replaces ``buffers/mapping/transition`` where the generator has it."""
        mapping = stats["buffers"]["mapping"]
        if "transition" not in mapping:
            return stats
        mapping = {**mapping, "transition": jnp.asarray(t, mapping["transition"].dtype)}
        return {**stats, "buffers": {**stats["buffers"], "mapping": mapping}}

    def _images(self, variables: dict, ws: Array, key: Array, psi: Array | None) -> Array:
        """Images of each layer's w ``[N, num_ws, w_dim]``, truncated by `psi` unless it is None."""
        if psi is not None:
            ws = truncate(ws, variables["buffers"]["mapping"]["w_avg"], psi)
        return self.generator.apply(variables, ws, self.noise_mode, method="synthesize", rngs={"noise": key})


def _alternate(first: PyTree, second: PyTree, group: int) -> PyTree:
    """Arrays of ``[N, …]``, two and two as one of ``[2N, …]``: `group` rows of the first, as many of the second, and so on.

    Where a device has whole groups of either, it has the same rows after as before.
    """

    def one(a: Array, b: Array) -> Array:
        groups = (a.shape[0] // group, group, *a.shape[1:])
        return jnp.stack([a.reshape(groups), b.reshape(groups)], axis=1).reshape(-1, *a.shape[1:])

    return jax.tree.map(one, first, second)


def _separate(both: PyTree, group: int) -> tuple[PyTree, PyTree]:
    """Undoes `_alternate`."""

    def half(i: int) -> PyTree:
        return jax.tree.map(lambda x: x.reshape(-1, 2, group, *x.shape[1:])[:, i].reshape(-1, *x.shape[1:]), both)

    return half(0), half(1)
