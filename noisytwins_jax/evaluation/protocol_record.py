"""Check of an evaluation's arguments, and the record of its protocol."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from noisytwins_jax.data.source import ImageSource
from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.metrics.protocols import CLASSIFIER, CLIP
from noisytwins_jax.metrics.settings import Counts, Settings
from noisytwins_jax.utils.errors import UserError

_PUBLISHED_IMAGES = 50_000  # generated images behind published numbers


def check_request(
    reference: ImageSource,
    groups: Mapping[str, Sequence[int]],
    settings: Settings,
    counts: Counts,
    train_counts: Sequence[int] | np.ndarray | None = None,
    sweep: bool = False,
) -> None:
    """Check the arguments of `evaluate_generator` before anything is generated.

    Raises:
        UserError: too few images for the metrics, or invalid groups.
    """
    num_classes, k = reference.num_classes, settings.k
    if k < 1:
        raise UserError(f"k = {k} neighbours make no ball: choose k >= 1.")
    lower = "or lower config.evaluation.neighbours"
    if counts.each.max() < k + 1:
        raise UserError(
            f"k = {k} neighbours need at least {k + 1} generated images of some class, and no class has more than "
            f"{counts.each.max()}: add images, {lower}."
        )
    if counts.pooled.min() < min(2, counts.each.min()):
        raise UserError(
            f"{settings.pooled_images} pooled images are fewer than two for each of {num_classes} classes: raise "
            "config.evaluation.pooled_images."
        )
    if len(reference.labels) < 2 * (k + 1):
        raise UserError(
            f"k = {k} neighbours need at least {2 * (k + 1)} real images (two halves are compared with each other), "
            f"got {len(reference.labels)}: add images, {lower}."
        )
    splits = settings.protocol.splits
    fewest = min(counts.pooled.sum(), len(reference.labels) if sweep else splits)
    if fewest < splits:
        raise UserError(
            f"The Inception Score of the protocol {settings.protocol.name} needs {splits} images or more, and here are "
            f"{fewest}: add images, or choose another config.evaluation.protocol."
        )
    for name, ids in groups.items():
        unknown = [c for c in ids if not 0 <= c < num_classes]
        if unknown:
            raise UserError(f"Class group {name!r} must name classes within 0..{num_classes - 1}, got {unknown}.")
    members = [c for ids in groups.values() for c in ids]
    if len(members) != len(set(members)):
        raise UserError("A class belongs to more than one class group: give each class to at most one.")
    if train_counts is not None and len(train_counts) != num_classes:
        raise UserError(f"train_counts has {len(train_counts)} entries for {num_classes} classes.")


def build_protocol_record(
    reference: ImageSource,
    extractors: Mapping[str, FeatureExtractor],
    groups: Mapping[str, Sequence[int]],
    n_real: np.ndarray,
    settings: Settings,
    counts: Counts,
    pooled_counts: Counts,
    few: Sequence[int] = (),
) -> dict[str, Any]:
    """Build the entry "protocol" of an evaluation: the record of how it was measured.

    Args:
        reference: the real images.
        extractors: by kind, the headline's first.
        groups: name -> class ids.
        n_real: real images of each class [num_classes].
        settings: of the evaluation.
        counts: generated images of each class.
        pooled_counts: those that are pooled over classes.
        few: the few classes that are evaluated alone.
    """
    headline = next(iter(extractors))
    balanced = counts.each.min() == counts.each.max()
    protocol, first = settings.protocol, extractors[headline]
    networks = {
        kind: {"name": x.name, "sha256": x.sha256, "feature_dim": x.feature_dim, "description": x.description}
        for kind, x in extractors.items()
    }
    return {
        "name": protocol.name,
        "extractor": first.name,
        "extractor_sha256": first.sha256,
        "extractor_description": first.description,
        "feature_dim": first.feature_dim,
        "headline_extractor": headline,
        "extractors": networks,
        "reference_fingerprint": reference.fingerprint,
        "reference_split": settings.reference_split,
        "preprocessing": reference.preprocessing,
        "resolution": int(reference.resolution),
        "channels": int(reference.channels),
        "num_classes": int(reference.num_classes),
        "n_real": int(n_real.sum()),
        "n_fake": int(counts.each.sum()),
        "n_fake_per_class": int(counts.each[0]) if balanced else None,
        "n_fake_pooled": int(pooled_counts.pooled.sum()),
        "labels": "balanced" if balanced else "as in the files",
        "k": settings.k,
        "inclusive": protocol.inclusive,
        "inception_score": {
            "logits": "without bias" if protocol.unbiased_logits else "with bias",
            "splits": protocol.splits,
            "shuffle_seed": protocol.shuffle_seed,
        },
        "kid": {
            "subsets": protocol.kid_subsets,
            "subset_size": int(min(protocol.kid_subset_size, n_real.sum(), pooled_counts.pooled.sum())),
        },
        "seed": settings.seed,
        "weights": settings.weights,
        "class_noise": settings.class_noise,
        "truncation_psi": settings.truncation_psi,
        "class_groups": dict(groups),
        "headline": "precision, recall, density, coverage and distances without a class are pooled over all classes"
        + _labels_of_pooled(balanced, natural=pooled_counts is not counts)
        + "; <group>_precision and <group>_recall are means of per-class values",
        "warnings": _warnings(n_real, settings, counts, extractors),
        **({"few_classes": list(few)} if few else {}),
    }


def _labels_of_pooled(balanced: bool, natural: bool) -> str:
    if natural:
        return ", with the class frequencies of the real images"
    return ", with the same number of generated images for each class, or one more" if balanced else ""


def _warnings(
    n_real: np.ndarray, settings: Settings, counts: Counts, extractors: Mapping[str, FeatureExtractor]
) -> list[str]:
    """Return warnings about numbers that are less reliable than they seem."""
    k, dim = settings.k, next(iter(extractors.values())).feature_dim
    classes = {
        "have no real image and no iFID": n_real == 0,
        "have one real image; its covariance counts as zero in iFID": n_real == 1,
        f"have at most k = {k} real images and no precision or recall of their own": n_real <= k,
        f"have no more real images than the {dim} feature dimensions; finite-sample bias raises their iFID": n_real
        <= dim,
    }
    warnings = [f"{int(mask.sum())} of {len(n_real)} classes {what}." for what, mask in classes.items() if mask.any()]
    if settings.protocol.name != "embedded" and counts.pooled.sum() < _PUBLISHED_IMAGES:
        warnings.append(
            f"Published numbers are of {_PUBLISHED_IMAGES} generated images, these of {counts.pooled.sum()}: fewer raise FID."
        )
    if CLIP in extractors and "l14-336" not in extractors[CLIP].name:
        warnings.append(f"CMMD is published with CLIP ViT-L/14 at 336 px; here it is of {extractors[CLIP].name}.")
    if CLASSIFIER in extractors:
        accuracy = extractors[CLASSIFIER].description.get("held_out_accuracy")
        if accuracy is not None and accuracy < 0.5:
            warnings.append(
                f"The classifier recognises {accuracy:.0%} of held-out real images: class accuracy says little."
            )
    return warnings
