"""Instance conditioning of a run: features and neighbours of its training images (IC-GAN, Casanova et al., NeurIPS 2021).

The extractor is one of the evaluation's, always with the preprocessing of the protocol ``clean``. ``classifier`` is
trained on the long-tailed training images alone: neither the evaluation's classifier nor the balanced images it is
trained on are used. Features and neighbours are computed once and cached beside the runs.
"""

import dataclasses
import hashlib
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.instance_table import InstanceTable, build_instance_table, neighbourhoods, unit_features
from noisytwins_jax.data.source import DataSplits, ImageSource
from noisytwins_jax.metrics import nearest as nearest_neighbours
from noisytwins_jax.metrics import pairwise_distances
from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.metrics.extractors.classifier import classifier_extractor, load_or_train_classifier
from noisytwins_jax.metrics.extractors.registry import check_weights, feature_dim, load_extractor
from noisytwins_jax.metrics.protocols import CLASSIFIER, EXTRACTORS
from noisytwins_jax.metrics.real_features import real_features
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.files import replacing
from noisytwins_jax.utils.multihost import broadcast_from_primary, raise_on_all_processes

_PROTOCOL = "clean"  # of the preprocessing


def check_instances(config: RunConfig) -> None:
    """Check that the extractor's weights are there, or download them, if the configuration has instances.

    Raises:
      UserError: a file is missing, or cannot be downloaded; the message says how to get it.
    """
    if config.instances.neighbours > 0:
        kind, network = EXTRACTORS[config.instances.extractor]
        check_weights({kind: network}, config.evaluation.weights, config.evaluation.download)


def with_instances(config: RunConfig, splits: DataSplits, cache: Path) -> DataSplits:
    """Add the instances to the data, if the configuration has any. All processes must call it.

    Args:
      config: the run's configuration.
      splits: the run's data.
      cache: folder of features and neighbours, shared by runs.

    Raises:
      UserError: in all processes: more neighbours than images, or no weights.
    """
    k, train = config.instances.neighbours, splits.train
    if not k:
        return splits
    if k > len(train):
        raise UserError(
            f"config.instances.neighbours={k} is more than the {len(train)} training images; give at most that many."
        )
    kind, network = EXTRACTORS[config.instances.extractor]
    extractor = _classifier(train, cache) if kind == CLASSIFIER else _network(config, kind, network)
    batch = (
        8 if jax.default_backend() == "cpu" and kind != CLASSIFIER else 64
    )  # see `evaluation.run_evaluation.get_settings`
    extracted = real_features(train, extractor, cache, per_device_batch=batch, logits=False)

    def build() -> InstanceTable:
        features = unit_features(extracted.features)
        neighbours = _cached_neighbours(cache / "neighbours", features, k)
        # Half of float32's memory: entries of unit vectors need no more digits.
        return build_instance_table(features.astype(jnp.bfloat16), neighbours, train.labels, train.num_classes)

    return dataclasses.replace(splits, instances=broadcast_from_primary(build))


def abstract_table(config: RunConfig, num_classes: int, sharding: jax.sharding.Sharding) -> InstanceTable | None:
    """Return the shapes of a table of as many images as neighbours, to compile programs without data."""
    k = config.instances.neighbours
    if not k:
        return None

    def integers(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)

    features = jax.ShapeDtypeStruct((k, feature_dim(config.instances.extractor)), jnp.bfloat16, sharding=sharding)
    return InstanceTable(features, integers(k, k), integers(k), integers(k), integers(num_classes + 1))


def _classifier(train: ImageSource, cache: Path) -> FeatureExtractor:
    def load() -> tuple[Any, dict[str, Any]]:
        classifier = load_or_train_classifier(train, cache)
        return classifier.variables, classifier.description

    return classifier_extractor(*broadcast_from_primary(load))


def _network(config: RunConfig, kind: str, network: str) -> FeatureExtractor:
    with raise_on_all_processes():
        return load_extractor(kind, network, _PROTOCOL, config.evaluation.weights)


def _cached_neighbours(folder: Path, features: np.ndarray, k: int) -> np.ndarray:
    """Load the neighbourhoods of features from the folder; if they are missing or damaged, compute and store them."""
    digest = hashlib.sha256(f"{features.shape} {k}".encode())
    for module in (nearest_neighbours, pairwise_distances):
        digest.update(Path(module.__file__).read_bytes())
    digest.update(np.ascontiguousarray(features).data)
    path = folder / f"{digest.hexdigest()[:16]}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["neighbours"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    neighbours = neighbourhoods(features, k, nearest_others)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, neighbours=neighbours)
    return neighbours


def nearest_others(features: np.ndarray, k: int) -> np.ndarray:
    """Return the indices int64 ``[n, k]`` of the k nearest other rows of ``[n, d]``, nearest first."""
    return nearest_neighbours.nearest(queries=features, keys=features, k=k, exclude_self=True)[1]
