"""Flowers-LT: Oxford Flowers 102 with a long tail, 258 images of the most frequent class down to 2, 128 px.

Prepare:   python -m noisytwins_jax.data.prepare flowers_lt --data_dir=data   [--source=<folder of 102flowers.tgz and imagelabels.mat>]
Command:   python -m noisytwins_jax.main --config=configs/flowers_lt.py[:<method>][,smoke]
Hardware:  published on one GPU.
Result:    not run yet by this project. Published by the authors of Content–Style (Table 2; KID times 1000), all rows theirs:

| method | FID few | FID all | KID few | KID all |
|---|---|---|---|---|
| ada | 19.0 | 12.3 | 3.3 | 2.7 |
| gsr | 25.9 | 16.2 | 7.4 | 5.7 |
| transitional | 24.7 | 14.1 | 7.2 | 4.3 |
| noisytwins | 20.6 | 11.5 | 5.1 | 3.5 |
| utlo | 17.3 | 10.1 | 3.7 | 2.7 |
| content_style | 16.7 | 10.1 | 2.5 | 2.4 |

Not reported: noise, d2dce, contrastive, transitional_noisytwins.

Protocol:  `utlo`: 50,000 generated images at the class frequencies of the full set against all of its images, and 50,000 of
the few classes against all of theirs; every 400 kimg. Which checkpoint was reported is not known.
Few are the classes 50 to 101 (26 to 2 images).

Training is that of Content–Style's released code, for every method. NoisyTwins' constants are those of a survey's run,
UTLO's too; gSR's are those of CIFAR10-LT and Transitional-cGAN's schedule is that of its own paper: the settings behind
these rows of the table are not published.
The released script sets cfg auto and then cifar, so cifar wins and is taken here: the discriminator orig and no path length.
"""

import ml_collections

from noisytwins_jax.config import default_config
from noisytwins_jax.config.presets import UTLO_SETS, parse_preset, smoke, utlo_methods

PRESETS = utlo_methods(
    noise={"noisytwins.sigma": 0.1, "noisytwins.alpha": 0.0},
    twins={"noisytwins.weight": 0.001, "noisytwins.gamma": 0.005},
    utlo={"utlo.weight": 10.0, "utlo.resolution": 16},
)
METHODS = tuple(PRESETS)


def get_config(preset: str = "noisytwins") -> ml_collections.ConfigDict:
    """Return the configuration of a preset: comma-separated, a method of `METHODS`, and ``smoke`` for its smoke form."""
    chosen = parse_preset(__file__, preset, METHODS, resolutions=(128,))
    config = default_config()
    config.update_from_flattened_dict(UTLO_SETS)
    config.name = chosen.name
    config.total_kimg = 100_000.0
    config.data.name = "flowers_lt"
    config.data.resolution = chosen.resolution
    config.data.preprocessing = "center-lanczos"
    config.generator.channel_base = config.discriminator.channel_base = 32768
    config.discriminator.architecture = "orig"
    config.path_length.weight = 0.0

    config.update_from_flattened_dict(PRESETS[chosen.method])
    return smoke(config, num_classes=102) if chosen.smoke else config
