"""CIFAR10-LT: 12,406 images of 10 classes, 5000 of "airplane" down to 50 of "truck", 32 px.

Prepare:   python -m noisytwins_jax.data.prepare cifar10_lt --resolution=32 --data_dir=data   [--source=cifar-10-binary.tar.gz]
Command:   python -m noisytwins_jax.main --config=configs/cifar10_lt.py[:<method>][,smoke]
Hardware:  published on two GPUs. Groups of 32 images allow up to four devices (eight with mbstd_group_size=16).
Result:    not run yet by this project. Published (NoisyTwins, CVPR 2023, Table 2 and Sections 5.2 and 6):

| method | FID | FID_CLIP | iFID_CLIP | precision | recall |
|---|---|---|---|---|---|
| diffaug | 31.73 | 6.27 | 11.59 | .63 | .35 |
| d2dce | 19.97 | 4.77 | 11.35 | .73 | .42 |
| gsr | 22.10 | 5.54 | 9.94 | .70 | .29 |
| noise | 28.90 | 5.26 | 10.65 | .71 | .38 |
| noisytwins | 17.74 | 3.55 | 7.24 | .70 | .51 |
| ada | 32.08 | not reported | not reported | not reported | not reported |
| ada_noisytwins | 23.02 | not reported | not reported | not reported | not reported |
| simclr | 26.23 | not reported | not reported | not reported | not reported |

Not reported: sg2, contrastive, transitional, transitional_noisytwins, utlo, content_style, relativistic, r3gan, and the BigGAN
methods.

Protocol:  50,000 generated images, 5000 of each class, against the 10,000 test images; the checkpoint with the lowest FID
of those saved every 256 kimg (``--config.evaluation.interval_kimg=256``).

All methods use DiffAugment except sg2 (no augmentation), gsr, content_style, ada and ada_noisytwins: the authors found gSR
better with ADA, and Content–Style was published with it.
Our choices, where nothing is published: SimCLR's weight and temperature; the schedule of Transitional-cGAN, which is that
of its own paper; NoisyTwins for BigGAN, which has no mapping network (noisytwins_jax/models/biggan/README.md). gSR for
BigGAN has its authors' numbers and acts on the weights after spectral normalisation. UTLO has the weight and the resolution
of its authors' CIFAR10-LT run. R3GAN has the constants of its own CIFAR-10 run; `relativistic` is its loss on StyleGAN2, with R1 and
R2 of R1's published weight here.
"""

import ml_collections

from noisytwins_jax.config import default_config
from noisytwins_jax.config.presets import (
    CONTENT_STYLE,
    R3GAN,
    R3GAN_ADA,
    RELATIVISTIC,
    anneal,
    biggan,
    parse_preset,
    smoke,
)

DIFFAUG = {"augment.diffaugment": "color,translation,cutout"}
ADA = {"ada.operations": "bgc", "ada.target": 0.6, "ada.kimg": 500.0, "ada.interval": 4, "ada.initial_p": 0.0}
NOISE = {"noisytwins.sigma": 0.75, "noisytwins.alpha": 0.99}
TWINS = {"noisytwins.weight": 0.01, "noisytwins.gamma": 0.05, "noisytwins.start_step": 0}
GSR = {"gsr.weight": 0.5, "gsr.alpha": 0.99, "gsr.power_iterations": 4}
TRANSITIONAL = {"transitional.weight": 1.0, "transitional.start_kimg": 2000.0, "transitional.end_kimg": 4000.0}

PRESETS = {
    "noisytwins": DIFFAUG | NOISE | TWINS,
    "sg2": {},
    "diffaug": DIFFAUG,
    "d2dce": DIFFAUG | {"d2dce.weight": 0.25, "d2dce.temperature": 0.25, "d2dce.margin": 0.98},
    "contrastive": DIFFAUG | {"contrastive.weight": 0.25, "contrastive.temperature": 0.25},
    "gsr": ADA | GSR,
    "noise": DIFFAUG | NOISE,
    "ada": ADA,
    "ada_noisytwins": ADA | NOISE | TWINS,
    "simclr": DIFFAUG | NOISE | {"simclr.weight": 0.1, "simclr.temperature": 0.5},
    "transitional": DIFFAUG | TRANSITIONAL,
    "transitional_noisytwins": DIFFAUG | TRANSITIONAL | NOISE | TWINS,
    "utlo": DIFFAUG | {"utlo.weight": 10.0, "utlo.resolution": 8},
    "content_style": ADA | CONTENT_STYLE,
    "relativistic": DIFFAUG | RELATIVISTIC | {"gradient_penalty.gamma": 0.01},
    "r3gan": R3GAN
    | anneal(20_000.0, gamma=0.05)
    | R3GAN_ADA
    | {
        "ada.anneal_kimg": 20_000.0,
        "ada.final_p": 0.55,
        "batch_size": 512,
        "ema.kimg": 5000.0,
        "total_kimg": 250_000.0,
    },
}
# The CIFAR-10 recipe of StudioGAN.
BIGGAN = (
    DIFFAUG
    | biggan(resolution=32, batch_size=64, width=96)
    | {
        "optimizer.generator_lr": 2e-4,
        "optimizer.beta1": 0.5,
        "optimizer.epsilon": 1e-6,
        "optimizer.discriminator_updates": 5,
        "orthogonal.weight": 0.0,
        "ema.start_step": 1000,
        "total_kimg": 32_000.0,  # 100,000 steps
    }
)
PRESETS |= {
    "biggan": BIGGAN,
    "biggan_gsr": BIGGAN | GSR | {"gsr.embedding": "effective"},
    "biggan_noisytwins": BIGGAN | NOISE | TWINS,
}
METHODS = tuple(PRESETS)


def get_config(preset: str = "noisytwins") -> ml_collections.ConfigDict:
    """Return the configuration of a preset: comma-separated, a method of `METHODS`, and ``smoke`` for its smoke form."""
    chosen = parse_preset(__file__, preset, METHODS, resolutions=(32,))
    config = default_config()
    config.name = chosen.name
    config.batch_size = 128
    config.total_kimg = 15_360.0  # 120,000 steps
    config.dtype = "bfloat16"  # activations; published: float32
    config.style_mixing = 0.0
    config.checkpoint_interval_kimg = 256.0

    config.data.name = "cifar10_lt"
    config.data.resolution = chosen.resolution
    config.data.preprocessing = "center-lanczos"  # as published

    config.generator.mapping_layers = 8
    config.discriminator.architecture = "orig"
    config.discriminator.mbstd_group_size = 32

    config.r1.gamma = 0.01
    config.path_length.weight = 0.0
    config.ema.kimg = 500.0
    config.ema.rampup = 0.05
    config.evaluation.protocol = "noisytwins"
    config.evaluation.extractors = "inception,clip,classifier"  # the last for class accuracy
    config.evaluation.samples_per_class = 5000

    config.update_from_flattened_dict(PRESETS[chosen.method])
    return smoke(config, num_classes=10) if chosen.smoke else config
