"""Fashion-MNIST-LT: 14,886 grey images of clothes, 6000 of "T-shirt/top" down to 60 of "Ankle boot", 32 px.

Prepare:   python -m noisytwins_jax.data.prepare fashion_mnist_lt --data_dir=data   [--source=<folder of the IDX files>]
Command:   python -m noisytwins_jax.main --config=configs/fashion_mnist_lt.py[:<method>][,smoke]
Hardware:  an accelerator: the networks and the schedule are those of CIFAR10-LT.
Result:    not run yet by this project, and no results of generators on this set were found.

Protocol:  a classifier of all 60,000 training images gives the features (``embedded``); 1000 generated images of each class
against the 10,000 test images, of which none is in training.

Images are not mirrored: shoes point to the left. DiffAugment has no colour, as clothes are grey on black. NoisyTwins, gSR,
UTLO, BigGAN and the others have their constants of CIFAR10-LT.
"""

import ml_collections

from noisytwins_jax.config import default_config
from noisytwins_jax.config.presets import CONTENT_STYLE, biggan, parse_preset, smoke

DIFFAUG = {"augment.diffaugment": "translation,cutout"}
NOISE = {"noisytwins.sigma": 0.75, "noisytwins.alpha": 0.99}
TWINS = {"noisytwins.weight": 0.01, "noisytwins.gamma": 0.05}
GSR = {"gsr.weight": 0.5, "gsr.alpha": 0.99, "gsr.power_iterations": 4}
TRANSITIONAL = {"transitional.weight": 1.0, "transitional.start_kimg": 2000.0, "transitional.end_kimg": 4000.0}
BIGGAN = biggan(resolution=32, batch_size=64, width=96) | {
    "optimizer.generator_lr": 2e-4,
    "optimizer.beta1": 0.5,
    "optimizer.epsilon": 1e-6,
    "optimizer.discriminator_updates": 5,
    "orthogonal.weight": 0.0,
    "ema.start_step": 1000,
    "total_kimg": 32_000.0,  # 100,000 steps
}
PRESETS = {
    "noisytwins": DIFFAUG | NOISE | TWINS,
    "baseline": DIFFAUG,
    "noise": DIFFAUG | NOISE,
    "decorrelation": DIFFAUG | TWINS,  # the twins' loss without noise: the ablation
    "gsr": DIFFAUG | GSR,
    "d2dce": DIFFAUG | {"d2dce.weight": 0.25, "d2dce.temperature": 0.25, "d2dce.margin": 0.98},
    "contrastive": DIFFAUG | {"contrastive.weight": 0.25, "contrastive.temperature": 0.25},
    "simclr": DIFFAUG | NOISE | {"simclr.weight": 0.1, "simclr.temperature": 0.5},
    "transitional": DIFFAUG | TRANSITIONAL,
    "transitional_noisytwins": DIFFAUG | TRANSITIONAL | NOISE | TWINS,
    "utlo": DIFFAUG | {"utlo.weight": 10.0, "utlo.resolution": 8},
    "content_style": DIFFAUG | CONTENT_STYLE,
    "biggan": DIFFAUG | BIGGAN,
    "biggan_gsr": DIFFAUG | BIGGAN | GSR | {"gsr.embedding": "effective"},
    "biggan_noisytwins": DIFFAUG | BIGGAN | NOISE | TWINS,
}
METHODS = tuple(PRESETS)


def get_config(preset: str = "noisytwins") -> ml_collections.ConfigDict:
    """Return the configuration of a preset: comma-separated, a method of `METHODS`, and ``smoke`` for its smoke form."""
    chosen = parse_preset(__file__, preset, METHODS, resolutions=(32,))
    config = default_config()
    config.name = chosen.name
    config.batch_size = 128
    config.total_kimg = 15_360.0  # 120,000 steps
    config.dtype = "bfloat16"  # activations
    config.style_mixing = 0.0
    config.checkpoint_interval_kimg = 256.0

    config.data.name = "fashion_mnist_lt"
    config.data.resolution = chosen.resolution
    config.data.mirror = False

    config.generator.mapping_layers = 8
    config.discriminator.architecture = "orig"
    config.discriminator.mbstd_group_size = 32

    config.r1.gamma = 0.01
    config.path_length.weight = 0.0
    config.ema.kimg = 500.0
    config.ema.rampup = 0.05
    config.evaluation.protocol = "embedded"
    config.evaluation.samples_per_class = 1000

    config.update_from_flattened_dict(PRESETS[chosen.method])
    return smoke(config, num_classes=10, channels=1) if chosen.smoke else config
