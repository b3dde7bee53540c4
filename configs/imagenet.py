"""ImageNet (ILSVRC 2012): 1,281,167 images of 1000 classes, 128, 256 or 512 px. BigGAN's own data set.

Prepare:   python -m noisytwins_jax.data.prepare imagenet --source=ILSVRC2012_img_train.tar --resolution=128 --preprocessing=center-box --data_dir=data
Command:   python -m noisytwins_jax.main --config=configs/imagenet.py[:<method>][,256|,512][,smoke]
Hardware:  published on 128, 256 and 512 cores of TPU v3 for 128, 256 and 512 px. ``--config.mesh.fsdp`` shares the state.
Result:    not run yet by this project. Published (BigGAN, ICLR 2019):

| method | batch | ch | FID | IS | collapses at |
|---|---|---|---|---|---|
| sagan | 256 | 64 | 18.65 | 52.52 | stable |
| batch2048 | 2048 | 64 | 12.39 | 76.85 | 732,000 |
| ch96 | 2048 | 96 | 9.54 | 92.98 | 295,000 |
| shared | 2048 | 96 | 9.18 | 94.94 | 185,000 |
| skip_z | 2048 | 96 | 8.73 | 98.76 | 152,000 |
| biggan | 2048 | 96 | 8.51 | 99.31 | 165,000 |
| ch64 | 2048 | 64 | 10.48 | 86.90 | 371,000 |

All at 128 px without truncation (Table 1; its numbers are from memory, since the table is missing from the text at hand).
``biggan`` at 128, 256 and 512 px and ``biggan_deep`` are the models of Table 2: at the truncation where the Inception Score is
that of real images, biggan_deep has 166.5/7.4, 232.5/8.1 and 241.5/11.5 (IS/FID).

Protocol:  50,000 generated images, ``tf1``; published against the training images, here against the validation images if they were
prepared; the checkpoint before collapse, which ``--config.collapse.action=return`` finds by itself. Truncation: ``--config.evaluation.truncations=2,1.5,1,0.5,0.04``.

Latents: 20 for the first layer and each block of ``biggan``, 128 for ``biggan_deep`` and for the methods without skip-z.
"""

import ml_collections

from noisytwins_jax.config import default_config
from noisytwins_jax.config.presets import biggan, parse_preset, smoke

# What a method leaves out. From top to bottom, each row of Table 1 adds one thing.
NO_ORTHOGONAL = {"orthogonal.weight": 0.0}
NO_SKIP_Z = NO_ORTHOGONAL | {"biggan.skip_z": False, "generator.z_dim": 128}
NO_SHARED = NO_SKIP_Z | {"biggan.shared_embedding": False}
CH64 = {"biggan.generator_width": 64, "biggan.discriminator_width": 64}
# SA-GAN's learning rates (appendix G: the best at lower batch sizes), one discriminator update a step.
SAGAN = {
    "batch_size": 256,
    "optimizer.generator_lr": 1e-4,
    "optimizer.discriminator_lr": 4e-4,
    "optimizer.discriminator_updates": 1,
}
DEEP = {
    "network": "biggan_deep",
    "generator.z_dim": 128,
    "biggan.generator_width": 128,
    "biggan.discriminator_width": 128,
    "biggan.wide_rgb": True,
}
DEEP_LARGE = DEEP | {"optimizer.generator_lr": 2.5e-5, "optimizer.discriminator_lr": 2.5e-5}  # 256 and 512 px

PRESETS = {
    "biggan": {},
    "biggan_deep": DEEP,
    "sagan": NO_SHARED | CH64 | SAGAN,
    "batch2048": NO_SHARED | CH64,
    "ch96": NO_SHARED,
    "shared": NO_SKIP_Z,
    "skip_z": NO_ORTHOGONAL,
    "ch64": CH64,
}
METHODS = tuple(PRESETS)


def get_config(preset: str = "biggan") -> ml_collections.ConfigDict:
    """Return the configuration of a preset: comma-separated, a method of `METHODS`, 128, 256 or 512 (px), ``smoke``."""
    chosen = parse_preset(__file__, preset, METHODS, resolutions=(128, 256, 512))
    config = default_config()
    config.name = chosen.name
    config.dtype = "bfloat16"  # activations
    config.checkpoint_interval_kimg = 4096.0  # a thousand steps
    config.log_interval_kimg = 40.96
    config.memorisation_interval_kimg = 409.6

    config.data.name = "imagenet"
    config.data.resolution = chosen.resolution
    config.data.mirror = True  # the paper does not say
    config.data.preprocessing = "center-box"  # cropped along the long edge, area resampling

    config.update_from_flattened_dict(biggan(chosen.resolution, batch_size=2048, width=96))
    if chosen.method == "biggan_deep" and chosen.resolution > 128:
        config.update_from_flattened_dict(DEEP_LARGE)
    else:
        config.update_from_flattened_dict(PRESETS[chosen.method])
    config.total_kimg = 500_000 * config.batch_size * config.optimizer.discriminator_updates / 1000

    config.spectra.interval = 100
    config.collapse.action = "report"
    config.evaluation.protocol = "tf1"
    config.evaluation.samples_per_class = 50

    return smoke(config, num_classes=1000) if chosen.smoke else config
