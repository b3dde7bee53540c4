"""The conditional StyleGAN2 networks as a `Model`."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from typing_extensions import override

from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.models.model import DiscriminatorInputs, GeneratorInputs, Model, lerp
from noisytwins_jax.models.rows import Rows
from noisytwins_jax.models.stylegan2 import Discriminator, Generator, shrink, truncate

Array = jax.Array
PyTree = Any


@dataclass(frozen=True)
class StyleGAN2Model(Model):
    """The conditional StyleGAN2 networks."""

    generator: Generator
    discriminator: Discriminator
    noise_mode: str = "random"  # of per-pixel noise
    scales_class_tables: ClassVar[bool] = True

    @property
    @override
    def class_noise_dims(self) -> tuple[int, int]:
        return (self.generator.w_dim, self.discriminator.embedding_dim)

    @property
    @override
    def mixing_layers(self) -> int:
        return self.generator.num_ws

    @property
    @override
    def low_shape(self) -> tuple[int, int, int] | None:
        low = self.generator.low_resolution
        return (low, low, self.generator.channels) if low else None

    @property
    @override
    def parameters_without_r1(self) -> tuple[tuple[str, ...], ...]:
        return self.discriminator.parameters_without_r1

    @override
    def init(self, key: Array) -> tuple[dict, dict]:
        g_key, d_key = jax.random.split(key)
        g, d = self.generator, self.discriminator
        labels = jnp.zeros((1,), jnp.int32)
        image = jnp.zeros((1, *self.image_shape))
        return (
            g.init(g_key, jnp.zeros((1, g.z_dim)), labels, noise_mode="const"),
            d.init(d_key, image, labels, low_images=self.low_images(image)),
        )

    @override
    def map(self, variables: dict, inputs: GeneratorInputs, update_stats: bool = False) -> tuple[Array, Array, PyTree]:
        def styles(z: Array, noise: Array, update: bool) -> tuple[tuple[Array, Array], PyTree]:
            return self.generator.apply(
                variables, z, inputs.labels, noise, update, method="styles", mutable=["buffers"] if update else []
            )

        (w, ws), stats = styles(inputs.z, inputs.class_noise, update_stats)
        if inputs.mixing_z is not None:
            (_, second), _ = styles(inputs.mixing_z, inputs.mixing_noise, False)
            # Style mixing leaves w itself, the input of the first layers, unchanged.
            ws = jnp.where(jnp.arange(ws.shape[1])[:, None] < inputs.mixing_cutoff, ws, second)
        if update_stats:  # the mapping holds only part of the generator's buffers
            stats = {"buffers": {**variables["buffers"], **stats["buffers"]}}
        return w, ws, stats

    @override
    def style(self, variables: dict, inputs: GeneratorInputs) -> Array | None:
        if self.generator.conditioning != "content_style":
            return None
        return self.generator.apply(variables, inputs.z, inputs.labels, inputs.class_noise, method="style")

    @override
    def synthesize(
        self, variables: dict, conditioning: Array, key: Array, update_stats: bool = False, rows: Rows | None = None
    ) -> tuple[Array, Array | None, PyTree]:
        del update_stats
        images = self.generator.apply(
            variables, conditioning, self.noise_mode, rows, method="synthesize_both", rngs={"noise": key}
        )
        return *images, {}

    @override
    def low_images(self, images: Array) -> Array | None:
        return None if self.low_shape is None else shrink(images, self.low_shape[0])

    @override
    def discriminate(
        self, variables: dict, inputs: DiscriminatorInputs, update_stats: bool = False
    ) -> tuple[DiscriminatorOutput, PyTree]:
        del update_stats
        return self.discriminator.apply(
            variables, inputs.images, inputs.labels, inputs.class_noise, inputs.low_images
        ), {}

    @override
    def discriminate_both(
        self, variables: dict, real: DiscriminatorInputs, fake: DiscriminatorInputs
    ) -> tuple[DiscriminatorOutput, DiscriminatorOutput, PyTree]:
        group = self.discriminator.mbstd_group_size
        if group > real.labels.shape[0]:  # each kind is one group, smaller than a group of both would be
            passes = [self.discriminate(variables, inputs, update_stats=True)[0] for inputs in (real, fake)]
            return *passes, {}
        # One pass over both: only minibatch-stddev groups mix images, and alternating whole groups preserves them.
        both, stats = self.discriminate(variables, _alternate(real, fake, group), update_stats=True)
        return *_separate(both, group), stats

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
        del instances
        w, ws = self.generator.apply(variables, z, labels, method="styles")
        if psi is not None:
            w = truncate(w, variables["buffers"]["mapping"]["w_avg"], psi)
        return self._images(variables, ws, key, psi), w

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
        del instances
        (_, first), (_, second) = (self.generator.apply(variables, z, labels[:, i], method="styles") for i in (0, 1))
        return self._images(variables, lerp(first, second, t), key, psi)

    @override
    def with_transition(self, stats: dict, t: Array) -> dict:
        mapping = stats["buffers"]["mapping"]
        if "transition" not in mapping:
            return stats
        mapping = {**mapping, "transition": jnp.asarray(t, mapping["transition"].dtype)}
        return {**stats, "buffers": {**stats["buffers"], "mapping": mapping}}

    def _images(self, variables: dict, ws: Array, key: Array, psi: Array | None) -> Array:
        """Generate images from each layer's w ``[N, num_ws, w_dim]``, truncated by `psi` unless it is None."""
        if psi is not None:
            ws = truncate(ws, variables["buffers"]["mapping"]["w_avg"], psi)
        return self.generator.apply(variables, ws, self.noise_mode, method="synthesize", rngs={"noise": key})


def _alternate(first: PyTree, second: PyTree, group: int) -> PyTree:
    """Interleave arrays ``[N, …]`` of two trees to ``[2N, …]``: `group` rows of each in turn.

    If every device holds whole groups of both, no row moves to another device.
    """

    def interleave(a: Array, b: Array) -> Array:
        groups = (a.shape[0] // group, group, *a.shape[1:])
        return jnp.stack([a.reshape(groups), b.reshape(groups)], axis=1).reshape(-1, *a.shape[1:])

    return jax.tree.map(interleave, first, second)


def _separate(both: PyTree, group: int) -> tuple[PyTree, PyTree]:
    """Undo `_alternate`."""

    def half(i: int) -> PyTree:
        return jax.tree.map(lambda x: x.reshape(-1, 2, group, *x.shape[1:])[:, i].reshape(-1, *x.shape[1:]), both)

    return half(0), half(1)
