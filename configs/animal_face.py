"""AnimalFace (LHI), few-shot: 20 kinds of animals, without "Natural", 64 px.

Prepare:   python -m noisytwins_jax.data.prepare animal_face --data_dir=data   [--source=<folder>]
Command:   python -m noisytwins_jax.main --config=configs/animal_face.py[:<method>][,smoke]
Hardware:  published on two GPUs. Groups of 32 images allow up to four devices (eight with mbstd_group_size=16).
Result:    not run yet by this project. Published (NoisyTwins, CVPR 2023, Table 4):

| method | FID | iFID_CLIP |
|---|---|---|
| sg2 | 94.09 | 29.94 |
| ada | 20.25 | 11.12 |
| noise | 18.78 | 10.42 |
| noisytwins | 17.27 | 10.03 |
| transitional | 20.53 | not reported |
| transitional_noisytwins | 16.15 | not reported |

Not reported: FID_CLIP, precision and recall of any method; gsr, d2dce, contrastive, utlo, content_style.

Protocol:  50,000 generated images, 2500 of each class, against the training images; the checkpoint with the lowest FID of
those saved every 256 kimg (``--config.evaluation.interval_kimg=256``). iFID_CLIP: 5000 generated images of each class
(``--mode=evaluate --config.evaluation.samples_per_class=5000``).

The two transitional methods were published from the code of Transitional-cGAN with settings that are not released; here
they differ from ada and noisytwins in the method only, with that paper's schedule. No configuration of sg2 was
published; here it is ada without augmentation. Our choices: gSR's weight and α as on CIFAR10-LT; UTLO's weight
and resolution are those of its authors.
"""

import ml_collections

from noisytwins_jax.config import default_config
from noisytwins_jax.config.presets import CONTENT_STYLE, parse_preset, smoke

ADA = {"ada.operations": "bgc", "ada.target": 0.6, "ada.kimg": 500.0, "ada.interval": 4, "ada.initial_p": 0.0}
NOISE = {"noisytwins.sigma": 0.5, "noisytwins.alpha": 0.0}
TWINS = {"noisytwins.weight": 0.001, "noisytwins.gamma": 0.05, "noisytwins.start_step": 0}
TRANSITIONAL = {"transitional.weight": 1.0, "transitional.start_kimg": 2000.0, "transitional.end_kimg": 4000.0}

PRESETS = {
    "noisytwins": ADA | NOISE | TWINS,
    "sg2": {},
    "ada": ADA,
    "noise": ADA | NOISE,
    "transitional": ADA | TRANSITIONAL,
    "transitional_noisytwins": ADA | TRANSITIONAL | NOISE | TWINS,
    "gsr": ADA | {"gsr.weight": 0.5, "gsr.alpha": 0.99, "gsr.power_iterations": 4},
    "d2dce": ADA | {"d2dce.weight": 0.25, "d2dce.temperature": 0.25, "d2dce.margin": 0.98},
    "contrastive": ADA | {"contrastive.weight": 0.25, "contrastive.temperature": 0.25},
    "utlo": ADA | {"utlo.weight": 1.0, "utlo.resolution": 8},
    "content_style": ADA | CONTENT_STYLE,
}
METHODS = tuple(PRESETS)


def get_config(preset: str = "noisytwins") -> ml_collections.ConfigDict:
    """Return the configuration of a preset: comma-separated, a method of `METHODS`, and ``smoke`` for its smoke form."""
    chosen = parse_preset(__file__, preset, METHODS, resolutions=(64,))
    config = default_config()
    config.name = chosen.name
    config.batch_size = 128
    config.total_kimg = 12_800.0  # 100,000 steps
    config.dtype = "bfloat16"  # activations; published: float32
    config.style_mixing = 0.0
    config.checkpoint_interval_kimg = 256.0

    config.data.name = "animal_face"
    config.data.resolution = chosen.resolution
    config.data.preprocessing = "center-lanczos"  # as published

    config.generator.mapping_layers = 2
    config.discriminator.architecture = "resnet"
    config.discriminator.mbstd_group_size = 32

    config.r1.gamma = 0.01
    config.path_length.weight = 2.0
    config.path_length.start_step = 0
    config.ema.kimg = 500.0
    config.ema.rampup = 0.05
    config.evaluation.protocol = "noisytwins"
    config.evaluation.extractors = "inception,clip,classifier"  # the last for class accuracy
    config.evaluation.samples_per_class = 2500

    config.update_from_flattened_dict(PRESETS[chosen.method])
    return smoke(config, num_classes=20) if chosen.smoke else config
