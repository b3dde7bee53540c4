"""Distances of generated images to their nearest training images, AuthPct, and the same of held-out real images.

A generator that copies its training set scores well in every metric of quality. Where a class has five training images, a
sample must be compared with the nearest of them (as in the appendix of BigGAN, Brock et al. 2019).
"""

import dataclasses
from typing import Any

import numpy as np

from noisytwins_jax.metrics.nearest import nearest
from noisytwins_jax.metrics.pairwise_distances import check_features
from noisytwins_jax.utils.errors import UserError

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclasses.dataclass(frozen=True, eq=False)
class Memorisation:
    """Nearest training images of generated images.

    Distances are Euclidean, in feature units, float64; indices are of training images, int64. A fake is authentic if its
    nearest training image is farther from it than from that image's nearest other training image (Alaa et al. 2022,
    section 3.3); within the class, both neighbours are of the fake's class.

    Attributes:
        indices: the k nearest training images of each fake, nearest first, [n_fake, k].
        distances: of each fake to them, [n_fake, k].
        train_distances: of each training image to its nearest other one, [n_train]; None for a single one.
        auth_pct: percentage of authentic fakes; None for a single training image.
        class_indices: as ``indices`` among the images of the fake's class, -1 beyond their number; None without labels.
        class_distances: of each fake to them, NaN where there is none.
        class_train_distances: as ``train_distances`` within the class, NaN for its only image.
        class_auth_pct: percentage of authentic fakes within the class, of the fakes for which it is defined: those of
            classes with two training images or more; None if there is no such fake, or without labels.
        held_out_distances: of each held-out real image to its nearest training image, [n_held_out], or None.
        class_held_out_distances: as ``held_out_distances`` within the class, NaN where it has no training image; None
            without labels.
    """

    indices: np.ndarray
    distances: np.ndarray
    train_distances: np.ndarray | None
    auth_pct: float | None
    class_indices: np.ndarray | None
    class_distances: np.ndarray | None
    class_train_distances: np.ndarray | None
    class_auth_pct: float | None
    held_out_distances: np.ndarray | None
    class_held_out_distances: np.ndarray | None = None

    def summary(self) -> dict[str, Any]:
        """Summarise as plain numbers for a result file; None where undefined.

        ``{"overall": {"auth_pct", "n_train", "n_fake", "n_held_out", "fake_to_train", "held_out_to_train",
        "share_nearer_than_held_out"}, "within_class": the same}``, the distances as ``{"median", "quantiles":
        {"0.01": ...}}``. ``share_nearer_than_held_out`` is the fraction of fakes that are nearer
        to a training image than all but one in a hundred held-out images are: about .01 for a generator that does not
        copy, more for one that does. Without labels there is no ``within_class``.
        """
        counts = {"n_train": self.n_train, "n_fake": len(self.distances)}
        summary = {
            "overall": {
                "auth_pct": self.auth_pct,
                **counts,
                **_compare_distances(self.distances[:, 0], self.held_out_distances),
            }
        }
        if self.class_distances is not None:
            within = _compare_distances(self.class_distances[:, 0], self.class_held_out_distances)
            summary["within_class"] = {"auth_pct": self.class_auth_pct, **counts, **within}
        return summary

    @property
    def n_train(self) -> int:
        """Return the number of training images."""
        return 1 if self.train_distances is None else len(self.train_distances)


def memorisation(
    *,
    train: np.ndarray,
    fake: np.ndarray,
    held_out: np.ndarray | None = None,
    train_labels: np.ndarray | None = None,
    fake_labels: np.ndarray | None = None,
    held_out_labels: np.ndarray | None = None,
    k: int = 5,
) -> Memorisation:
    """Compare fakes, and held-out real images if given, with the training images.

    Distances depend on the extractor, and percentages on the number of training images: compare only results with equal
    ones.

    Args:
        train: features [n_train, d] of the images that the generator was trained on, float32 or float64.
        fake: [n_fake, d].
        held_out: [n_held_out, d] of real images that it was not trained on.
        train_labels: class ids [n_train], with ``fake_labels`` for the neighbours within the class.
        fake_labels: class ids [n_fake].
        held_out_labels: class ids [n_held_out], with ``train_labels``.
        k: nearest training images of each fake, 1 <= k <= n_train; a class may have fewer.

    Raises:
        UserError: if a set is empty, k is out of range, a value is not finite, or the dimensions differ.
        ValueError: if the shapes are not those above, or only one set has labels.
    """
    sets = {"training": train, "generated": fake} | ({} if held_out is None else {"held-out": held_out})
    sets = {name: np.asarray(x) for name, x in sets.items()}
    for name, x in sets.items():
        check_features(name, x)
        if not len(x):
            raise UserError(f"There are no {name} images: memorisation needs at least one.")
        if x.shape[1] != sets["training"].shape[1]:
            raise UserError(
                f"Training and {name} features have {sets['training'].shape[1]} and {x.shape[1]} dimensions: "
                "compute both with the same extractor."
            )
    train, fake = sets["training"], sets["generated"]
    if not 1 <= k <= len(train):
        raise UserError(
            f"k = {k} nearest training images cannot be found among {len(train)}: choose k from 1 to {len(train)}."
        )
    distances, indices = nearest(queries=fake, keys=train, k=k)
    own = nearest(queries=train, keys=train, k=1, exclude_self=True)[0][:, 0] if len(train) > 1 else None
    within = _within_classes(train, fake, train_labels, fake_labels, k)
    if held_out is not None and held_out_labels is not None and train_labels is not None:
        within["class_held_out_distances"] = _nearest_of_class(sets["held-out"], held_out_labels, train, train_labels)
    return Memorisation(
        indices=indices,
        distances=distances,
        train_distances=own,
        auth_pct=None if own is None else _auth_pct(distances[:, 0], own[indices[:, 0]]),
        **within,
        held_out_distances=None if held_out is None else nearest(queries=sets["held-out"], keys=train, k=1)[0][:, 0],
    )


def _within_classes(
    train: np.ndarray, fake: np.ndarray, train_labels: np.ndarray | None, fake_labels: np.ndarray | None, k: int
) -> dict[str, Any]:
    """Compute the attributes of :class:`Memorisation` whose names begin with ``class_``."""
    names = ("class_indices", "class_distances", "class_train_distances", "class_auth_pct")
    if train_labels is None and fake_labels is None:
        return dict.fromkeys(names)
    if train_labels is None or fake_labels is None:
        raise ValueError("neighbours within the class need train_labels and fake_labels.")
    train_labels, fake_labels = np.asarray(train_labels), np.asarray(fake_labels)
    if train_labels.shape != (len(train),) or fake_labels.shape != (len(fake),):
        raise ValueError(
            f"labels must be [{len(train)}] and [{len(fake)}], got {train_labels.shape} and {fake_labels.shape}."
        )
    indices, distances = np.full((len(fake), k), -1, np.int64), np.full((len(fake), k), np.nan)
    own = np.full(len(train), np.nan)
    for label in np.unique(train_labels):
        images, fakes = np.flatnonzero(train_labels == label), np.flatnonzero(fake_labels == label)
        class_train = train[images]
        if len(images) > 1:
            own[images] = nearest(queries=class_train, keys=class_train, k=1, exclude_self=True)[0][:, 0]
        if len(fakes):
            count = min(k, len(images))
            distances[fakes, :count], rows = nearest(queries=fake[fakes], keys=class_train, k=count)
            indices[fakes, :count] = images[rows]
    reach = np.where(indices[:, 0] < 0, np.nan, own[indices[:, 0]])
    defined = ~np.isnan(reach)
    percentage = _auth_pct(distances[defined, 0], reach[defined]) if defined.any() else None
    return dict(zip(names, (indices, distances, own, percentage), strict=True))


def _nearest_of_class(queries: np.ndarray, labels: np.ndarray, keys: np.ndarray, key_labels: np.ndarray) -> np.ndarray:
    """Compute the distance of each query to the nearest key of its class, NaN where there is none."""
    labels, key_labels = np.asarray(labels), np.asarray(key_labels)
    distances = np.full(len(queries), np.nan)
    for label in np.intersect1d(labels, key_labels):
        mine = np.flatnonzero(labels == label)
        distances[mine] = nearest(queries=queries[mine], keys=keys[key_labels == label], k=1)[0][:, 0]
    return distances


def _auth_pct(distances: np.ndarray, reach: np.ndarray) -> float:
    return 100.0 * float((distances > reach).mean())


def _compare_distances(fake: np.ndarray, held_out: np.ndarray | None) -> dict[str, Any]:
    """Summarise the distances of fakes and of held-out images to training images, as in ``summary``, without NaN."""
    fake = fake[~np.isnan(fake)]
    held_out = np.empty(0) if held_out is None else held_out[~np.isnan(held_out)]
    nearer = float((fake < np.quantile(held_out, 0.01)).mean()) if len(held_out) and len(fake) else None
    return {
        "n_held_out": len(held_out) or None,
        "fake_to_train": _distribution(fake),
        "held_out_to_train": _distribution(held_out),
        "share_nearer_than_held_out": nearer,
    }


def _distribution(x: np.ndarray) -> dict[str, Any] | None:
    """Compute median and quantiles; None if there is no value."""
    if not len(x):
        return None
    return {"median": float(np.median(x)), "quantiles": {str(q): float(np.quantile(x, q)) for q in QUANTILES}}
