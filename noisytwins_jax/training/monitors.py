"""Monitors: metrics of the state that are computed and logged at intervals of their own."""

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
_GROUP_MULTIPLE = 32  # a multiple of all published sizes of minibatch-std groups
MAX_IMAGES = 512  # from each split
MAX_COMPARED = 100_000  # images; larger data sets are not searched for images in both splits: it would take minutes
_BLOCK = 1024  # images read at once


def build_monitors(
    config: RunConfig, model: Model, splits: DataSplits, layout: Layout, instances: InstanceTable | None = None
) -> dict[str, Monitor]:
    """Build the monitors that the configuration turns on, by name: fields ``<name>_interval_kimg`` above 0.

    `instances` must be on the devices already.
    """
    groups = class_groups(splits.train.class_counts, config.data.group_thresholds)
    monitors: dict[str, Monitor] = {}
    if config.w_ratio_interval_kimg > 0:

        def latent_w(arguments: tuple, z: Array, labels: Array) -> Array:
            variables, table = arguments
            keys = jax.random.split(jax.random.key(0), len(labels))
            return model.latent_w(variables, z, labels, sample_features_of_classes(keys, table, labels))

        w_ratio = jax.jit(w_ratio_monitor(latent_w, model.z_dim, groups), out_shardings=layout.replicated)
        monitors["w_ratio"] = lambda state: w_ratio((state.ema, instances))
    memorisation = memorisation_monitor(model, splits) if config.memorisation_interval_kimg > 0 else None
    if memorisation is not None:
        accuracies = jax.jit(memorisation, out_shardings=layout.replicated)
        monitors["memorisation"] = lambda state: accuracies(state.discriminator.variables)
    return monitors


def compute_monitors(monitors: dict[str, Monitor], state: TrainState, names: Collection[str]) -> dict[str, float]:
    """Compute the metrics of some of the monitors, on the host."""
    metrics: dict[str, float] = {}
    for name, monitor in monitors.items():  # in this order: a set's differs between processes, which run them together
        if name in names:
            metrics |= {key: float(value) for key, value in monitor(state).items()}
    return metrics


def memorisation_monitor(model: Model, splits: DataSplits) -> Callable[[Any], dict[str, Array]] | None:
    """Build a monitor of the discriminator's memorisation of training images (BigGAN, Brock et al. 2019, Sec. 4.2).

    It computes the accuracy, the share of real images with a positive logit, on training images and on held-out images,
    with the same number of each class so that class frequencies do not matter. The paper found over 98 % and 50 to 55 %
    on ImageNet: a discriminator that memorises. On a long-tailed data set whose generated images have uniform classes,
    the sign of a logit soon depends on the class's frequency alone; then the mean logits show memorisation.

    Args:
      model: the networks.
      splits: the run's data. Held out are the reference images that are not among the training images.

    Returns:
      Variables of the discriminator → scalars ``discriminator_accuracy/train``, ``discriminator_accuracy/held_out`` and,
      mean logits, ``discriminator_logit/train``, ``discriminator_logit/held_out``; None if no images are held out.
    """
    sets = _matched_images(splits)
    if sets is None:
        return None

    def compute(variables: Any) -> dict[str, Array]:
        metrics = {}
        for name, batch in sets.items():
            images = jnp.asarray(batch["image"]).astype(float) / 127.5 - 1.0
            noise = jnp.zeros((len(images), model.class_noise_dims[1]))
            low = model.low_images(images)
            inputs = DiscriminatorInputs(images, jnp.asarray(batch["label"]), noise, low)
            output, _ = model.discriminate(variables, inputs)
            metrics[f"discriminator_accuracy/{name}"] = (output.logits > 0).mean()
            metrics[f"discriminator_logit/{name}"] = output.logits.mean()
        return metrics

    return compute


def _matched_images(splits: DataSplits) -> dict[str, LabelledImages] | None:
    """Sample training images and held-out ones with the same labels, the same every time; None if there are none."""
    rng, held_out = np.random.default_rng(0), _held_out(splits)
    pairs = [np.zeros((0, 2), int)]
    for label in range(splits.train.num_classes):
        trained = rng.permutation(np.flatnonzero(splits.train.labels == label))
        others = rng.permutation(held_out[splits.reference.labels[held_out] == label])
        n = min(len(trained), len(others))
        pairs.append(np.stack([trained[:n], others[:n]], axis=1))
    chosen = rng.permutation(np.concatenate(pairs))[:MAX_IMAGES]
    if len(chosen) > _GROUP_MULTIPLE:
        chosen = chosen[: len(chosen) // _GROUP_MULTIPLE * _GROUP_MULTIPLE]
    if not len(chosen):
        return None
    return {
        "train": read_images(splits.train, np.sort(chosen[:, 0])),
        "held_out": read_images(splits.reference, np.sort(chosen[:, 1])),
    }


def _held_out(splits: DataSplits) -> np.ndarray:
    """Return the indices int ``[n]`` of reference images that are not training images; in embedded data sets some are."""
    train, reference = splits.train, splits.reference
    if train is reference:
        return np.zeros(0, int)
    if len(train) + len(reference) > MAX_COMPARED:
        return np.arange(len(reference))
    trained = set(_hashes(train))
    return np.array([i for i, image in enumerate(_hashes(reference)) if image not in trained], int)


def _hashes(source: ImageSource) -> Iterator[bytes]:
    """Yield a hash of every image."""
    for start in range(0, len(source), _BLOCK):
        images = read_images(source, np.arange(start, min(start + _BLOCK, len(source))))["image"]
        yield from (hashlib.sha256(image).digest() for image in images)
