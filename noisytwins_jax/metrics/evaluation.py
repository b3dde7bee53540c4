"""One evaluation of a class-conditional generator: overall, class by class, and head/medium/tail.

The result is a nested dict of plain Python values (``json.dumps(result, allow_nan=False)`` works; a number that is
not defined, such as the recall of a class with too few real images, is ``None``)::

    {
      "protocol": {"extractor", "extractor_sha256", "extractor_description", "feature_dim", "reference_fingerprint",
                   "preprocessing",
                   "resolution", "channels", "num_classes", "n_real", "n_fake", "n_fake_per_class", "k", "inclusive",
                   "seed", "weights", "class_noise", "truncation_psi", "class_groups", "headline", "warnings"},
      "metrics":  {"fid",                                        # pooled: balanced fakes against all real images
                   "ifid", "ifid_std", "ifid_median", "ifid_classes_used",      # over classes
                   "precision", "recall", "density", "coverage",                # pooled: the headline values
                   "class_precision", "class_recall",                           # means of the per-class values
                   "class_accuracy", "w_ratio",
                   # and for every group g of class_groups (head, medium, tail):
                   "<g>_ifid", "<g>_fid", "<g>_precision", "<g>_recall", "<g>_class_accuracy", "<g>_w_ratio"},
      "per_class": [{"class", "name", "group", "n_train", "n_real", "n_fake", "ifid", "degenerate", "precision",
                     "recall", "class_accuracy", "w_ratio"}, ...],              # in order of class id
      "floor":    {"n_per_half", "fid", "ifid", "ifid_std", "ifid_median", "ifid_classes_used", "precision", "recall",
                   "class_precision", "class_recall", "<g>_ifid", "<g>_precision", "<g>_recall"},
      "factors":  {...},                                         # where true factors are known: see `factors`
    }

``<g>_fid`` pools the classes of the group; the other ``<g>_*`` average the per-class values, so ``tail_recall`` is the
mean over tail classes of the recall *within* the class. ``floor`` compares one random half of the real images with the
other: what a perfect generator could reach. Its halves are half as large, which by itself raises FID and iFID, so it
is an upper bound of the floor rather than the floor itself.

Protocol: intra-class FID averages over classes with the population standard deviation, as the official NoisyTwins code
does; classes without real images are left out and one real image counts as zero covariance. Precision and recall are
those of Kynkäänniemi et al. 2019, density and coverage those of Naeem et al. 2020.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from noisytwins_jax.data.source import ImageSource
from noisytwins_jax.errors import UserError
from noisytwins_jax.metrics.factor_reader import FactorReader
from noisytwins_jax.metrics.features import FeatureExtractor, Generate, generated_features, reference_features
from noisytwins_jax.metrics.frechet import frechet_distance
from noisytwins_jax.metrics.neighbours import neighbour_metrics
from noisytwins_jax.metrics.w_space import within_class_variance_ratio
from noisytwins_jax.together import on_first_process


def evaluate_generator(
    generate: Generate,
    *,
    reference: ImageSource,
    class_groups: Mapping[str, Sequence[int] | np.ndarray],
    extractor: FeatureExtractor,
    samples_per_class: int = 180,
    k: int = 5,
    seed: int = 0,
    weights: str = "ema",
    train_counts: Sequence[int] | np.ndarray | None = None,
    class_noise: bool = False,
    truncation_psi: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    reader: FactorReader | None = None,
) -> dict[str, Any]:
    """Compares ``samples_per_class`` generated images of every class with all reference images.

    In a run of several processes all of them call it: they share the images, and the first one computes the numbers.

    Args:
        generate: see ``features.generated_features``; the indices of class c are
            c * samples_per_class + (0 .. samples_per_class - 1).
        reference: the real images to compare with.
        class_groups: name -> class ids, e.g. head, medium and tail; a class belongs to at most one
            group, and the values of an empty group are None.
        extractor: gives features and class logits.
        samples_per_class: generated images of each class, at least k + 1.
        k: neighbours of precision, recall, density and coverage.
        seed: the seed behind ``generate``, recorded; it also fixes the split into halves for the floor.
        weights: which generator weights ``generate`` uses ("ema" or "live"), recorded.
        train_counts: training images of each class [num_classes], recorded in the rows.
        class_noise: whether ``generate`` perturbs the class embedding (NoisyTwins evaluates without), recorded.
        truncation_psi: truncation that ``generate`` applies, recorded.
        progress: called with (images done, images) of this process's share, now and then.
        reader: for data whose true factors are known.

    Returns:
        The nested dict described at the top of this module.

    Raises:
        UserError: if the arguments do not fit together (before anything is generated), or if the generator's w holds
            NaN or infinity.
    """
    num_classes = int(reference.num_classes)
    groups = {name: [int(c) for c in ids] for name, ids in class_groups.items()}
    _check_request(reference, groups, samples_per_class, k, train_counts)
    real = reference_features(reference, extractor)
    fake_labels = np.repeat(np.arange(num_classes, dtype=np.int32), samples_per_class)
    looks = {} if reader is None else {"look": reader}
    fake, predicted, w, *read = generated_features(generate, extractor, fake_labels, reference, progress, **looks)
    labels = np.asarray(reference.labels)

    def measure() -> dict[str, Any]:
        ratio, ratios = within_class_variance_ratio(w, fake_labels)
        counts = np.bincount(labels, minlength=num_classes)
        rows = []
        for c in range(num_classes):
            rows.append(
                {
                    "class": c,
                    "name": str(reference.class_names[c]),
                    "group": next((name for name, ids in groups.items() if c in ids), None),
                    "n_train": None if train_counts is None else int(train_counts[c]),
                    "n_real": int(counts[c]),
                    "n_fake": samples_per_class,
                    **_compare_class(real[labels == c], fake[fake_labels == c], k),
                    "class_accuracy": float((predicted[fake_labels == c] == c).mean()),
                    "w_ratio": float(ratios[c]),
                }
            )

        metrics = {"fid": frechet_distance(real, fake), **_ifid_summary(rows)}
        metrics |= _neighbours(real, fake, k)
        metrics |= {"class_precision": _mean(rows, "precision"), "class_recall": _mean(rows, "recall")}
        metrics |= {"class_accuracy": _mean(rows, "class_accuracy"), "w_ratio": ratio}
        for name, ids in groups.items():
            in_real, in_fake = np.isin(labels, ids), np.isin(fake_labels, ids)
            metrics[f"{name}_fid"] = frechet_distance(real[in_real], fake[in_fake]) if in_real.any() else None
            for key in ("ifid", "precision", "recall", "class_accuracy", "w_ratio"):
                metrics[f"{name}_{key}"] = _mean([rows[c] for c in ids], key)

        protocol = {
            "extractor": extractor.name,
            "extractor_sha256": extractor.sha256,
            "extractor_description": extractor.description,
            "feature_dim": int(real.shape[1]),
            "reference_fingerprint": reference.fingerprint,
            "preprocessing": reference.preprocessing,
            "resolution": int(reference.resolution),
            "channels": int(reference.channels),
            "num_classes": num_classes,
            "n_real": len(labels),
            "n_fake": len(fake_labels),
            "n_fake_per_class": samples_per_class,
            "k": k,
            "inclusive": False,
            "seed": seed,
            "weights": weights,
            "class_noise": class_noise,
            "truncation_psi": truncation_psi,
            "class_groups": groups,
            "headline": "precision, recall, density, coverage and fid are pooled over all classes, with the same number "
            "of generated images for each class; <group>_precision and <group>_recall are means of per-class values",
            "warnings": _warnings(counts, real.shape[1], k),
        }
        floor = _real_floor(real, labels, groups, k, seed)
        result = {"protocol": protocol, "metrics": metrics, "per_class": rows, "floor": floor}
        if reader is not None:
            result["factors"] = reader.report(fake_labels, read, groups)
        return _plain(result)

    return on_first_process(measure)


def _check_request(
    reference: ImageSource,
    groups: Mapping[str, Sequence[int]],
    samples_per_class: int,
    k: int,
    train_counts: Sequence[int] | np.ndarray | None,
) -> None:
    """Everything that can be wrong with the arguments, before anything is generated."""
    num_classes = reference.num_classes
    if k < 1:
        raise UserError(f"k = {k} neighbours make no ball: choose k >= 1.")
    if samples_per_class < k + 1:
        raise UserError(
            f"k = {k} neighbours need at least {k + 1} generated images per class, got {samples_per_class}."
        )
    if len(reference.labels) < 2 * (k + 1):
        raise UserError(
            f"k = {k} neighbours need at least {2 * (k + 1)} real images (the floor compares two halves), "
            f"got {len(reference.labels)}: lower k or add images."
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


def _compare_class(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, Any]:
    """iFID, precision and recall within one class; None where there are too few images."""
    enough = min(len(real), len(fake)) > k
    within = _neighbours(real, fake, k) if enough else {}
    return {
        "ifid": frechet_distance(real, fake) if len(real) else None,
        "degenerate": len(real) < 2,  # no image: no value; one image: zero covariance
        "precision": within.get("precision"),
        "recall": within.get("recall"),
    }


def _neighbours(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    with warnings.catch_warnings():  # a collapsed class shows in the values; no need to say so once for each class
        warnings.simplefilter("ignore", UserWarning)
        return neighbour_metrics(real=real, fake=fake, k=k)._asdict()


def _real_floor(
    real: np.ndarray, labels: np.ndarray, groups: Mapping[str, Sequence[int]], k: int, seed: int
) -> dict[str, Any]:
    """The same metrics, one random half of every class's real images against the other (classes of four or more)."""
    rng = np.random.default_rng(seed)
    halves, rows = ([], []), {}
    for c in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == c))
        size = len(order) // 2
        first, second = order[:size], order[size : 2 * size]
        halves[0].extend(first)
        halves[1].extend(second)
        if size >= 2:
            rows[int(c)] = _compare_class(real[first], real[second], k)
    first, second = real[halves[0]], real[halves[1]]
    if len(first) <= k:  # many classes of a single image
        return {}
    pooled = _neighbours(first, second, k)
    floor = {"n_per_half": len(first), "fid": frechet_distance(first, second), **_ifid_summary(list(rows.values()))}
    floor |= {"precision": pooled["precision"], "recall": pooled["recall"]}
    floor |= {f"class_{key}": _mean(list(rows.values()), key) for key in ("precision", "recall")}
    for name, ids in groups.items():
        group = [rows[c] for c in ids if c in rows]
        floor |= {f"{name}_{key}": _mean(group, key) for key in ("ifid", "precision", "recall")}
    return floor


def _ifid_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, population standard deviation and median of iFID over the classes that have one."""
    values = [row["ifid"] for row in rows if row["ifid"] is not None]
    mean, std, median = (float(f(values)) if values else None for f in (np.mean, np.std, np.median))
    return {"ifid": mean, "ifid_std": std, "ifid_median": median, "ifid_classes_used": len(values)}


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Mean over the rows that have a value; None if none has."""
    values = [row[key] for row in rows if row[key] is not None]
    return float(np.mean(values)) if values else None


def _warnings(counts: np.ndarray, dim: int, k: int) -> list[str]:
    """Sentences about small classes, whose numbers say less than they seem to."""
    found = {
        "have no real image and no iFID": counts == 0,
        "have one real image; its covariance counts as zero in iFID": counts == 1,
        f"have at most k = {k} real images and no precision or recall of their own": counts <= k,
        f"have no more real images than the {dim} feature dimensions; finite-sample bias raises their iFID": counts
        <= dim,
    }
    return [f"{int(mask.sum())} of {len(counts)} classes {what}." for what, mask in found.items() if mask.any()]


def _plain(value: Any) -> Any:
    """The same tree with plain Python leaves, and None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
