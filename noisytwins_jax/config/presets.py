"""Presets of the files in ``configs/``: the options after the colon, BigGAN's recipe, and the smoke form of a run.

``--config=configs/inat19.py:noisytwins,128,smoke`` names a method, a resolution and the smoke form, in any order; each
is optional: the first method and the first resolution of the file are its defaults.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from noisytwins_jax.models.biggan.architectures import default_z_dim
from noisytwins_jax.utils.errors import UserError, did_you_mean

# BigGAN's recipe (Brock et al., ICLR 2019, appendix C), with StyleGAN2's regularisers off.
BIGGAN = {
    "network": "biggan",
    "loss": "hinge",
    "style_mixing": 0.0,
    "discriminator.mbstd_group_size": 1,
    "r1.gamma": 0.0,
    "r1.interval": 1,  # 1: no correction of Adam's constants
    "path_length.weight": 0.0,
    "path_length.interval": 1,
    "optimizer.generator_lr": 5e-5,
    "optimizer.discriminator_lr": 2e-4,
    "optimizer.beta1": 0.0,
    "optimizer.beta2": 0.999,
    "optimizer.discriminator_updates": 2,
    "orthogonal.weight": 1e-4,
    "ema.rampup": None,
    "ema.start_step": 20_000,
    "w_ratio_interval_kimg": 0.0,  # there is no mapping network
}


def ema_kimg(decay: float, batch_size: int) -> float:
    """Compute the half-life, in thousands of images, of a moving average with this decay per step."""
    return batch_size * math.log(0.5) / math.log(decay) / 1000


def biggan(resolution: int, batch_size: int, width: int, ema_decay: float = 0.9999) -> dict[str, Any]:
    """Build the fields of a BigGAN run: the recipe, and those that depend on size. A step has ``2 · batch_size`` images."""
    return BIGGAN | {
        "batch_size": batch_size,
        "generator.z_dim": default_z_dim(resolution, deep=False),
        "biggan.generator_width": width,
        "biggan.discriminator_width": width,
        "ema.kimg": ema_kimg(ema_decay, batch_size),
    }


# Content–Style: the constants of its released code that concern the method.
CONTENT_STYLE = {
    "content_style.weight": 0.1,
    "content_style.sigma": 0.5,
    "fake_labels": "empirical",
    "generator.mapping_layers": 2,
    "path_length.weight_twice": False,
}


# The relativistic loss of pairs with R1 and R2 in every update (R3GAN); γ is the data set's.
RELATIVISTIC = {
    "loss": "relativistic",
    "fake_labels": "paired",
    "r1.gamma": 0.0,
    "r1.interval": 1,
    "path_length.weight": 0.0,
    "path_length.interval": 1,
}
# R3GAN's networks and the part of its recipe that all data sets share.
R3GAN = RELATIVISTIC | {
    "network": "r3gan",
    "style_mixing": 0.0,
    "generator.z_dim": 64,
    "discriminator.mbstd_group_size": 1,
    "optimizer.generator_lr": 2e-4,
    "optimizer.discriminator_lr": 2e-4,
    "optimizer.final_lr": 0.25,
    "optimizer.beta2": 0.9,
    "optimizer.final_beta2": 0.99,
    "ema.rampup": None,
    "w_ratio_interval_kimg": 0.0,  # there is no mapping network
}
R3GAN_ADA = {"ada.operations": "bg,color,cutout", "ada.color_strength": 0.5, "ada.interval": 4, "ada.initial_p": 0.0}


def anneal(kimg: float, gamma: float) -> dict[str, float]:
    """Return R3GAN's schedules over the first `kimg`, at whose end γ is a tenth of `gamma`."""
    schedules = {f"{group}.anneal_kimg": kimg for group in ("optimizer", "ema", "gradient_penalty")}
    return schedules | {"gradient_penalty.gamma": gamma, "gradient_penalty.final_gamma": gamma / 10}


# StyleGAN2 at 32 px for a core of a CPU, which trains on 200 images a second; chosen on Fashion-MNIST-LT.
CPU = {
    "batch_size": 32,
    "total_kimg": 300.0,
    "dtype": "float32",
    "log_interval_kimg": 5.0,
    "checkpoint_interval_kimg": 50.0,
    "path_length.weight": 0.0,
    "optimizer.generator_lr": 0.005,
    "optimizer.discriminator_lr": 0.005,
    "generator.z_dim": 64,
    "generator.w_dim": 64,
    "generator.mapping_layers": 4,
    "discriminator.mapping_layers": 4,
    # 16 channels at 32 px, 32 at 16 px, 64 below
    "generator.channel_base": 512,
    "generator.channel_max": 64,
    "discriminator.channel_base": 512,
    "discriminator.channel_max": 64,
    "r1.gamma": 0.1,
    "ema.kimg": 20.0,
}


# The training settings that the long-tailed sets of UTLO share in the released code of Content–Style (training/train.py).
UTLO_SETS = {
    "batch_size": 64,
    "dtype": "bfloat16",
    "style_mixing": 0.0,
    "fake_labels": "empirical",
    "generator.mapping_layers": 2,
    "generator.w_avg_decay": 0.995,
    "generator.conv_clamp": 256.0,
    "discriminator.conv_clamp": 256.0,
    "discriminator.mbstd_group_size": 32,
    "r1.gamma": 0.01,
    "path_length.weight_twice": False,
    "ema.kimg": 500.0,
    "ema.rampup": 0.05,
    "checkpoint_interval_kimg": 400.0,
    "evaluation.protocol": "utlo",
    "evaluation.samples_per_class": 50,
    "evaluation.interval_kimg": 400.0,
}


def utlo_methods(noise: dict[str, Any], twins: dict[str, Any], utlo: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the fields of the methods on a long-tailed set of UTLO, all with ADA: those of NoisyTwins and UTLO differ by set."""
    ada = {"ada.operations": "bgc", "ada.target": 0.6, "ada.kimg": 500.0, "ada.interval": 4, "ada.initial_p": 0.0}
    transitional = {"transitional.weight": 1.0, "transitional.start_kimg": 2000.0, "transitional.end_kimg": 4000.0}
    return {
        "noisytwins": ada | noise | twins,
        "ada": ada,
        "gsr": ada | {"gsr.weight": 0.5, "gsr.alpha": 0.99, "gsr.power_iterations": 4},
        "noise": ada | noise,
        "d2dce": ada | {"d2dce.weight": 0.25, "d2dce.temperature": 0.25, "d2dce.margin": 0.98},
        "contrastive": ada | {"contrastive.weight": 0.25, "contrastive.temperature": 0.25},
        "transitional": ada | transitional,
        "transitional_noisytwins": ada | transitional | noise | twins,
        "utlo": ada | utlo,
        "content_style": ada | CONTENT_STYLE,
    }


class Preset(NamedTuple):
    """A row of a results table."""

    name: str  # of the run: <dataset>[_<resolution>]-<method>[-<size>][-smoke]
    method: str
    resolution: int  # pixels
    smoke: bool  # whether to shrink the run to a quick test
    size: str = ""  # of the networks or the data, where a file has several


def parse_preset(
    file: str, options: str, methods: Sequence[str], resolutions: Sequence[int], sizes: Sequence[str] = ()
) -> Preset:
    """Parse the options after the colon.

    Args:
      file: path of the configuration file, whose name is that of the data set.
      options: comma-separated.
      methods: methods of the file, the default first.
      resolutions: resolutions of the file in pixels, the default first.
      sizes: other sizes of the networks or of the data than the default.

    Raises:
      UserError: an option is unknown (the message names the nearest one), or two are of the same kind.
    """
    dataset = Path(file).stem
    valid = {
        "method": list(methods),
        "resolution": [str(r) for r in resolutions],
        "size": list(sizes),
        "form": ["smoke"],
    }
    given: dict[str, str] = {}
    for option in options.split(","):
        kind = next((kind for kind in valid if option in valid[kind]), None)
        if kind is None:
            kind = "resolution" if option.isdigit() else "method"
            others = filter(str.isdigit, sizes) if kind == "resolution" else [*sizes, "smoke"]
            nearest = did_you_mean(option, [*valid[kind], *others])
            raise UserError(f"configs/{dataset}.py has no {kind} {option!r}; {nearest}")
        if kind in given:
            raise UserError(f"configs/{dataset}.py takes one {kind}, not both {given[kind]!r} and {option!r}.")
        given[kind] = option
    method = given.get("method", methods[0])
    resolution = int(given.get("resolution", resolutions[0]))
    pixels = "" if resolution == resolutions[0] else f"_{resolution}"
    suffix = "".join(f"-{given[kind]}" for kind in ("size", "form") if kind in given)
    return Preset(f"{dataset}{pixels}-{method}{suffix}", method, resolution, "form" in given, given.get("size", ""))


def smoke(
    config: ml_collections.ConfigDict, num_classes: int, resolution: int = 16, channels: int = 3
) -> ml_collections.ConfigDict:
    """Shrink a run so that it takes seconds on a CPU: four steps of tiny networks on random images.

    The number of classes and everything that the method switches on stay, and act within the first two steps: schedules
    begin at once, and the probability of adaptive augmentation starts above 0.
    """
    per_class = max(4, 400 // num_classes)
    config.update(auto=False, batch_size=8, total_kimg=0.032, log_interval_kimg=0.008, checkpoint_interval_kimg=0.032)
    config.w_ratio_interval_kimg = 0.016
    config.dtype = "float32"  # bfloat16 is slow on CPUs
    config.data.update(name="synthetic", resolution=resolution)
    config.data.options = {
        "num_classes": num_classes,
        "num_images": per_class * num_classes,
        "imbalance_factor": 1 / per_class,
        "channels": channels,
    }
    config.generator.update(z_dim=16, w_dim=16, channel_base=128, channel_max=8)
    config.generator.mapping_layers = min(config.generator.mapping_layers, 2)
    config.discriminator.update(channel_base=128, channel_max=8, mapping_layers=2)
    config.discriminator.mbstd_group_size = min(config.discriminator.mbstd_group_size, 2)
    config.path_length.start_step = config.noisytwins.start_step = config.lecam.start_step = 0
    if config.network == "r3gan":
        config.r3gan.update(width=8, cardinality=2)
        for group in ("optimizer", "ema", "gradient_penalty", "ada"):
            config[group].anneal_kimg = min(config[group].anneal_kimg, 0.016)
    elif config.network != "stylegan2":
        config.generator.z_dim = 12
        config.biggan.update(generator_width=4, discriminator_width=4, embedding_dim=8)
        config.optimizer.discriminator_updates = 1
        config.ema.start_step = 0
    if config.instances.neighbours:
        config.instances.update(neighbours=3, extractor="classifier", embedding_dim=8)
    if config.spectra.interval:
        config.spectra.interval = 1
    config.transitional.update(start_kimg=0.0, end_kimg=0.016)
    config.utlo.resolution = min(config.utlo.resolution, resolution // 2)
    config.ada.update(initial_p=0.5, interval=1)
    config.evaluation.update(protocol="embedded", extractors="", samples_per_class=8)
    config.evaluation.update(standing_passes=4, standing_batch=8)
    return config
