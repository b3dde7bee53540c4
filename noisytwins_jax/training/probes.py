"""Looks at a state now and then while training, each a function to be compiled: numbers to be logged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.data.source import DataSplits, ImageSource, read_images
from noisytwins_jax.training.model import Model

Array = jax.Array
PROBE_IMAGES = 512  # of either kind, at most


def memorisation_probe(model: Model, splits: DataSplits) -> Callable[[Any], dict[str, Array]] | None:
    """Whether the discriminator has learnt the training images by heart (BigGAN, Brock et al. 2019, Sec. 4.2).

    Its accuracy, the share of real images with a positive logit, on images that it was trained with and on images that
    it never saw. The paper found over 98 % and 50 to 55 % on ImageNet: a discriminator that memorises.

    Args:
      model: the networks.
      splits: the run's data.

    Returns:
      Variables of the discriminator → ``{"discriminator_accuracy/train": …, "discriminator_accuracy/held_out": …}``,
      scalars; None where there are no images held out.
    """
    if splits.reference is splits.train:
        return None
    n = min(PROBE_IMAGES, len(splits.train), len(splits.reference))
    sets = {"train": _some(splits.train, n), "held_out": _some(splits.reference, n)}

    def probe(variables: Any) -> dict[str, Array]:
        accuracies = {}
        for name, batch in sets.items():
            images = jnp.asarray(batch["image"]).astype(float) / 127.5 - 1.0
            noise = jnp.zeros((n, model.class_noise_dims[1]))
            low = model.low_images(images)
            said, _ = model.discriminate(variables, images, jnp.asarray(batch["label"]), noise, low)
            accuracies[f"discriminator_accuracy/{name}"] = (said.logits > 0).mean()
        return accuracies

    return probe


def _some(source: ImageSource, n: int) -> dict[str, np.ndarray]:
    """Images of a source, the same ones every time."""
    return read_images(source, np.sort(np.random.default_rng(0).permutation(len(source))[:n]))
