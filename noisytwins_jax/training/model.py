"""The two networks of a run behind one interface, so that the training step is written once for every family."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from noisytwins_jax.config import RunConfig
from noisytwins_jax.networks.stylegan2 import Discriminator, Generator

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


class Model(Protocol):
    """A generator and a discriminator; `variables` are Flax collections with ``params`` among them.

    Statistics are the other collections; methods return those that they changed, complete, and ``{}`` for none.
    """

    image_shape: tuple[int, int, int]  # height, width, channels
    z_dim: int
    class_noise_dims: tuple[int, int]  # widths of the class embeddings of generator and discriminator
    mixing_layers: int  # layers that style mixing chooses a cutoff from, 0 where there is none

    def init(self, key: Array) -> tuple[dict, dict]:
        """Fresh variables of generator and discriminator."""
        ...

    def map(self, variables: dict, draws: FakeDraws, update_stats: bool = False) -> tuple[Array, Array, PyTree]:
        """Conditioning of a batch: w ``[N, D]``, what `synthesize` takes, and the statistics after it."""
        ...

    def synthesize(
        self, variables: dict, conditioning: Array, key: Array, update_stats: bool = False
    ) -> tuple[Array, PyTree]:
        """Images ``[N, H, W, C]`` from the conditioning, and the statistics after it."""
        ...

    def discriminate(
        self, variables: dict, images: Array, labels: Array, class_noise: Array, update_stats: bool = False
    ) -> tuple[Array, PyTree]:
        """Logits ``[N]`` and the statistics after them."""
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

    def init(self, key: Array) -> tuple[dict, dict]:
        """See `Model`."""
        g_key, d_key = jax.random.split(key)
        g, d = self.generator, self.discriminator
        labels = jnp.zeros((1,), jnp.int32)
        image = jnp.zeros((1, *self.image_shape))
        return g.init(g_key, jnp.zeros((1, g.z_dim)), labels, noise_mode="const"), d.init(d_key, image, labels)

    def map(self, variables: dict, draws: FakeDraws, update_stats: bool = False) -> tuple[Array, Array, PyTree]:
        """See `Model`. Style mixing leaves w itself, the first layers' input, alone."""

        def mapping(z: Array, noise: Array, update: bool) -> tuple[Array, PyTree]:
            return self.generator.apply(
                variables, z, draws.labels, noise, update, method="map", mutable=["buffers"] if update else []
            )

        w, stats = mapping(draws.z, draws.class_noise, update_stats)
        ws = self.generator.broadcast(w)
        if draws.mixing_z is not None:
            second = self.generator.broadcast(mapping(draws.mixing_z, draws.mixing_noise, False)[0])
            ws = jnp.where(jnp.arange(ws.shape[1])[:, None] < draws.mixing_cutoff, ws, second)
        if update_stats:  # the mapping holds only part of the generator's buffers
            stats = {"buffers": {**variables["buffers"], **stats["buffers"]}}
        return w, ws, stats

    def synthesize(
        self, variables: dict, conditioning: Array, key: Array, update_stats: bool = False
    ) -> tuple[Array, PyTree]:
        """See `Model`. The synthesis network keeps no statistics."""
        del update_stats
        rngs = {"noise": key}
        return self.generator.apply(variables, conditioning, self.noise_mode, method="synthesize", rngs=rngs), {}

    def discriminate(
        self, variables: dict, images: Array, labels: Array, class_noise: Array, update_stats: bool = False
    ) -> tuple[Array, PyTree]:
        """See `Model`. The discriminator keeps no statistics."""
        del update_stats
        return self.discriminator.apply(variables, images, labels, class_noise), {}


def build_model(config: RunConfig, channels: int, num_classes: int) -> StyleGAN2Model:
    """The networks of a configuration, for images of `channels` and labels below `num_classes`."""
    g, d = config.generator, config.discriminator
    shared = {
        "resolution": config.data.resolution,
        "channels": channels,
        "num_classes": num_classes,
        "up_impl": config.up_impl,
        "dtype": jnp.dtype(config.dtype),
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
    )
    discriminator = Discriminator(
        **shared,
        channel_base=d.channel_base,
        channel_max=d.channel_max,
        architecture=d.architecture,
        mbstd_group_size=d.mbstd_group_size,
        mapping_layers=d.mapping_layers,
        conv_clamp=d.conv_clamp,
    )
    return StyleGAN2Model(generator, discriminator, g.noise_mode)
