"""Construction of the networks of a configuration."""

import jax.numpy as jnp

from noisytwins_jax.config import RunConfig
from noisytwins_jax.metrics.extractors.registry import feature_dim
from noisytwins_jax.models import biggan, r3gan, stylegan2
from noisytwins_jax.models.biggan_model import BigGANModel
from noisytwins_jax.models.fir import resolve_up_impl
from noisytwins_jax.models.model import Model
from noisytwins_jax.models.r3gan_model import R3GANModel
from noisytwins_jax.models.stylegan2_model import StyleGAN2Model


def build_model(config: RunConfig, channels: int, num_classes: int) -> Model:
    """Build the networks of a configuration, for images with `channels` channels and labels below `num_classes`.

    Raises:
      UserError: the resolution is not supported, or fields do not fit together.
    """
    build = {"stylegan2": _stylegan2, "r3gan": _r3gan}.get(config.network, _biggan)
    return build(config, channels, num_classes)


def _stylegan2(config: RunConfig, channels: int, num_classes: int) -> StyleGAN2Model:
    g, d = config.generator, config.discriminator
    transitional = config.transitional.weight > 0
    content_style = config.content_style.weight > 0
    embedding = config.d2dce.weight > 0 or config.contrastive.weight > 0
    shared = {
        "resolution": config.data.resolution,
        "channels": channels,
        "num_classes": num_classes,
        "up_impl": resolve_up_impl(config.up_impl),
        "dtype": jnp.dtype(config.dtype),
        "remat": config.remat,
        "low_resolution": config.utlo.resolution if config.utlo.weight > 0 else 0,
    }
    generator = stylegan2.Generator(
        **shared,
        z_dim=g.z_dim,
        w_dim=g.w_dim,
        mapping_layers=g.mapping_layers,
        channel_base=g.channel_base,
        channel_max=g.channel_max,
        architecture=g.architecture,
        conv_clamp=g.conv_clamp,
        w_avg_decay=g.w_avg_decay,
        conditioning="additive" if transitional else "content_style" if content_style else "concat",
    )
    discriminator = stylegan2.Discriminator(
        **shared,
        channel_base=d.channel_base,
        channel_max=d.channel_max,
        architecture=d.architecture,
        mbstd_group_size=d.mbstd_group_size,
        mapping_layers=d.mapping_layers,
        conv_clamp=d.conv_clamp,
        heads="transitional" if transitional else "embedding" if embedding else "projection",
        noise_after_normalization=content_style,
    )
    return StyleGAN2Model(generator, discriminator, g.noise_mode)


def _biggan(config: RunConfig, channels: int, num_classes: int) -> BigGANModel:
    options, instances = config.biggan, config.instances
    with_instances = instances.neighbours > 0
    shared = {
        "resolution": config.data.resolution,
        "channels": channels,
        "num_classes": num_classes,
        "up_impl": resolve_up_impl(config.up_impl),
        "deep": config.network == "biggan_deep",
        "attention": options.attention_resolutions,
        "spectral_norm": options.spectral_norm,
        "sn_epsilon": options.spectral_norm_epsilon,
        "dtype": jnp.dtype(config.dtype),
        "remat": config.remat,
    }
    generator = biggan.Generator(
        **shared,
        z_dim=config.generator.z_dim,
        width=options.generator_width,
        embedding_dim=options.embedding_dim,
        shared_embedding=options.shared_embedding,
        instance_dim=instances.embedding_dim if with_instances else 0,
        skip_z=options.skip_z,
        wide_rgb=options.wide_rgb,
        bn_epsilon=options.batch_norm_epsilon,
        output_bn_epsilon=options.output_batch_norm_epsilon,
        bn_decay=options.batch_norm_decay,
    )
    discriminator = biggan.Discriminator(
        **shared, width=options.discriminator_width, instances=with_instances, dropout=options.dropout
    )
    return BigGANModel(generator, discriminator, feature_dim(instances.extractor) if with_instances else 0)


def _r3gan(config: RunConfig, channels: int, num_classes: int) -> R3GANModel:
    options = config.r3gan
    widths = r3gan.default_widths(config.data.resolution, options.width)
    shared = {
        "resolution": config.data.resolution,
        "channels": channels,
        "num_classes": num_classes,
        "widths": widths,
        "cardinality": tuple(max(options.cardinality * width // options.width, 1) for width in widths),
        "half_resolutions": options.half_resolutions,
        "up_impl": resolve_up_impl(config.up_impl),
        "dtype": jnp.dtype(config.dtype),
        "remat": config.remat,
    }
    return R3GANModel(r3gan.Generator(**shared, z_dim=config.generator.z_dim), r3gan.Discriminator(**shared))
