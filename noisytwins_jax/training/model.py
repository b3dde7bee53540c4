"""The two networks of a run behind one interface, so that the training step is written once for every family."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from noisytwins_jax.config import RunConfig
from noisytwins_jax.networks.discrimination import Discrimination
from noisytwins_jax.networks.stylegan2 import Discriminator, Generator, shrink

Array = jax.Array
PyTree = Any


class FakeDraws(NamedTuple):
    """What a batch of generated images is made from."""

    z: Array  # [N, z_dim]
    labels: Array  # [N] int32
    class_noise: Array  # [N, class_noise_dims[0]]
    mixing_z: Array | None  # [N, z_dim], second latents of style mixing
    mixing_noise: Array | None  # class noise of the second latents
    mixing_cutoff: Array | None  # int, the first layer that takes the second latents
    key: Array  # per-pixel noise


class DiscriminatorInputs(NamedTuple):
    """What a discriminator looks at."""

    images: Array  # [N, H, W, C], after augmentation
    labels: Array  # [N] int32
    class_noise: Array  # [N, class_noise_dims[1]]
    low_images: Array | None = None  # [N, h, w, C], where there are low logits


class Model(Protocol):
    """A generator and a discriminator; `variables` are Flax collections with ``params`` among them.

    Statistics are the other collections; methods return those that they changed, complete, and ``{}`` for none.
    """

    image_shape: tuple[int, int, int]  # height, width, channels
    z_dim: int
    class_noise_dims: tuple[int, int]  # widths of the class embeddings of generator and discriminator
    mixing_layers: int  # layers that style mixing chooses a cutoff from, 0 where there is none
    low_shape: tuple[int, int, int] | None  # of the low-resolution images that have logits of their own (UTLO)
    # Paths, or their beginnings, of the discriminator's parameters that R1 does not involve; see `Discriminator`.
    parameters_without_r1: tuple[tuple[str, ...], ...]

    def init(self, key: Array) -> tuple[dict, dict]:
        """Fresh variables of generator and discriminator."""
        ...

    def map(self, variables: dict, draws: FakeDraws, update_stats: bool = False) -> tuple[Array, Array, PyTree]:
        """Conditioning of a batch: w ``[N, D]``, what `synthesize` takes, and the statistics after it."""
        ...

    def synthesize(
        self, variables: dict, conditioning: Array, key: Array, update_stats: bool = False
    ) -> tuple[Array, Array | None, PyTree]:
        """Images ``[N, H, W, C]``, low-resolution images ``[N, *low_shape]`` if any, and the statistics after it."""
        ...

    def low_images(self, images: Array) -> Array | None:
        """The low-resolution versions ``[N, *low_shape]`` of real images ``[N, H, W, C]``, if any."""
        ...

    def discriminate(
        self,
        variables: dict,
        images: Array,
        labels: Array,
        class_noise: Array,
        low_images: Array | None = None,
        update_stats: bool = False,
    ) -> tuple[Discrimination, PyTree]:
        """What the discriminator says of N images, and its statistics after it; low logits where `low_images` are."""
        ...

    def discriminate_both(
        self, variables: dict, real: DiscriminatorInputs, fake: DiscriminatorInputs
    ) -> tuple[Discrimination, Discrimination, PyTree]:
        """What the discriminator says of N real and of N generated images, and its statistics after it.

        As if passed one after the other, each kind on its own: whatever is a matter of the batch must not mix them.
        """
        ...

    def with_transition(self, stats: dict, t: Array) -> dict:
        """The generator's statistics with the transition to the class (Transitional-cGAN) at t, where there is one."""
        ...


class StyleGAN2Model:
    """`Model` of the conditional StyleGAN2 networks."""

    def __init__(self, generator: Generator, discriminator: Discriminator, noise_mode: str = "random"):
        self.generator = generator
        self.discriminator = discriminator
        self.noise_mode = noise_mode
        self.image_shape = (generator.resolution, generator.resolution, generator.channels)
        self.z_dim = generator.z_dim
        self.class_noise_dims = (generator.w_dim, discriminator.embedding_dim)
        self.mixing_layers = generator.num_ws
        low = generator.low_resolution
        self.low_shape = (low, low, generator.channels) if low else None
        self.parameters_without_r1 = discriminator.parameters_without_r1

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

    def map(self, variables: dict, draws: FakeDraws, update_stats: bool = False) -> tuple[Array, Array, PyTree]:
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
        self,
        variables: dict,
        images: Array,
        labels: Array,
        class_noise: Array,
        low_images: Array | None = None,
        update_stats: bool = False,
    ) -> tuple[Discrimination, PyTree]:
        """See `Model`. The discriminator keeps no statistics."""
        del update_stats
        return self.discriminator.apply(variables, images, labels, class_noise, low_images), {}

    def discriminate_both(
        self, variables: dict, real: DiscriminatorInputs, fake: DiscriminatorInputs
    ) -> tuple[Discrimination, Discrimination, PyTree]:
        """See `Model`. One pass over both: only minibatch-std groups look across images, and they stay as they are."""
        group = self.discriminator.mbstd_group_size
        if group > real.labels.shape[0]:  # each kind is a group, and smaller than a group of both
            passes = [self.discriminate(variables, *inputs, update_stats=True)[0] for inputs in (real, fake)]
            return *passes, {}
        both, stats = self.discriminate(variables, *_alternate(real, fake, group), update_stats=True)
        return *_separate(both, group), stats

    def with_transition(self, stats: dict, t: Array) -> dict:
        """See `Model`: replaces ``buffers/mapping/transition`` where the generator has it."""
        mapping = stats["buffers"]["mapping"]
        if "transition" not in mapping:
            return stats
        mapping = {**mapping, "transition": jnp.asarray(t, mapping["transition"].dtype)}
        return {**stats, "buffers": {**stats["buffers"], "mapping": mapping}}


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


def build_model(config: RunConfig, channels: int, num_classes: int) -> StyleGAN2Model:
    """The networks of a configuration, for images of `channels` and labels below `num_classes`."""
    g, d = config.generator, config.discriminator
    transitional = config.transitional.weight > 0
    embedding = config.d2dce.weight > 0 or config.contrastive.weight > 0
    shared = {
        "resolution": config.data.resolution,
        "channels": channels,
        "num_classes": num_classes,
        "up_impl": config.up_impl,
        "dtype": jnp.dtype(config.dtype),
        "low_resolution": config.utlo.resolution if config.utlo.weight > 0 else 0,
    }
    generator = Generator(
        **shared,
        z_dim=g.z_dim,
        w_dim=g.w_dim,
        mapping_layers=g.mapping_layers,
        channel_base=g.channel_base,
        channel_max=g.channel_max,
        architecture=g.architecture,
        conv_clamp=g.conv_clamp,
        w_avg_decay=g.w_avg_decay,
        conditioning="additive" if transitional else "concat",
    )
    discriminator = Discriminator(
        **shared,
        channel_base=d.channel_base,
        channel_max=d.channel_max,
        architecture=d.architecture,
        mbstd_group_size=d.mbstd_group_size,
        mapping_layers=d.mapping_layers,
        conv_clamp=d.conv_clamp,
        heads="transitional" if transitional else "embedding" if embedding else "projection",
    )
    return StyleGAN2Model(generator, discriminator, g.noise_mode)
