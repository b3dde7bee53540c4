"""Fashion-MNIST-LT: 14,886 grey images of clothes, 6000 of "T-shirt/top" down to 60 of "Ankle boot", 32 px.

Prepare:   python -m noisytwins_jax.data.prepare fashion_mnist_lt --data_dir=data   [--source=<folder of the IDX files>]
Command:   python -m noisytwins_jax.main --config=configs/fashion_mnist_lt.py[:<method>][,cpu][,smoke]
Hardware:  an accelerator: the networks and the schedule are those of CIFAR10-LT. With ``cpu`` a core for half an hour.
Result:    with ``cpu``: configs/README.md. No results of generators on this set were found elsewhere.

Protocol:  a classifier of all 60,000 training images gives the features (``embedded``); 1000 generated images of each class
against the 10,000 test images, of which none is in training.

Images are not mirrored: shoes point to the left. DiffAugment has no colour, as clothes are grey on black. NoisyTwins, gSR,
UTLO, BigGAN and the others have their constants of CIFAR10-LT.

The form for CPUs has channels for 200 images a second of a core, and twice the published learning rate. R1's weight (of .01,
.1 and .5), the rate (of .005 and .01), σ (of .1 and the published .75 with α .99) and λ (of .01, as published, and .02, whose
rare classes borrowed a frequent one's images) were chosen on seed 0, with the baseline or with NoisyTwins. The other methods
have their published weights, Transitional-cGAN the published part of the run. BigGAN has the published form of CIFAR10
with smaller networks and five times the rates, also chosen on seed 0: with one discriminator update a step and half the
discriminator's width it drew no clothes. R3GAN has what the digits have, and DiffAugment, as ADA's flips and quarter turns
would turn shoes around; its CPU form has not been run: a core makes 30 images a second.
"""

from typing import Any

import ml_collections

from noisytwins_jax.config import default_config
from noisytwins_jax.config.presets import CONTENT_STYLE, CPU, R3GAN, RELATIVISTIC, anneal, biggan, parse_preset, smoke

Fields = dict[str, Any]
DIFFAUG = {"augment.diffaugment": "translation,cutout"}
GSR = {"gsr.weight": 0.5, "gsr.alpha": 0.99, "gsr.power_iterations": 4}


def methods(
    noise: Fields, twins: Fields, transitional: Fields, biggan: Fields, r3gan: Fields, gamma: float
) -> dict[str, Fields]:
    """Return the fields of every method."""
    transitional = {"transitional.weight": 1.0} | transitional
    return {
        "noisytwins": DIFFAUG | noise | twins,
        "baseline": DIFFAUG,
        "noise": DIFFAUG | noise,
        "decorrelation": DIFFAUG | twins,  # the twins' loss without noise: the ablation
        "gsr": DIFFAUG | GSR,
        "d2dce": DIFFAUG | {"d2dce.weight": 0.25, "d2dce.temperature": 0.25, "d2dce.margin": 0.98},
        "contrastive": DIFFAUG | {"contrastive.weight": 0.25, "contrastive.temperature": 0.25},
        "simclr": DIFFAUG | noise | {"simclr.weight": 0.1, "simclr.temperature": 0.5},
        "transitional": DIFFAUG | transitional,
        "transitional_noisytwins": DIFFAUG | transitional | noise | twins,
        "utlo": DIFFAUG | {"utlo.weight": 10.0, "utlo.resolution": 8},
        "content_style": DIFFAUG | CONTENT_STYLE,
        "biggan": DIFFAUG | biggan,
        "biggan_gsr": DIFFAUG | biggan | GSR | {"gsr.embedding": "effective"},
        "biggan_noisytwins": DIFFAUG | biggan | noise | twins,
        "relativistic": DIFFAUG | RELATIVISTIC | {"gradient_penalty.gamma": gamma},
        "r3gan": DIFFAUG | R3GAN | r3gan,
    }


PRESETS = methods(
    noise={"noisytwins.sigma": 0.75, "noisytwins.alpha": 0.99},
    twins={"noisytwins.weight": 0.01, "noisytwins.gamma": 0.05},
    transitional={"transitional.start_kimg": 2000.0, "transitional.end_kimg": 4000.0},
    biggan=biggan(resolution=32, batch_size=64, width=96)
    | {
        "optimizer.generator_lr": 2e-4,
        "optimizer.beta1": 0.5,
        "optimizer.epsilon": 1e-6,
        "optimizer.discriminator_updates": 5,
        "orthogonal.weight": 0.0,
        "ema.start_step": 1000,
        "total_kimg": 32_000.0,  # 100,000 steps
    },
    r3gan=anneal(20_000.0, gamma=0.05) | {"batch_size": 512, "ema.kimg": 5000.0, "total_kimg": 250_000.0},
    gamma=0.01,
)
CPU_PRESETS = methods(
    noise={"noisytwins.sigma": 0.1},
    twins={"noisytwins.weight": 0.01, "noisytwins.gamma": 0.05},
    transitional={"transitional.start_kimg": 39.0, "transitional.end_kimg": 78.0},
    biggan=biggan(resolution=32, batch_size=32, width=8)
    | {
        "total_kimg": 300.0,
        "biggan.discriminator_width": 16,
        "generator.z_dim": 40,
        "biggan.embedding_dim": 32,
        "optimizer.generator_lr": 0.001,
        "optimizer.discriminator_lr": 0.001,
        "optimizer.beta1": 0.5,
        "optimizer.discriminator_updates": 4,
        "orthogonal.weight": 0.0,
        "ema.kimg": 20.0,
        "ema.rampup": 0.05,
        "ema.start_step": 0,
    },
    r3gan=anneal(150.0, gamma=0.05)
    | {
        "r3gan.width": 16,
        "r3gan.cardinality": 2,
        "optimizer.generator_lr": 0.001,
        "optimizer.discriminator_lr": 0.001,
        "ema.kimg": 20.0,
    },
    gamma=0.1,
)
METHODS = tuple(PRESETS)


def get_config(preset: str = "noisytwins") -> ml_collections.ConfigDict:
    """Return the configuration of a preset: comma-separated, a method of `METHODS`, ``cpu`` and ``smoke``."""
    chosen = parse_preset(__file__, preset, METHODS, resolutions=(32,), sizes=("cpu",))
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

    small = chosen.size == "cpu"
    config.update_from_flattened_dict((CPU | CPU_PRESETS[chosen.method]) if small else PRESETS[chosen.method])
    return smoke(config, num_classes=10, channels=1) if chosen.smoke else config
