"""Long-tailed digits: real hand-written digits (scikit-learn, 8×8, no download), 174 images of 0 down to 8 of 9.

Command:   python -m noisytwins_jax.main --config=configs/digits_lt.py[:baseline|noise|noisytwins|decorrelation]
Hardware:  two CPU cores.
Result:    see the table in README.md.
"""

import ml_collections

from noisytwins_jax.config import default_config

METHODS = ("noisytwins", "baseline", "noise", "decorrelation")


def get_config(method: str = "noisytwins") -> ml_collections.ConfigDict:
    """The configuration of one method.

    Args:
      method: ``baseline`` (StyleGAN2 with DiffAugment), ``noise`` (class noise only), ``noisytwins`` (noise and the twins'
        loss) or ``decorrelation`` (the twins' loss without noise: the ablation).
    """
    if method not in METHODS:
        raise ValueError(f"configs/digits_lt.py has no method {method!r}; choose from {', '.join(METHODS)}.")
    config = default_config()
    config.name = f"digits_lt-{method}"
    config.batch_size = 32
    config.total_kimg = 160.0
    config.up_impl = "phase"
    config.log_interval_kimg = 1.6
    config.checkpoint_interval_kimg = 32.0

    config.data.name = "digits_lt"
    config.data.resolution = 8
    config.data.mirror = False  # a mirrored digit is not a digit
    config.data.options = {"imbalance_factor": 0.05, "largest": 174}

    config.generator.z_dim = 64
    config.generator.w_dim = 64
    config.generator.mapping_layers = 4
    config.generator.channel_base = 256
    config.generator.channel_max = 32
    config.generator.noise_mode = "none"
    config.discriminator.channel_base = 256
    config.discriminator.channel_max = 32
    config.discriminator.mbstd_group_size = 8

    config.augment.diffaugment = "color,translation,cutout"
    config.ema.kimg = 10.0
    config.ema.rampup = 0.05

    if method in ("noise", "noisytwins"):
        config.class_noise.sigma = 0.1
    if method in ("noisytwins", "decorrelation"):
        config.noisytwins.weight = 0.05
        config.noisytwins.gamma = 0.05
    return config
