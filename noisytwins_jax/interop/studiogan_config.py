"""The configuration file with which StudioGAN and NoisyTwins (``src/main.py -cfg``) evaluate an exported run.

It names the network's architecture and what their checks ask for; of the training, the sizes and rates that both codes
have. Widths are options of NoisyTwins' code alone: StudioGAN derives them from the resolution.
"""

from typing import Any

import yaml

from noisytwins_jax.config import RunConfig
from noisytwins_jax.models.biggan.architectures import discriminator_blocks, generator_blocks

_ABSENT = "N/A"
_LOSSES = ("logistic", "hinge", "wasserstein")  # evaluation uses none, and takes no other name


def studiogan_config(config: RunConfig, num_classes: int, channels: int) -> str:
    """Return the text of the YAML file; 0 classes for an unconditional network."""
    stylegan2 = config.network == "stylegan2"
    content = {
        "DATA": {
            "name": config.data.name,
            "img_size": config.data.resolution,
            "num_classes": max(num_classes, 1),
            "img_channels": channels,
        },
        "MODEL": _stylegan2_model(config, num_classes) if stylegan2 else _biggan_model(config),
        "LOSS": {"adv_loss": config.loss if config.loss in _LOSSES else "logistic"} | _conditioning_loss(config),
        "OPTIMIZATION": {
            "batch_size": config.batch_size,
            "g_lr": config.optimizer.generator_lr,
            "d_lr": config.optimizer.discriminator_lr,
            "beta1": config.optimizer.beta1,
            "beta2": config.optimizer.beta2,
            "d_first": not stylegan2,
            "d_updates_per_step": config.optimizer.discriminator_updates,
        },
    }
    if stylegan2:
        content["STYLEGAN"] = _stylegan2_options(config)
    return yaml.safe_dump(content, sort_keys=False)


def has_studiogan_widths(config: RunConfig) -> bool:
    """Return whether a StyleGAN2's widths are those that StudioGAN derives from the resolution."""
    resolution = config.data.resolution
    base = 32768 if resolution >= 512 else 16384
    sizes = [2**i for i in range(2, resolution.bit_length())]
    return all(
        min(part.channel_base // size, part.channel_max) == min(base // size, 512)
        for part in (config.generator, config.discriminator)
        for size in sizes
    )


def _stylegan2_model(config: RunConfig, num_classes: int) -> dict[str, Any]:
    embedding = config.d2dce.weight > 0 or config.contrastive.weight > 0
    model = {
        "backbone": "stylegan2",
        "g_cond_mtd": "cAdaIN" if num_classes else "W/O",
        "d_cond_mtd": "W/O",
        "g_act_fn": "Auto",
        "d_act_fn": "Auto",
        "z_dim": config.generator.z_dim,
        "w_dim": config.generator.w_dim,
        "g_conv_dim": _ABSENT,
        "d_conv_dim": _ABSENT,
        "apply_g_ema": True,
    }
    if embedding:
        width = min(config.discriminator.channel_base // 4, config.discriminator.channel_max)
        model |= {"d_cond_mtd": "D2DCE" if config.d2dce.weight else "2C"}
        model |= {"normalize_d_embed": True, "d_embed_dim": width}
    elif num_classes:
        model["d_cond_mtd"] = "SPD"
    return model


def _conditioning_loss(config: RunConfig) -> dict[str, float]:
    if config.d2dce.weight:
        own = config.d2dce
        return {"cond_lambda": own.weight, "m_p": own.margin, "temperature": own.temperature}
    if config.contrastive.weight:
        return {"cond_lambda": config.contrastive.weight, "temperature": config.contrastive.temperature}
    return {}


def _stylegan2_options(config: RunConfig) -> dict[str, Any]:
    options = {
        "g_reg_interval": config.path_length.interval,
        "d_reg_interval": config.r1.interval,
        "mapping_network": config.generator.mapping_layers,
        "style_mixing_p": config.style_mixing,
        "g_ema_kimg": config.ema.kimg,
        "g_ema_rampup": _ABSENT if config.ema.rampup is None else config.ema.rampup,
        "apply_pl_reg": config.path_length.weight > 0,
        "pl_weight": config.path_length.weight,
        "d_architecture": config.discriminator.architecture,
        "d_epilogue_mbstd_group_size": config.discriminator.mbstd_group_size,
    }
    if has_studiogan_widths(config):
        return options
    # NoisyTwins' code has one width for both networks.
    return options | {"channel_base": config.generator.channel_base, "channel_max": config.generator.channel_max}


def _biggan_model(config: RunConfig) -> dict[str, Any]:
    options, deep = config.biggan, config.network == "biggan_deep"
    places = {}
    for part, blocks in (("g", generator_blocks), ("d", discriminator_blocks)):
        found = blocks(config.data.resolution, deep, options.attention_resolutions)
        places[f"attn_{part}_loc"] = [i // (2 if deep else 1) + 1 for i, block in enumerate(found) if block.attention]
    model = {
        "backbone": "big_resnet_deep_legacy" if deep else "big_resnet",
        "g_cond_mtd": "cBN",
        "d_cond_mtd": "PD",
        "apply_g_sn": options.spectral_norm,
        "apply_d_sn": options.spectral_norm,
        "apply_attn": bool(places["attn_g_loc"]),
        **places,
        "z_dim": config.generator.z_dim,
        "g_shared_dim": options.embedding_dim,
        "g_conv_dim": options.generator_width,
        "d_conv_dim": options.discriminator_width,
        "apply_g_ema": True,
        "g_ema_decay": 0.5 ** (config.batch_size / (1000 * config.ema.kimg)),
        "g_ema_start": config.ema.start_step,
    }
    return model | ({"g_depth": 2, "d_depth": 2} if deep else {})
