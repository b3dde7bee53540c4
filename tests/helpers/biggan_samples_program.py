"""Samples of a BigGAN on this process's devices, handed over by different numbers; prints JSON. See `test_sampling_biggan`."""

import hashlib
import json

import jax
import numpy as np
import tiny_biggan

from noisytwins_jax.generation.sampler import Sampler, standing_statistics
from noisytwins_jax.models.latents import Truncation
from noisytwins_jax.training.build_model import build_model

IMAGES, ROWS, CLASSES = 64, 2, 4


def digest(*arrays: np.ndarray) -> list[str]:
    """Type, shape and bytes of each."""
    return [f"{x.dtype} {x.shape} {hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()}" for x in arrays]


def main() -> None:
    """Draws the same images one, seven and all at a time."""
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
        found[at_once] = digest(images, w)
    backwards = [x[::-1] for x in sampler(labels[::-1], np.arange(IMAGES)[::-1])]
    report = {
        "devices": jax.device_count(),
        "moments": digest(*jax.tree.leaves(standing["batch_stats"])),
        "samples": found,
        "backwards": digest(*backwards),
        "different": len({x.tobytes() for x in images}),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
