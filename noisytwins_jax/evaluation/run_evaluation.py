"""The numbers of a run's generator: the checks before, and the measuring as the configuration says.

In a run of several processes all of them call these functions: they share the generating and embedding of images, and
the first one computes the numbers.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.long_tail import class_groups
from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.evaluation.measure import evaluate_generator
from noisytwins_jax.evaluation.protocol_record import check_request
from noisytwins_jax.generation.sampler import build_sampler, variables_sha256
from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.metrics.extractors.classifier import classifier_extractor, load_or_train_classifier
from noisytwins_jax.metrics.extractors.registry import check_weights, load_extractor
from noisytwins_jax.metrics.factors.reader import FactorReader, load_or_train_weights
from noisytwins_jax.metrics.protocols import CLASSIFIER, parse_extractors
from noisytwins_jax.metrics.resumable_chunks import ResumableCache
from noisytwins_jax.metrics.settings import Settings
from noisytwins_jax.models.latents import Truncation
from noisytwins_jax.training.workdir import cache_dir
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.multihost import broadcast_from_primary, local_copy, raise_on_all_processes

SCRATCH = ".evaluation"  # in the workdir, while an evaluation is under way


def check_evaluation(config: RunConfig, on_its_data: bool = True) -> None:
    """Looks whether what the evaluation needs is there, so that it is not missed at the end of a long run.

    Args:
      config: the run.
      on_its_data: whether it is measured on the configuration's data, of which there could be a classifier.

    Raises:
      UserError: weights are missing; how to make them is said.
    """
    with raise_on_all_processes():
        try:
            check_weights(_chosen(config), config.evaluation.weights)
        except UserError as error:
            without = "--config.evaluation.protocol=embedded --config.evaluation.extractors="
            raise UserError(f"{error} (or measure without them: {without})" if on_its_data else str(error)) from None


def check_counts(config: RunConfig, splits: DataSplits) -> None:
    """Looks whether there are enough images for the metrics, likewise.

    Raises:
      UserError: there are too few, generated or real ones.
    """
    settings = settings_of(config, splits)
    counts = settings.counts(splits.reference.num_classes)
    check_request(splits.reference, {}, settings, counts, sweep=bool(config.evaluation.sweep))


def evaluate_variables(
    config: RunConfig,
    variables: dict,
    splits: DataSplits,
    workdir: Path,
    thorough: bool = True,
    between: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """The numbers of a generator with these variables, on every process; see `metrics.evaluation`.

    Killed, it goes on where it was when it is called with the same arguments.

    Args:
      config: the run.
      variables: of the generator.
      splits: the run's data.
      workdir: the run's.
      thorough: also memorisation and the sweep over truncation, if the configuration asks for them.
      between: called by all processes now and then while images are generated, when what is done is kept; it may raise.
    """
    options, cache, settings = config.evaluation, cache_dir(workdir), settings_of(config, splits)
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
    reader = None
    if splits.classifier.factor_names:
        weights = broadcast_from_primary(lambda: load_or_train_weights(splits.classifier, cache, options.seed))
        reader = FactorReader(*weights, splits.reference)
    result = evaluate_generator(
        sampler(),
        reference=splits.reference,
        extractors=load_extractors(config, splits, cache),
        class_groups=class_groups(splits.train.class_counts, config.data.group_thresholds),
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
        scratch=ResumableCache(workdir / SCRATCH),
        identity=f"{variables_sha256(variables)} {config.network} {config.generator} {config.biggan} {config.latents} "
        f"{options.standing_passes} {options.standing_batch} {config.up_impl} {config.dtype}"
        + (f" {config.instances} {variables_sha256(splits.instances)}" if splits.instances else ""),
        between=between,
    )
    return result if config.has_mapping_network else _without_w(result)


def _without_w(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers without those of W, and the protocol without ψ, which is of W: nothing else truncates them."""
    metrics = {name: value for name, value in result["metrics"].items() if not name.endswith("w_ratio")}
    protocol = {name: value for name, value in result["protocol"].items() if name != "truncation_psi"}
    return result | {
        "protocol": protocol | {"truncation": "none"},
        "metrics": metrics,
        "per_class": [row | {"w_ratio": None} for row in result["per_class"]],
    }


def settings_of(config: RunConfig, splits: DataSplits | None = None, **others: Any) -> Settings:
    """How to measure, with as many images at once as suit the devices unless the configuration says.

    Args:
      config: the run.
      splits: what is measured against; None where it is not the run's data.
      others: further fields of `Settings`.
    """
    options = config.evaluation
    # CPUs are fastest at Inception and CLIP a few images at a time; tiny networks want more.
    batch = 8 if jax.default_backend() == "cpu" and options.protocol != "embedded" else 64
    prefetch = max(1, options.batch_size // (batch * jax.local_device_count())) if options.batch_size else 2
    if splits is not None:
        others["reference_split"] = "train" if splits.reference is splits.train else "reference"
    return dataclasses.replace(options.settings, per_device_batch=batch, prefetch=prefetch, **others)


def load_extractors(config: RunConfig, splits: DataSplits, cache: Path) -> dict[str, FeatureExtractor]:
    """The extractors of a configuration by kind, the headline's first. To be called by all processes."""
    options, extractors = config.evaluation, {}
    for kind, network in _chosen(config).items():
        if kind == CLASSIFIER:

            def train() -> tuple[Any, dict[str, Any]]:
                classifier = load_or_train_classifier(splits.classifier, cache)
                return classifier.variables, classifier.description

            extractors[kind] = classifier_extractor(*broadcast_from_primary(train))
        else:
            with raise_on_all_processes():
                extractors[kind] = load_extractor(kind, network, options.protocol, options.weights)
    return extractors


def _chosen(config: RunConfig) -> dict[str, str]:
    return parse_extractors(config.evaluation.settings.protocol, config.evaluation.extractors)
