"""Evaluation of a class-conditional generator: pooled, per class, for head, medium and tail, and for memorisation.

The result is a nested dict of plain Python values (``json.dumps(result, allow_nan=False)`` works; undefined values,
such as the recall of a class with too few real images, are ``None``). Distances are named after their features: no
suffix (Inception, or the classifier of the protocol ``embedded``), ``_clip``, or ``fd_dinov2``::

    {
      "protocol": {"name",                                       # see `metrics.protocols`
                   "extractor", "extractor_sha256", "extractor_description", "feature_dim",     # of the headline
                   "headline_extractor",                         # its kind, of `metrics.protocols`
                   "extractors": {kind: {"name", "sha256", "feature_dim", "description"}},
                   "reference_fingerprint", "reference_split", "preprocessing", "resolution", "channels", "num_classes",
                   "n_real", "n_fake", "n_fake_per_class", "n_fake_pooled", "labels", "k", "inclusive",
                   "inception_score": {"logits", "splits", "shuffle_seed"}, "kid": {"subsets", "subset_size"},
                   "seed", "weights", "class_noise", "truncation_psi", "class_groups", "headline", "warnings",
                   "few_classes",                                # where the protocol evaluates them alone
                   "step",                                       # of a run; for files "images" and "reference" instead
                   "images", "images_fingerprint", "images_resolution", "reference",
                   "classes"},                                   # whether the files have classes
      "metrics":  {"fid", "fid_clip", "fd_dinov2",               # pooled: balanced fakes against all real images
                   "kid", "kid_std", "inception_score", "inception_score_std", "cmmd",          # pooled
                   "precision", "recall", "density", "coverage",                                # pooled
                   "ifid", "ifid_std", "ifid_median", "ifid_classes_used",      # over classes; also for ifid_clip and ifd_dinov2
                   "class_precision", "class_recall", "class_density", "class_coverage",  # means of per-class values
                   "class_accuracy", "w_ratio", "auth_pct",
                   "few_fid", "few_kid", "few_kid_std",          # of protocols with few classes; see `few_classes`
                   # and for every group g of class_groups (head, medium, tail):
                   "<g>_ifid", "<g>_fid", "<g>_ifid_clip", "<g>_fid_clip", "<g>_ifd_dinov2", "<g>_fd_dinov2",
                   "<g>_precision", "<g>_recall", "<g>_class_accuracy", "<g>_w_ratio"},
      "per_class": [{"class", "name", "group", "n_train", "n_real", "n_fake", "ifid", "ifid_clip", "ifd_dinov2",
                     "degenerate", "precision", "recall", "density", "coverage", "class_accuracy", "w_ratio"}, ...],
      "real_vs_real": {"n_per_half", "fid", "ifid", "ifid_std", "ifid_median", "ifid_classes_used",  # and CLIP, DINOv2
                   "precision", "recall", "density", "coverage", "class_precision", "class_recall", "<g>_ifid",
                   "<g>_precision", "<g>_recall", "inception_score"},   # the Inception Score of all real images
      "memorisation": {"overall": {...}, "within_class": {...},  # see `metrics.memorisation`
                       # indices of the nearest training images in features and in pixels:
                       "examples": [{"class", "index", "nearest", "distances", "pixel_nearest", "pixel_distances"}, ...]},
      "truncation": {"kind", "real_inception_score", "points": [{"strength", ...}], "operating_points"},   # see `truncation_sweep`
      "factors":  {...},                                         # see `metrics.factors`
    }

``memorisation`` needs training images, ``truncation`` a sweep, and ``factors`` data with known factors.

``<g>_fid`` pools the classes of the group; the other ``<g>_*`` average the per-class values, so ``tail_recall`` is the
mean over tail classes of the recall *within* the class. ``real_vs_real`` compares one random half of the real images
with the other, as a reference for what a perfect generator could reach. The smaller sets by themselves raise its FID and
iFID.

Per-class values use ``n_fake_per_class`` generated images of each class; pooled ones ``n_fake_pooled`` of these, the
first of each class, the same number of each class or one more.

Intra-class FID averages over classes with the population standard deviation, as the official NoisyTwins code
does; classes without real images are left out and one real image counts as zero covariance. Precision and recall are
those of Kynkäänniemi et al. 2019, density and coverage those of Naeem et al. 2020.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from noisytwins_jax.data.source import ImageSource
from noisytwins_jax.evaluation.few_classes import extract_all_and_few, few_scores
from noisytwins_jax.evaluation.generated_features import GeneratedFeatures, extract_generated_features
from noisytwins_jax.evaluation.memory import print_memory, too_little_memory
from noisytwins_jax.evaluation.protocol_record import build_protocol_record, check_request
from noisytwins_jax.evaluation.scores import (
    CLASSWISE,
    FRECHET,
    classwise_summary,
    mean_of,
    pooled_scores,
    real_inception_score,
    real_vs_real_metrics,
)
from noisytwins_jax.evaluation.truncation_sweep import truncation_sweep
from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.metrics.factors.reader import FactorReader
from noisytwins_jax.metrics.features import Embedder, Fakes
from noisytwins_jax.metrics.frechet import frechet_distance
from noisytwins_jax.metrics.memorisation import memorisation
from noisytwins_jax.metrics.pixel_neighbours import nearest_in_pixels
from noisytwins_jax.metrics.protocols import CLASSIFIER
from noisytwins_jax.metrics.real_features import RealFeatures, real_features
from noisytwins_jax.metrics.resumable_chunks import ResumableCache, resumable_chunks
from noisytwins_jax.metrics.settings import Counts, Settings
from noisytwins_jax.metrics.w_space import within_class_variance_ratio
from noisytwins_jax.training.fault_tolerance.consistency import code_fingerprint
from noisytwins_jax.utils.device_memory import explain_out_of_memory
from noisytwins_jax.utils.multihost import broadcast_from_primary

_NUM_NEAREST, _NUM_EXAMPLES = 6, 20  # training images beside a generated one; generated ones, each of another class


@explain_out_of_memory(too_little_memory)
def evaluate_generator(
    fakes: Fakes,
    *,
    reference: ImageSource,
    extractors: Mapping[str, FeatureExtractor],
    class_groups: Mapping[str, Sequence[int] | np.ndarray],
    settings: Settings,
    train: ImageSource | None = None,
    train_counts: Sequence[int] | np.ndarray | None = None,
    truncated: Mapping[float, Callable[[], Fakes]] | None = None,
    truncation_kind: str = "psi",
    available: np.ndarray | None = None,
    few: Sequence[int] = (),
    reader: FactorReader | None = None,
    cache: Path | None = None,
    resume_cache: ResumableCache | None = None,
    identity: str = "",
    between: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Compare ``samples_per_class`` generated images of every class with all reference images.

    With several processes, all of them call this function and share the images, and the primary computes the metrics.

    Args:
        fakes: source of the generated images; the indices of class c follow those of class c - 1, from 0 on.
        reference: the real images to compare with.
        extractors: by kind (see `metrics.protocols`), the headline's first. A classifier also gives the class accuracy.
        class_groups: name -> class ids, e.g. head, medium and tail; a class belongs to at most one group, and the
            values of an empty group are None.
        settings: the protocol and the counts.
        train: the training images, for memorisation; None to skip it.
        train_counts: training images of each class [num_classes], recorded per class; by default those of ``train``.
        truncated: for a sweep, strength -> function that builds the image source with that truncation.
        truncation_kind: of the sweep, one of `models.latents.TRUNCATIONS`.
        available: images of each class [num_classes], where they come from files, all of which are used.
        few: the few classes of a protocol that evaluates them alone; see `few_classes`.
        reader: of true factors, for data where they are known.
        cache: folder for features of real images; None to store none.
        resume_cache: stores finished parts of this evaluation, so that it resumes after a kill, and the result, until
            the caller has stored that and calls ``remove_finished``.
        identity: of the generated images, such as the hash of the weights; distinguishes evaluations in ``resume_cache``.
        between: called by all processes after each part of the generated images is stored; may raise.

    Returns:
        The nested dict described at the top of this module.

    Raises:
        UserError: the arguments do not fit together (before anything is generated), or features or w hold NaN or
            infinity.
    """
    groups = {name: [int(c) for c in ids] for name, ids in class_groups.items()}
    if train is not None and train_counts is None:
        train_counts = train.class_counts
    counts = settings.counts(reference.num_classes, available)
    check_request(reference, groups, settings, counts, train_counts, sweep=bool(truncated))
    headline = next(iter(extractors))
    kinds = [kind for kind in extractors if kind == headline or kind != CLASSIFIER]
    resume_cache = resume_cache or ResumableCache()
    optional = [reader is not None, train is not None and train.fingerprint, truncation_kind, sorted(truncated or ())]
    recorded = [groups, None if train_counts is None else [int(n) for n in train_counts], *([list(few)] if few else [])]
    finished = resume_cache.open(_digest(identity, reference, extractors, settings, counts, optional, recorded))
    if finished is not None:
        return finished
    load_real = functools.partial(
        real_features, cache=cache, per_device_batch=settings.per_device_batch, prefetch=settings.prefetch
    )
    real_by_kind = {kind: load_real(reference, extractors[kind], logits=kind == headline) for kind in kinds}
    real = {kind: x.features for kind, x in real_by_kind.items()}
    labels = np.asarray(reference.labels)

    embedder = Embedder(extractors, settings.per_device_batch, settings.prefetch)
    size = fakes.image_size or (reference.resolution, reference.resolution, reference.channels)
    print_memory(fakes, embedder, size)
    extract = functools.partial(
        extract_generated_features,
        embedder=embedder,
        size=size,
        reference=reference,
        real=real,
        counts=counts,
        settings=settings,
        kinds=kinds,
        between=between,
    )
    generated = extract(fakes, reader=reader, folder=resume_cache.folder("images"))
    score = functools.partial(
        pooled_scores, real, headline=headline, k=settings.k, protocol=settings.protocol
    )  # features and logits of generated images -> metrics
    single_class = reference.num_classes == 1 and counts.pooled.sum() == counts.each.sum()
    in_all, pooled_counts, of_few = generated, counts, {}
    if few and available is None:
        on_its_own = functools.partial(extract, fakes, classwise=False)
        frequencies, start = np.bincount(labels, minlength=reference.num_classes), int(counts.each.sum())
        in_all, pooled_counts, of_few = extract_all_and_few(on_its_own, settings, frequencies, few, start, resume_cache)
    elif few:
        of_few = {kind: x[np.isin(generated.labels, few)] for kind, x in generated.features.items()}
    pooled = broadcast_from_primary(
        lambda: (
            score(in_all.features, in_all.logits, single_class=generated.rows[0] if single_class and not few else None)
            | (few_scores(real[headline], labels, of_few[headline], few, settings.protocol) if few else {})
        )
    )

    memorised = None
    if train is not None:
        same = train.fingerprint == reference.fingerprint
        trained = real_by_kind[headline] if same else load_real(train, extractors[headline], logits=False)
        memorised = broadcast_from_primary(
            lambda: _memorisation(trained, train, generated, real_by_kind[headline], labels, headline, counts, fakes)
        )
    points = []
    for strength, build_fakes in (truncated or {}).items():
        scores = pooled
        if (truncation_kind, strength) != ("psi", settings.truncation_psi):
            folder = resume_cache.folder(f"{truncation_kind}{strength!r}")
            at_strength = extract(build_fakes(), counts=pooled_counts, folder=folder, classwise=False)
            scores = broadcast_from_primary(lambda x=at_strength: score(x.features, x.logits))
        points.append({"strength": float(strength), "n_fake": int(pooled_counts.pooled.sum()), **scores})
    real_vs_real = _real_vs_real(real_by_kind, labels, groups, headline, settings, reference, extractors, cache)

    def assemble() -> dict[str, Any]:
        n_real = np.bincount(labels, minlength=reference.num_classes)
        rows = _per_class(generated, reference, groups, n_real, train_counts)
        metrics = pooled | _averages(rows, generated, real, labels, groups)
        protocol = build_protocol_record(reference, extractors, groups, n_real, settings, counts, pooled_counts, few)
        result = {"protocol": protocol, "metrics": metrics, "per_class": rows, "real_vs_real": real_vs_real}
        if memorised is not None:
            result["memorisation"] = memorised
            metrics["auth_pct"] = memorised["overall"]["auth_pct"]
        if points:
            result["truncation"] = truncation_sweep(
                points, real_vs_real.get("inception_score"), FRECHET[headline], truncation_kind
            )
        if reader is not None:
            result["factors"] = reader.report(generated.labels, generated.factors, groups)
        return _to_json_values(result)

    result = broadcast_from_primary(assemble)
    resume_cache.finish(result)
    return result


def _real_vs_real(
    real_by_kind: Mapping[str, RealFeatures],
    labels: np.ndarray,
    groups: Mapping[str, Sequence[int]],
    headline: str,
    settings: Settings,
    reference: ImageSource,
    extractors: Mapping[str, FeatureExtractor],
    cache: Path | None,
) -> dict[str, Any]:
    """Compute the real-vs-real metrics, cached with the features of the real images; on every process."""
    protocol = settings.protocol
    networks = {kind: [extractors[kind].sha256, extractors[kind].description] for kind in real_by_kind}
    facts = [reference.fingerprint, networks, groups, headline, settings.k, dataclasses.asdict(protocol), settings.seed]
    facts += [settings.per_device_batch, jax.devices()[0].device_kind, code_fingerprint()]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def compute(_: int) -> dict[str, np.ndarray]:
        def measure() -> str:
            real = {kind: x.features for kind, x in real_by_kind.items()}
            metrics = real_vs_real_metrics(
                real, labels, groups, headline, settings.k, protocol.inclusive, settings.seed
            )
            return json.dumps(_to_json_values(metrics | real_inception_score(real_by_kind[headline].logits, protocol)))

        return {"metrics": np.array(broadcast_from_primary(measure))}

    folder = None if cache is None else cache / "features" / f"real_vs_real-{digest[:16]}"
    parts = list(resumable_chunks(folder, 1, compute))
    return broadcast_from_primary(lambda: json.loads(str(parts[0]["metrics"])))


def _digest(
    identity: str,
    reference: ImageSource,
    extractors: Mapping[str, FeatureExtractor],
    settings: Settings,
    counts: Counts,
    *others: Any,
) -> str:
    """Return a hash of everything that the result depends on."""
    networks = {kind: [x.sha256, x.description] for kind, x in extractors.items()}
    facts = dataclasses.asdict(settings) | {"prefetch": None}
    inputs = [identity, reference.fingerprint, networks, facts, counts.each.tolist(), others]
    inputs += [jax.devices()[0].device_kind, jax.__version__, code_fingerprint()]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _memorisation(
    trained: RealFeatures,
    train: ImageSource,
    generated: GeneratedFeatures,
    real: RealFeatures,
    labels: np.ndarray,
    headline: str,
    counts: Counts,
    fakes: Fakes,
) -> dict[str, Any]:
    """Measure memorisation by the pooled generated images; held out are the real images that are not in `train`."""
    train_digests = {digest.tobytes() for digest in trained.digests}
    held_out = np.array([digest.tobytes() not in train_digests for digest in real.digests])
    result = memorisation(
        train=trained.features,
        fake=generated.features[headline],
        held_out=real.features[held_out] if held_out.any() else None,
        train_labels=train.labels,
        fake_labels=generated.labels,
        held_out_labels=labels[held_out] if held_out.any() else None,
        k=min(_NUM_NEAREST, len(trained.features)),
    )
    # The first image of each of some classes at even distances from head to tail.
    order = np.argsort(-np.asarray(train.class_counts), kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(len(order), _NUM_EXAMPLES)).round().astype(int)]
    rows = {c: np.flatnonzero(generated.labels == c)[:1] for c in chosen}
    examples = [
        {
            "class": int(c),
            "index": int(counts.start[c]),
            "nearest": result.indices[row[0]],
            "distances": result.distances[row[0]],
        }
        for c, row in rows.items()
        if len(row)
    ]
    if examples and fakes.image_size in (None, (train.resolution, train.resolution, train.channels)):
        requests = np.array([[example["class"], example["index"]] for example in examples])
        images, _ = fakes.extract_features(lambda images: (images,), requests[:, 0].astype(np.int32), requests[:, 1])
        for example, *neighbours in zip(examples, *nearest_in_pixels(images, train, _NUM_NEAREST), strict=True):
            example["pixel_distances"], example["pixel_nearest"] = neighbours
    return result.summary() | {"examples": examples}


def _per_class(
    generated: GeneratedFeatures,
    reference: ImageSource,
    groups: Mapping[str, Sequence[int]],
    n_real: np.ndarray,
    train_counts: Sequence[int] | np.ndarray | None,
) -> list[dict[str, Any]]:
    _, ratios = _w_ratios(generated)
    return [
        {
            "class": c,
            "name": str(reference.class_names[c]),
            "group": next((name for name, ids in groups.items() if c in ids), None),
            "n_train": None if train_counts is None else int(train_counts[c]),
            "n_real": int(n_real[c]),
            **generated.rows[c],
            "w_ratio": None if ratios is None else float(ratios[c]),
        }
        for c in range(reference.num_classes)
    ]


def _averages(
    rows: list[dict[str, Any]],
    generated: GeneratedFeatures,
    real: Mapping[str, np.ndarray],
    labels: np.ndarray,
    groups: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """Compute the averages over classes and groups, and the metrics pooled over groups."""
    metrics = classwise_summary(rows, real)
    metrics |= {f"class_{name}": mean_of(rows, name) for name in ("precision", "recall", "density", "coverage")}
    metrics |= {"class_accuracy": mean_of(rows, "class_accuracy"), "w_ratio": mean_of(rows, "w_ratio")}
    averaged = [*(CLASSWISE[kind] for kind in real), "precision", "recall", "class_accuracy", "w_ratio"]
    for name, ids in groups.items():
        in_real, in_fake = np.isin(labels, ids), np.isin(generated.labels, ids)
        for kind, features in real.items():
            distance = (
                frechet_distance(features[in_real], generated.features[kind][in_fake])
                if in_real.any() and in_fake.any()
                else None
            )
            metrics[f"{name}_{FRECHET[kind]}"] = distance
        metrics |= {f"{name}_{key}": mean_of([rows[c] for c in ids], key) for key in averaged}
    return metrics


def _w_ratios(generated: GeneratedFeatures) -> tuple[float | None, np.ndarray | None]:
    """Compute the W ratio of all classes and of each; None for images from files, which have no w."""
    return within_class_variance_ratio(generated.w, generated.labels) if generated.w.shape[1] else (None, None)


def _to_json_values(value: Any) -> Any:
    """Convert the leaves of a tree to plain Python values, and non-finite numbers to None."""
    if isinstance(value, Mapping):
        return {str(key): _to_json_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json_values(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _to_json_values(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
