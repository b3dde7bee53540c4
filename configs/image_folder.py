"""Your own pictures: a folder a class, prepared once; StyleGAN2 with NoisyTwins, any resolution.

Prepare:   python -m noisytwins_jax.data.prepare image_folder --name=birds --source=/pictures --data_dir=data --resolution=64
Command:   python -m noisytwins_jax.main --config=configs/image_folder.py[:<method>][,<px>][,smoke] --config.data.name=birds
Hardware:  an accelerator. Groups of 8 images allow up to 16 devices.

What depends on the data is chosen from them: batch, R1's weight, length, ADA's speed or none, the moving average, σ and λ of
the twins, and on accelerators the division of a batch that is too large for the memory. The table with every rule and its
source is printed (`noisytwins_jax/data/recipe.py`); a field that is given stays, and --config.auto=False takes the numbers
below: networks, rates and the twins' weights of iNat19 (`configs/inat19.py`), without LeCam. Say yourself --config.data.mirror=False
where a mirrored picture means something else.
"""

import ml_collections

from noisytwins_jax.config import default_config
from noisytwins_jax.config.presets import CONTENT_STYLE, parse_preset, smoke

ADA = {"ada.operations": "bgc", "ada.target": 0.6, "ada.kimg": 500.0, "ada.interval": 4, "ada.initial_p": 0.0}
NOISE = {"noisytwins.sigma": 0.1, "noisytwins.alpha": 0.0}
TWINS = {"noisytwins.weight": 0.001, "noisytwins.gamma": 0.005, "noisytwins.start_step": 0}
TRANSITIONAL = {"transitional.weight": 1.0, "transitional.start_kimg": 2000.0, "transitional.end_kimg": 4000.0}

PRESETS = {
    "noisytwins": ADA | NOISE | TWINS,
    "sg2": {},
    "ada": ADA,
    "gsr": ADA | {"gsr.weight": 0.01, "gsr.alpha": 0.999, "gsr.power_iterations": 4},
    "noise": ADA | NOISE,
    "decorrelation": ADA | TWINS,
    "d2dce": ADA | {"d2dce.weight": 0.25, "d2dce.temperature": 0.25, "d2dce.margin": 0.98},
    "contrastive": ADA | {"contrastive.weight": 0.25, "contrastive.temperature": 0.25},
    "transitional": ADA | TRANSITIONAL,
    "transitional_noisytwins": ADA | TRANSITIONAL | NOISE | TWINS,
    "utlo": ADA | {"utlo.weight": 1.0, "utlo.resolution": 8},
    "content_style": ADA | CONTENT_STYLE,
}
METHODS = tuple(PRESETS)


def get_config(preset: str = "noisytwins") -> ml_collections.ConfigDict:
    """Return the configuration of a preset: comma-separated, a method of `METHODS`, 32, 64, 128 or 256 (px), ``smoke``."""
    chosen = parse_preset(__file__, preset, METHODS, resolutions=(64, 32, 128, 256))
    config = default_config()
    config.name = chosen.name
    config.auto = True
    config.batch_size = 128
    config.total_kimg = 10_000.0
    config.dtype = "bfloat16"
    config.style_mixing = 0.9
    config.checkpoint_interval_kimg = 256.0

    config.data.name = "image_folder"
    config.data.resolution = chosen.resolution
    config.data.tail_below = 20
    config.data.head_above = 100

    config.generator.mapping_layers = 2
    config.discriminator.architecture = "resnet"
    config.discriminator.mbstd_group_size = 8

    config.r1.gamma = 0.2048 * (chosen.resolution / 64) ** 2  # StyleGAN2-ADA's rule: with the number of pixels
    config.path_length.weight = 2.0
    config.ema.kimg = 20.0
    config.evaluation.protocol = "embedded"  # needs no weight files; better, when they are there: tf1
    config.evaluation.samples_per_class = 50

    config.update_from_flattened_dict(PRESETS[chosen.method])
    return smoke(config, num_classes=20) if chosen.smoke else config
