"""CIFAR100-LT in the order of UTLO: 10,847 images of 100 classes, 500 of fine label 99 down to 5 of fine label 0, 32 px.

Prepare:   python -m noisytwins_jax.data.prepare cifar100_lt --data_dir=data   [--source=cifar-100-python.tar.gz]
Command:   python -m noisytwins_jax.main --config=configs/cifar100_lt.py[:<method>][,smoke]
Hardware:  published on one GPU.
Result:    not run yet by this project. Published by the authors of Content–Style (Table 3; KID times 1000), all rows theirs:

| method | FID few | FID all | KID few | KID all |
|---|---|---|---|---|
| ada | 28.5 | 12.6 | 12.3 | 5.3 |
| gsr | 30.3 | 15.9 | 17.2 | 7.6 |
| transitional | 26.9 | 11.2 | 11.9 | 5.3 |
| noisytwins | 26.8 | 10.3 | 11.5 | 4.3 |
| utlo | 27.5 | 11.7 | 10.5 | 5.8 |
| content_style | 24.3 | 8.7 | 9.1 | 2.9 |

Not reported: noise, d2dce, contrastive, transitional_noisytwins.

Protocol:  `utlo`: 50,000 generated images at the class frequencies of the full set against all of its images, and 50,000 of
the few classes against all of theirs; every 400 kimg. Which checkpoint was reported is not known.
Few are the classes 70 to 99 (19 to 5 images); head, medium and tail are the same as its many, medium and few.

Training is that of Content–Style's released code, for every method. NoisyTwins' constants are those of CIFAR10-LT, UTLO's
those of a survey's CIFAR10-LT run; gSR's are those of CIFAR10-LT and Transitional-cGAN's schedule is that of its own paper:
the settings behind these rows of the table are not published.
"""

import ml_collections

from noisytwins_jax.config import default_config
from noisytwins_jax.config.presets import UTLO_SETS, parse_preset, smoke, utlo_methods

PRESETS = utlo_methods(
    noise={"noisytwins.sigma": 0.75, "noisytwins.alpha": 0.99},
    twins={"noisytwins.weight": 0.01, "noisytwins.gamma": 0.05},
    utlo={"utlo.weight": 10.0, "utlo.resolution": 8},
)
METHODS = tuple(PRESETS)


def get_config(preset: str = "noisytwins") -> ml_collections.ConfigDict:
    """Return the configuration of a preset: comma-separated, a method of `METHODS`, and ``smoke`` for its smoke form."""
    chosen = parse_preset(__file__, preset, METHODS, resolutions=(32,))
    config = default_config()
    config.update_from_flattened_dict(UTLO_SETS)
    config.name = chosen.name
    config.total_kimg = 100_000.0
    config.data.name = "cifar100_lt"
    config.data.resolution = chosen.resolution
    config.data.preprocessing = "center-lanczos"
    config.generator.channel_base = config.discriminator.channel_base = 32768
    config.discriminator.architecture = "orig"
    config.path_length.weight = 0.0

    config.update_from_flattened_dict(PRESETS[chosen.method])
    return smoke(config, num_classes=100) if chosen.smoke else config
