"""Petals: synthetic flowers of 20 species with a long tail, 64 px, every image's true factors known; no download.

Prepare:   python -m noisytwins_jax.data.prepare petals --data_dir=data
Command:   python -m noisytwins_jax.main --config=configs/petals.py[:<method>][,128][,1010|cpu][,smoke]
Hardware:  an accelerator. Groups of 8 images allow up to 16 devices. With ``cpu`` a core for an hour.
Result:    ``cpu`` only, in `configs/README.md`; the others are not run yet. Beside FID and the others, evaluation.json has
           how much of each factor's range (position, size, rotation, tilt, hue, background) every class covers, and the
           share of its images that belong to the class.

The training images: 500 of the first species down to 10 of the last. With ``1010`` there are as many species as in iNat19,
with ``cpu`` 100 species at 32 px; each is prepared once under its own name:

  prepare petals --name=petals_1010 --num_classes=1010
  prepare petals --name=petals_100  --num_classes=100 --resolution=32

Networks, learning rates and the twins' weights are those of iNat19 (`configs/inat19.py`), without LeCam, and with ``cpu``
Fashion-MNIST-LT's; nothing was tuned here. Images are mirrored: a mirrored flower is one of the same species, with
mirrored factors.
"""

from typing import Any

import ml_collections

from noisytwins_jax.config import default_config
from noisytwins_jax.config.presets import CONTENT_STYLE, CPU, parse_preset, smoke
from noisytwins_jax.utils.errors import UserError

ADA = {"ada.operations": "bgc", "ada.target": 0.6, "ada.kimg": 500.0, "ada.interval": 4, "ada.initial_p": 0.0}
NOISE = {"noisytwins.sigma": 0.1, "noisytwins.alpha": 0.0}
TWINS = {"noisytwins.weight": 0.001, "noisytwins.gamma": 0.005, "noisytwins.start_step": 0}
CPU_TWINS = {"noisytwins.weight": 0.01, "noisytwins.gamma": 0.05}
TRANSITIONAL = {"transitional.weight": 1.0, "transitional.start_kimg": 400.0, "transitional.end_kimg": 800.0}


def methods(twins: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the fields of every method, given those of the loss on twins."""
    return {
        "noisytwins": ADA | NOISE | twins,
        "sg2": {},
        "ada": ADA,
        "gsr": ADA | {"gsr.weight": 0.01, "gsr.alpha": 0.999, "gsr.power_iterations": 4},
        "noise": ADA | NOISE,
        "decorrelation": ADA | twins,
        "d2dce": ADA | {"d2dce.weight": 0.25, "d2dce.temperature": 0.25, "d2dce.margin": 0.98},
        "contrastive": ADA | {"contrastive.weight": 0.25, "contrastive.temperature": 0.25},
        "transitional": ADA | TRANSITIONAL,
        "transitional_noisytwins": ADA | TRANSITIONAL | NOISE | twins,
        "utlo": ADA | {"utlo.weight": 1.0, "utlo.resolution": 8},
        "content_style": ADA | CONTENT_STYLE,
    }


PRESETS, CPU_PRESETS = methods(TWINS), methods(CPU_TWINS)
METHODS = tuple(PRESETS)


def get_config(preset: str = "noisytwins") -> ml_collections.ConfigDict:
    """Return the configuration of a preset: comma-separated, a method of `METHODS`, 64 or 128 (px), 1010 or cpu, ``smoke``."""
    chosen = parse_preset(__file__, preset, METHODS, resolutions=(64, 128), sizes=("1010", "cpu"))
    config = default_config()
    config.name = chosen.name
    config.batch_size = 128
    config.total_kimg = 4000.0
    config.dtype = "bfloat16"
    config.style_mixing = 0.9
    config.checkpoint_interval_kimg = 100.0

    config.data.name = "petals"
    config.data.resolution = chosen.resolution
    config.data.preprocessing = "center-lanczos"
    config.data.tail_below = 20
    config.data.head_above = 100

    config.generator.mapping_layers = 2
    config.discriminator.architecture = "resnet"
    config.discriminator.mbstd_group_size = 8

    config.r1.gamma = 0.2048
    config.path_length.weight = 2.0
    config.ema.kimg = 20.0
    config.evaluation.samples_per_class = 200

    if chosen.size == "1010":
        config.data.name = "petals_1010"
        config.evaluation.samples_per_class = 50
    if chosen.size == "cpu":
        if chosen.resolution != 64:
            raise UserError("configs/petals.py has its form for CPUs at 32 px alone: leave the resolution out.")
        config.data.name, config.data.resolution = "petals_100", 32
        config.evaluation.protocol = "embedded"
        config.update_from_flattened_dict(CPU | CPU_PRESETS[chosen.method])
    else:
        config.update_from_flattened_dict(PRESETS[chosen.method])
    if chosen.smoke:  # flowers too, but few and small ones
        smoke(config, num_classes=20)
        config.data.name = "petals_drawn"
        config.data.options = {
            "num_classes": 20,
            "largest": 20,
            "imbalance_factor": 0.1,
            "reference_per_class": 8,
            "classifier_per_class": 16,
        }
    return config
