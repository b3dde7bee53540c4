"""Sample a BigGAN on this process's devices, by different numbers of images at once. See `test_sampler_biggan`.

python biggan_samples_program.py OUT.npz
"""

import sys

import jax
import numpy as np
import tiny_biggan
import tiny_run

from noisytwins_jax.generation.sampler import Sampler
from noisytwins_jax.generation.standing_statistics import standing_statistics
from noisytwins_jax.models.latents import Truncation
from noisytwins_jax.training.build_model import build_model

IMAGES, ROWS, CLASSES = 64, 2, 4


def main(out: str) -> None:
    """Sample the same images one, seven and all at a time, and in reverse order."""
    config = tiny_biggan.tiny_config()
    model = build_model(config, 1, CLASSES)
    variables = jax.device_get(jax.jit(lambda: model.init(jax.random.key(0))[0])())
    variables["params"] = jax.device_get(tiny_biggan.perturbed(variables["params"], 1))
    truncation = Truncation("threshold", 0.8)
    standing = standing_statistics(model, config.z, variables, truncation, passes=5, batch=8)
    labels, found = np.arange(IMAGES) % CLASSES, {}
    sampler = Sampler(model, config.z, standing, seed=3, truncation=truncation, per_device_batch=ROWS)
    for at_once in (1, 7, IMAGES):
        parts = [sampler(*(x[i : i + at_once] for x in (labels, np.arange(IMAGES)))) for i in range(0, IMAGES, at_once)]
        images, w = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        found |= {f"images/{at_once}": images, f"w/{at_once}": w}
    images, w = sampler(labels[::-1], np.arange(IMAGES)[::-1])
    found |= {"images/backwards": images[::-1], "w/backwards": w[::-1]}
    statistics = {f"batch_stats{path}": x for path, x in tiny_run.arrays(standing["batch_stats"]).items()}
    np.savez(out, devices=jax.device_count(), **found, **statistics)


if __name__ == "__main__":
    main(sys.argv[1])
