"""Evaluation of a run's generator as configured, and the checks before it.

With several processes, all of them call these functions: they share generation and feature extraction, and the primary
computes the metrics.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.long_tail import class_groups
from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.evaluation.evaluate_generator import evaluate_generator
from noisytwins_jax.evaluation.few_classes import choose_few_classes, choose_reference
from noisytwins_jax.evaluation.protocol_record import check_request
from noisytwins_jax.generation.sampler import build_sampler
from noisytwins_jax.generation.standing_statistics import tree_sha256
from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.metrics.extractors.classifier import classifier_extractor, load_or_train_classifier
from noisytwins_jax.metrics.extractors.registry import check_weights, load_extractor
from noisytwins_jax.metrics.factors.reader import FactorReader, load_or_train_weights
from noisytwins_jax.metrics.protocols import CLASSIFIER, FILE, parse_extractors
from noisytwins_jax.metrics.resumable_chunks import ResumableCache
from noisytwins_jax.metrics.settings import Settings
from noisytwins_jax.models.latents import Truncation
from noisytwins_jax.training.workdir import cache_dir
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.multihost import broadcast_from_primary, local_copy, raise_on_all_processes

RESUME_FOLDER = ".evaluation"  # in the workdir, while an evaluation is in progress


def check_evaluation(config: RunConfig, on_its_data: bool = True) -> None:
    """Check that the weights for the evaluation exist, or download them, before a long run rather than at its end.

    Args:
      config: the run.
      on_its_data: whether the reference is the configuration's data, for which a classifier can be trained.

    Raises:
      UserError: weights are missing; the message says how to get them.
    """
    with raise_on_all_processes():
        try:
            check_weights(_parse_extractors(config), config.evaluation.weights, config.evaluation.download)
        except UserError as error:
            without = "--config.evaluation.protocol=embedded --config.evaluation.extractors="
            message = str(error).removesuffix(".")
            raise UserError(f"{message} (or measure without them: {without})" if on_its_data else str(error)) from None


def check_counts(config: RunConfig, splits: DataSplits) -> None:
    """Check that there are enough images for the metrics, and that an own extractor takes them.

    Raises:
      UserError: there are too few generated or real images, no few classes where the protocol needs them, or images of
        other channels than the extractor's.
    """
    settings, groups = (
        get_settings(config, splits),
        class_groups(splits.train.class_counts, config.data.group_thresholds),
    )
    reference, _ = choose_reference(splits, settings.protocol)
    choose_few_classes(splits, settings.protocol, groups["tail"])
    counts = settings.counts(reference.num_classes)
    check_request(reference, {}, settings, counts, sweep=bool(config.evaluation.sweep))
    if (file := _parse_extractors(config).get(FILE)) is not None:
        extractor = load_extractor(FILE, file, settings.protocol.name)
        size = (1, reference.resolution, reference.resolution, reference.channels)
        jax.eval_shape(extractor.apply, extractor.variables, jax.ShapeDtypeStruct(size, np.uint8))


def evaluate_variables(
    config: RunConfig,
    variables: dict,
    splits: DataSplits,
    workdir: Path,
    thorough: bool = True,
    between: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a generator with these variables, on every process; see `evaluate_generator`.

    A killed evaluation resumes when it is called with the same arguments.

    Args:
      config: the run.
      variables: of the generator.
      splits: the run's data.
      workdir: the run's.
      thorough: whether to include memorisation and the sweep over truncation, where configured.
      between: called by all processes after each part of the generated images is stored; may raise.
    """
    options, cache, settings = config.evaluation, cache_dir(workdir), get_settings(config, splits)
    variables = local_copy(variables)
    sampler = functools.partial(
        build_sampler,
        config,
        variables,
        splits,
        seed=options.seed,
        per_device_batch=settings.per_device_batch,
        prefetch=settings.prefetch,
    )
    reader, groups = None, class_groups(splits.train.class_counts, config.data.group_thresholds)
    if splits.classifier.factor_names:
        weights = broadcast_from_primary(lambda: load_or_train_weights(splits.classifier, cache, options.seed))
        reader = FactorReader(*weights, splits.reference)
    result = evaluate_generator(
        sampler(),
        reference=choose_reference(splits, settings.protocol)[0],
        extractors=load_extractors(config, splits, cache),
        class_groups=groups,
        few=choose_few_classes(splits, settings.protocol, groups["tail"]),
        settings=settings,
        train=splits.train if options.memorisation and thorough else None,
        train_counts=splits.train.class_counts,
        truncated={
            strength: functools.partial(sampler, truncation=Truncation(config.truncation_kind, strength))
            for strength in options.sweep
            if thorough
        },
        truncation_kind=config.truncation_kind,
        reader=reader,
        cache=cache,
        resume_cache=ResumableCache(workdir / RESUME_FOLDER),
        identity=f"{tree_sha256(variables)} {config.network} {config.generator} {config.biggan} {config.latents} "
        f"{options.standing_passes} {options.standing_batch} {config.up_impl} {config.dtype}"
        + (f" {config.instances} {tree_sha256(splits.instances)}" if splits.instances else ""),
        between=between,
    )
    return result if config.has_mapping_network else _without_w(result)


def _without_w(result: dict[str, Any]) -> dict[str, Any]:
    """Remove what needs W from a result: the W ratios, and truncation by ψ from the protocol."""
    metrics = {name: value for name, value in result["metrics"].items() if not name.endswith("w_ratio")}
    protocol = {name: value for name, value in result["protocol"].items() if name != "truncation_psi"}
    return result | {
        "protocol": protocol | {"truncation": "none"},
        "metrics": metrics,
        "per_class": [row | {"w_ratio": None} for row in result["per_class"]],
    }


def get_settings(config: RunConfig, splits: DataSplits | None = None, **others: Any) -> Settings:
    """Build the settings of an evaluation, with batch sizes for the devices unless configured.

    Args:
      config: the run.
      splits: the run's data; None where the reference is other images.
      others: further fields of `Settings`.
    """
    options = config.evaluation
    # CPUs run Inception and CLIP fastest in small batches, and tiny networks in larger ones.
    batch = 8 if jax.default_backend() == "cpu" and options.protocol != "embedded" else 64
    prefetch = max(1, options.batch_size // (batch * jax.local_device_count())) if options.batch_size else 2
    if splits is not None:
        others["reference_split"] = choose_reference(splits, options.settings.protocol)[1]
    return dataclasses.replace(options.settings, per_device_batch=batch, prefetch=prefetch, **others)


def load_extractors(config: RunConfig, splits: DataSplits, cache: Path) -> dict[str, FeatureExtractor]:
    """Load the extractors of a configuration by kind, the headline's first; called by all processes."""
    options, extractors = config.evaluation, {}
    for kind, network in _parse_extractors(config).items():
        if kind == CLASSIFIER:

            def train() -> tuple[Any, dict[str, Any]]:
                classifier = load_or_train_classifier(splits.classifier, cache)
                return classifier.variables, classifier.description

            extractors[kind] = classifier_extractor(*broadcast_from_primary(train))
        else:
            with raise_on_all_processes():
                extractors[kind] = load_extractor(kind, network, options.protocol, options.weights)
    return extractors


def _parse_extractors(config: RunConfig) -> dict[str, str]:
    return parse_extractors(config.evaluation.settings.protocol, config.evaluation.extractors)
