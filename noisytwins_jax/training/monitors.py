"""Looks at a state now and then while training: numbers to be logged."""

import hashlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.instance_table import InstanceTable
from noisytwins_jax.data.long_tail import class_groups
from noisytwins_jax.data.source import DataSplits, ImageSource, LabelledImages, read_images
from noisytwins_jax.metrics.w_space import w_ratio_monitor
from noisytwins_jax.models.instance_sampling import sample_features_of_classes
from noisytwins_jax.models.model import DiscriminatorInputs, Model
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.utils.sharding import Layout

Array = jax.Array
Monitor = Callable[[TrainState], dict[str, Array]]
_GROUPS = 32  # a multiple of all published sizes of minibatch-std groups
PROBE_IMAGES = 512  # of either kind, at most
COMPARED_IMAGES = 100_000  # larger data sets are not searched for images in both splits: it would take minutes
_BLOCK = 1024


def build_monitors(
    config: RunConfig, model: Model, splits: DataSplits, layout: Layout, instances: InstanceTable | None = None
) -> dict[str, Monitor]:
    """The looks that the configuration wants, compiled; each has the field ``<name>_interval_kimg``.

    `instances` are on the devices already.
    """
    groups = class_groups(splits.train.class_counts, config.data.group_thresholds)
    found: dict[str, Monitor] = {}
    if config.w_ratio_interval_kimg > 0:

        def latent_w(given: tuple, z: Array, labels: Array) -> Array:
            variables, table = given
            keys = jax.random.split(jax.random.key(0), len(labels))
            return model.latent_w(variables, z, labels, sample_features_of_classes(keys, table, labels))

        w_ratio = jax.jit(w_ratio_monitor(latent_w, model.z_dim, groups), out_shardings=layout.replicated)
        found["w_ratio"] = lambda state: w_ratio((state.ema, instances))
    memorisation = memorisation_monitor(model, splits) if config.memorisation_interval_kimg > 0 else None
    if memorisation is not None:
        accuracies = jax.jit(memorisation, out_shardings=layout.replicated)
        found["memorisation"] = lambda state: accuracies(state.discriminator.variables)
    return found


def compute_monitors(monitors: dict[str, Monitor], state: TrainState, names: Collection[str]) -> dict[str, float]:
    """The numbers of some of the probes, on the host."""
    numbers: dict[str, float] = {}
    for name in names:
        numbers |= {key: float(value) for key, value in monitors[name](state).items()}
    return numbers


def memorisation_monitor(model: Model, splits: DataSplits) -> Callable[[Any], dict[str, Array]] | None:
    """Whether the discriminator has learnt the training images by heart (BigGAN, Brock et al. 2019, Sec. 4.2).

    Its accuracy, the share of real images with a positive logit, on images that it was trained with and on images that
    it never saw, as many of each class: a class that it hardly knows says nothing about memory. The paper found over
    98 % and 50 to 55 % on ImageNet: a discriminator that memorises. On a long-tailed set whose generated images have
    uniform classes, the sign of a logit soon is that of the class, common or rare, whatever the image: then the mean
    logits show what it remembers.

    Args:
      model: the networks.
      splits: the run's data. Held out are the reference images that are not among the training images.

    Returns:
      Variables of the discriminator → scalars ``discriminator_accuracy/train``, ``discriminator_accuracy/held_out`` and,
      mean logits, ``discriminator_logit/train``, ``discriminator_logit/held_out``; None where there are no images held out.
    """
    sets = _alike(splits)
    if sets is None:
        return None

    def probe(variables: Any) -> dict[str, Array]:
        found = {}
        for name, batch in sets.items():
            images = jnp.asarray(batch["image"]).astype(float) / 127.5 - 1.0
            noise = jnp.zeros((len(images), model.class_noise_dims[1]))
            low = model.low_images(images)
            inputs = DiscriminatorInputs(images, jnp.asarray(batch["label"]), noise, low)
            said, _ = model.discriminate(variables, inputs)
            found[f"discriminator_accuracy/{name}"] = (said.logits > 0).mean()
            found[f"discriminator_logit/{name}"] = said.logits.mean()
        return found

    return probe


def _alike(splits: DataSplits) -> dict[str, LabelledImages] | None:
    """Training images and as many held out, with the same labels; the same ones every time. None if there are none."""
    rng, held_out = np.random.default_rng(0), _held_out(splits)
    pairs = [np.zeros((0, 2), int)]
    for label in range(splits.train.num_classes):
        known = rng.permutation(np.flatnonzero(splits.train.labels == label))
        unknown = rng.permutation(held_out[splits.reference.labels[held_out] == label])
        n = min(len(known), len(unknown))
        pairs.append(np.stack([known[:n], unknown[:n]], axis=1))
    chosen = rng.permutation(np.concatenate(pairs))[:PROBE_IMAGES]
    if len(chosen) > _GROUPS:
        chosen = chosen[: len(chosen) // _GROUPS * _GROUPS]
    if not len(chosen):
        return None
    return {
        "train": read_images(splits.train, np.sort(chosen[:, 0])),
        "held_out": read_images(splits.reference, np.sort(chosen[:, 1])),
    }


def _held_out(splits: DataSplits) -> np.ndarray:
    """Which images of the reference, int ``[n]``, are not among the training images; of embedded data sets some are."""
    train, reference = splits.train, splits.reference
    if train is reference:
        return np.zeros(0, int)
    if len(train) + len(reference) > COMPARED_IMAGES:
        return np.arange(len(reference))
    known = set(_pixels(train))
    return np.array([i for i, pixels in enumerate(_pixels(reference)) if pixels not in known], int)


def _pixels(source: ImageSource) -> Iterator[bytes]:
    """A hash of every image."""
    for start in range(0, len(source), _BLOCK):
        images = read_images(source, np.arange(start, min(start + _BLOCK, len(source))))["image"]
        yield from (hashlib.sha256(image).digest() for image in images)
