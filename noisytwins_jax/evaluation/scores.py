"""Metrics from features of real and generated images: for one class, for all classes pooled, and real against real."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from noisytwins_jax.metrics.frechet import frechet_distance
from noisytwins_jax.metrics.inception_score import inception_score
from noisytwins_jax.metrics.kernel_distances import cmmd, kid
from noisytwins_jax.metrics.neighbours import neighbour_metrics
from noisytwins_jax.metrics.protocols import CLASSIFIER, CLIP, DINOV2, FILE, INCEPTION, Protocol

# Of all classes pooled, and of each class; the kinds that share a name are never in one evaluation as distances.
FRECHET = {CLASSIFIER: "fid", INCEPTION: "fid", FILE: "fid", CLIP: "fid_clip", DINOV2: "fd_dinov2"}
CLASSWISE = {CLASSIFIER: "ifid", INCEPTION: "ifid", FILE: "ifid", CLIP: "ifid_clip", DINOV2: "ifd_dinov2"}
NEIGHBOURS = ("precision", "recall", "density", "coverage")
Arrays = Mapping[str, np.ndarray]  # kind of extractor -> features [n, d]


def class_scores(real: Arrays, fake: Arrays, headline: str, k: int, inclusive: bool) -> dict[str, Any]:
    """Compute the Fréchet distances of one class, and the headline's precision, recall, density and coverage within it.

    Values are None where there are too few images; one real image counts as zero covariance and is flagged
    ``degenerate``.
    """
    num_real, num_fake = len(real[headline]), len(fake[headline])
    enough = min(num_real, num_fake) > k
    neighbours = neighbour_scores(real[headline], fake[headline], k, inclusive) if enough else {}
    return {
        **{
            CLASSWISE[kind]: frechet_distance(real[kind], fake[kind]) if num_real and num_fake else None
            for kind in real
        },
        "degenerate": min(num_real, num_fake) < 2,
        **{name: neighbours.get(name) for name in NEIGHBOURS},
    }


def pooled_scores(
    real: Arrays,
    fake: Arrays,
    logits: np.ndarray,
    *,
    headline: str,
    k: int,
    protocol: Protocol,
    single_class: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compute the metrics of all classes pooled.

    Args:
      real: features of the real images by kind of extractor.
      fake: features of generated images by kind of extractor.
      logits: of the headline extractor on the generated images ``[n, c]``; c = 0 for no Inception Score.
      headline: the extractor kind of FID, KID, precision, recall, density and coverage.
      k: neighbours.
      protocol: of the Inception Score and KID, and whether balls are closed.
      single_class: where there is one class, its `class_scores` of the same images, to avoid computing them again.
    """
    scores = _distances_and_neighbours(real, fake, headline, k, protocol.inclusive, single_class)
    scores["kid"], scores["kid_std"] = kid(
        real=real[headline],
        fake=fake[headline],
        subsets=protocol.kid_subsets,
        subset_size=protocol.kid_subset_size,
    )
    if logits.shape[1]:
        score, deviation = inception_score(logits, splits=protocol.splits, shuffle_seed=protocol.shuffle_seed)
        scores |= {"inception_score": score, "inception_score_std": deviation}
    if CLIP in real:
        scores["cmmd"] = cmmd(real=real[CLIP], fake=fake[CLIP])
    return scores


def _distances_and_neighbours(
    real: Arrays, fake: Arrays, headline: str, k: int, inclusive: bool, single_class: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Compute pooled Fréchet distances, precision, recall, density and coverage, or take those of a single class."""
    if single_class is not None:
        distances = {FRECHET[kind]: single_class[CLASSWISE[kind]] for kind in real}
        return distances | {name: single_class[name] for name in NEIGHBOURS}
    distances = {FRECHET[kind]: frechet_distance(real[kind], fake[kind]) for kind in real}
    return distances | neighbour_scores(real[headline], fake[headline], k, inclusive)


def real_inception_score(logits: np.ndarray, protocol: Protocol) -> dict[str, Any]:
    """Compute the Inception Score of real images from the headline's logits ``[n, c]``; empty without logits or images."""
    if not logits.shape[1] or len(logits) < protocol.splits:
        return {}
    score, deviation = inception_score(logits, splits=protocol.splits, shuffle_seed=protocol.shuffle_seed)
    return {"inception_score": score, "inception_score_std": deviation}


def neighbour_scores(real: np.ndarray, fake: np.ndarray, k: int, inclusive: bool = False) -> dict[str, float]:
    """Compute precision, recall, density and coverage."""
    with warnings.catch_warnings():  # a warning for each collapsed class would repeat what the values show
        warnings.simplefilter("ignore", UserWarning)
        return neighbour_metrics(real=real, fake=fake, k=k, inclusive=inclusive)._asdict()


def real_vs_real_metrics(
    real: Arrays,
    labels: np.ndarray,
    groups: Mapping[str, Sequence[int]],
    headline: str,
    k: int,
    inclusive: bool,
    seed: int,
) -> dict[str, Any]:
    """Compute the same metrics of one random half of every class's real images against the other.

    Classes of a single image are left out of the pooled metrics, and classes of fewer than four have no metrics of their
    own.
    """
    rng = np.random.default_rng(seed)
    halves, rows = ([], []), {}
    classes = np.unique(labels)
    for c in classes:
        order = rng.permutation(np.flatnonzero(labels == c))
        size = len(order) // 2
        first, second = order[:size], order[size : 2 * size]
        halves[0].extend(first)
        halves[1].extend(second)
        if size >= 2:
            rows[int(c)] = class_scores(_at(real, first), _at(real, second), headline, k, inclusive)
    first, second = _at(real, halves[0]), _at(real, halves[1])
    if len(halves[0]) <= k:  # many classes of a single image
        return {}
    metrics = {"n_per_half": len(halves[0])}
    single_class = rows[int(classes[0])] if len(classes) == 1 else None
    metrics |= _distances_and_neighbours(first, second, headline, k, inclusive, single_class)
    metrics |= classwise_summary(list(rows.values()), real)
    metrics |= {f"class_{name}": mean_of(rows.values(), name) for name in ("precision", "recall")}
    for name, ids in groups.items():
        group = [rows[c] for c in ids if c in rows]
        classwise = [CLASSWISE[kind] for kind in real]
        metrics |= {f"{name}_{key}": mean_of(group, key) for key in (*classwise, "precision", "recall")}
    return metrics


def classwise_summary(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Compute mean, population standard deviation and median of the classes' Fréchet distances, ignoring None."""
    summary: dict[str, Any] = {}
    for kind in kinds:
        name = CLASSWISE[kind]
        values = [row[name] for row in rows if row[name] is not None]
        mean, std, median = (float(f(values)) if values else None for f in (np.mean, np.std, np.median))
        summary |= {name: mean, f"{name}_std": std, f"{name}_median": median, "ifid_classes_used": len(values)}
    return summary


def mean_of(rows: Any, key: str) -> float | None:
    """Compute the mean over the rows that have a value; None if none has."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.mean(values)) if values else None


def _at(arrays: Arrays, rows: Any) -> dict[str, np.ndarray]:
    rows = np.asarray(rows, np.int64)
    return {kind: features[rows] for kind, features in arrays.items()}
