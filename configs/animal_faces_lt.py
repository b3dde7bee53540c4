"""AnimalFaces-LT: AnimalFace with a long tail, 20 classes, 389 images of the most frequent one down to 15, 64 px.

Prepare:   python -m noisytwins_jax.data.prepare animal_faces_lt --data_dir=data   [--source=AnimalFace.zip]
Command:   python -m noisytwins_jax.main --config=configs/animal_faces_lt.py[:<method>][,smoke]
Hardware:  published on one GPU.
Result:    not run yet by this project. Published by the authors of Content–Style (Table 2; KID times 1000), all rows theirs:

| method | FID few | FID all | KID few | KID all |
|---|---|---|---|---|
| ada | 123.4 | 79.1 | 54.7 | 30.8 |
| gsr | 128.9 | 87.5 | 32.6 | 23.3 |
| transitional | 69.6 | 35.5 | 23.0 | 11.8 |
| noisytwins | 55.7 | 34.2 | 21.2 | 13.6 |
| utlo | 50.7 | 29.4 | 19.1 | 12.1 |
| content_style | 42.4 | 25.3 | 10.8 | 7.4 |

Not reported: noise, d2dce, contrastive, transitional_noisytwins.

Protocol:  `utlo`: 50,000 generated images at the class frequencies of the full set against all of its images, and 50,000 of
the few classes against all of theirs; every 400 kimg. Which checkpoint was reported is not known.
Few are the classes 10 to 19. (configs/animal_face.py is NoisyTwins' set: all images, no tail.)

Training is that of Content–Style's released code, for every method. NoisyTwins' constants are those of its own AnimalFace
run, UTLO's its authors'; gSR's are those of CIFAR10-LT and Transitional-cGAN's schedule is that of its own paper: the
settings behind these rows of the table are not published.
"""

import ml_collections

from noisytwins_jax.config import default_config
from noisytwins_jax.config.presets import UTLO_SETS, parse_preset, smoke, utlo_methods

PRESETS = utlo_methods(
    noise={"noisytwins.sigma": 0.5, "noisytwins.alpha": 0.0},
    twins={"noisytwins.weight": 0.001, "noisytwins.gamma": 0.05},
    utlo={"utlo.weight": 1.0, "utlo.resolution": 8},
)
METHODS = tuple(PRESETS)


def get_config(preset: str = "noisytwins") -> ml_collections.ConfigDict:
    """Return the configuration of a preset: comma-separated, a method of `METHODS`, and ``smoke`` for its smoke form."""
    chosen = parse_preset(__file__, preset, METHODS, resolutions=(64,))
    config = default_config()
    config.update_from_flattened_dict(UTLO_SETS)
    config.name = chosen.name
    config.total_kimg = 25_000.0
    config.data.name = "animal_faces_lt"
    config.data.resolution = chosen.resolution
    config.data.preprocessing = "center-lanczos"
    config.path_length.weight = 2.0
    config.path_length.start_step = 0

    config.update_from_flattened_dict(PRESETS[chosen.method])
    return smoke(config, num_classes=20) if chosen.smoke else config
