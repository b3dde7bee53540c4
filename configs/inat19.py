"""iNaturalist 2019: 265,213 images of 1010 species, long-tailed, 64 or 128 px.

Prepare:   python -m noisytwins_jax.data.prepare inat19 --source=<folder of the download> --data_dir=data
Command:   python -m noisytwins_jax.main --config=configs/inat19.py[:<method>][,128][,smoke]
Hardware:  published on two GPUs. Groups of 8 images allow up to 16 devices.
Result:    not run yet by this project. Published, 64 px (NoisyTwins, CVPR 2023, Table 1):

| method | FID | FID_CLIP | iFID_CLIP | precision | recall |
|---|---|---|---|---|---|
| sg2 | 19.34 | 3.33 | 38.24 | .74 | .17 |
| ada | 14.92 | 2.30 | 35.19 | .75 | .57 |
| gsr | 15.17 | 2.06 | 36.22 | .74 | .46 |
| noise | 12.87 | 1.37 | 31.43 | .81 | .63 |
| noisytwins | 11.46 | 1.14 | 31.50 | .79 | .67 |

Not reported: d2dce, contrastive, transitional, transitional_noisytwins, utlo, content_style; and every method at 128 px, for which the
authors published configurations of ada and noisytwins only.

Protocol:  50,000 generated images, 49 or 50 of each class, against the 3030 validation images; the checkpoint with the lowest
FID of those saved every 256 kimg (``--config.evaluation.interval_kimg=256``). iFID_CLIP: 5000 generated images of each class
(``--mode=evaluate --config.evaluation.samples_per_class=5000``; 5 million images: hours on an accelerator).

LeCam belongs to this data set, not to a method: it helped here only, and "we use LeCam for all experiments". So ada is
the published ADA + LeCam, and ``--config.lecam.weight=0`` removes LeCam from any method. No configuration of sg2 was
published; here it is ada without augmentation. Our choices: gSR's weight and α are those of its BigGAN on iNat19;
Transitional-cGAN's schedule and UTLO's weight and resolution are those of their authors.
"""

import ml_collections

from noisytwins_jax.config import default_config
from noisytwins_jax.config.presets import CONTENT_STYLE, biggan, parse_preset, smoke

ADA = {"ada.operations": "bgc", "ada.target": 0.6, "ada.kimg": 500.0, "ada.interval": 4, "ada.initial_p": 0.0}
NOISE = {"noisytwins.sigma": 0.1, "noisytwins.alpha": 0.0}
TWINS = {"noisytwins.weight": 0.001, "noisytwins.gamma": 0.005, "noisytwins.start_step": 25_000}
TRANSITIONAL = {"transitional.weight": 1.0, "transitional.start_kimg": 2000.0, "transitional.end_kimg": 4000.0}

PRESETS = {
    "noisytwins": ADA | NOISE | TWINS,
    "sg2": {},
    "ada": ADA,
    "gsr": ADA | {"gsr.weight": 0.01, "gsr.alpha": 0.999, "gsr.power_iterations": 4},
    "noise": ADA | NOISE,
    "d2dce": ADA | {"d2dce.weight": 0.25, "d2dce.temperature": 0.25, "d2dce.margin": 0.98},
    "contrastive": ADA | {"contrastive.weight": 0.25, "contrastive.temperature": 0.25},
    "transitional": ADA | TRANSITIONAL,
    "transitional_noisytwins": ADA | TRANSITIONAL | NOISE | TWINS,
    "utlo": ADA | {"utlo.weight": 1.0, "utlo.resolution": 8},
    "content_style": ADA | CONTENT_STYLE,
}
GSR = {"gsr.weight": 0.01, "gsr.alpha": 0.999, "gsr.power_iterations": 4, "gsr.embedding": "effective"}
DIFFAUG = {"augment.diffaugment": "color,translation,cutout"}
# Ours: no configuration behind Table 3 was published.
BIGGAN_PRESETS = {"biggan": {}, "biggan_gsr": GSR, "biggan_noisytwins": NOISE | TWINS}
METHODS = (*PRESETS, *BIGGAN_PRESETS)


def get_config(preset: str = "noisytwins") -> ml_collections.ConfigDict:
    """Return the configuration of a preset: comma-separated, a method of `METHODS`, 64 or 128 (px), ``smoke``."""
    chosen = parse_preset(__file__, preset, METHODS, resolutions=(64, 128))
    config = default_config()
    config.name = chosen.name
    config.batch_size = 128
    config.total_kimg = 23_040.0  # 180,000 steps
    config.dtype = "bfloat16"  # activations; published: float32
    config.style_mixing = 0.9
    config.checkpoint_interval_kimg = 256.0

    config.data.name = "inat19"
    config.data.resolution = chosen.resolution
    config.data.preprocessing = "center-lanczos"  # as published
    config.data.tail_below, config.data.head_above = 20, 100  # images a class: few, medium and many shots

    config.generator.mapping_layers = 2
    config.discriminator.architecture = "resnet"
    config.discriminator.mbstd_group_size = 8

    config.r1.gamma = 0.2048
    config.path_length.weight = 2.0
    config.path_length.start_step = 0
    config.lecam.weight = 0.01
    config.lecam.start_step = 0
    config.lecam.decay = 0.99
    config.ema.kimg = 20.0
    config.ema.rampup = None
    config.evaluation.protocol = "noisytwins"
    config.evaluation.samples_per_class = 50

    if chosen.method in BIGGAN_PRESETS:
        recipe = biggan(chosen.resolution, batch_size=256, width=64 if chosen.resolution == 64 else 96)
        config.update_from_flattened_dict(DIFFAUG | recipe | {"total_kimg": 76_800.0})  # 150,000 steps
    config.update_from_flattened_dict((PRESETS | BIGGAN_PRESETS)[chosen.method])
    return smoke(config, num_classes=1010) if chosen.smoke else config
