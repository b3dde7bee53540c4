"""Class consistency and diversity from known factors: how a generated image was made, read off by a small network.

A procedural data set stores with every image the factors that it was drawn from, each uniform in [0, 1] and
independent of the class. A network that is trained on real images to tell class and factors (`factor_network`) says of a
generated image whether it is of its class and where in each factor's range it lies. The result is a nested dict of plain Python values
(``json.dumps(result, allow_nan=False)`` works; what is not defined, such as the entropy of one image, is ``None``)::

    {
      "protocol": {"factors", "bins", "num_classes", "n_fake", "n_held_out", "class_groups",
                   "network", "regressor_sha256", "recipe",
                   "training": {...},                           # as the caller gives it, e.g. images, steps, seed
                   "held_out": {"class_accuracy",               # of the network on real images it has not seen
                                "factors": {<factor>: {"r2", "mae"}}},
                   "headline"},
      "metrics":  {"n_classes",                                 # classes with at least one image
                   "class_accuracy",                            # means over those classes
                   "expected_coverage", "coverage", "coverage_ratio", "entropy",    # means over the factors, too
                   "factors": {<factor>: {"coverage", "coverage_ratio", "entropy"}}},
      "groups":   {<group>: {the keys of "metrics"}},           # means over the group's classes
      "per_class": [{"class", "n", "class_accuracy", "expected_coverage", "coverage", "coverage_ratio", "entropy",
                     "factors": {<factor>: {"coverage", "coverage_ratio", "entropy"}}}, ...],   # in order of class id
      "floor":    {"metrics", "groups", "per_class"},           # the same of held-out real images
      "warnings": [sentences],
    }

The images of class c are those that were asked for as class c, whatever class they show:

* class_accuracy: share of them that the network takes for c.
* coverage: share of the ``bins`` equal bins of [0, 1] that hold at least one of their factor values.
* expected_coverage: what n draws of the true, uniform distribution cover on average, 1 - (1 - 1 / bins)^n.
* coverage_ratio: coverage / expected_coverage, at most 1. The limit takes more from chance highs than from lows: over
  true draws the mean is .94 for n = 10, .96 for n = 20, .995 for n = 50 (10 bins).
* entropy: of the histogram over the bins, divided by log(bins): 0 for one bin, 1 for a uniform histogram. The plug-in
  entropy of n uniform draws falls short of log(bins) by about (bins - 1) / (2 n); the correction of Miller 1955 ("Note
  on the bias of information estimates") adds (m - 1) / (2 n) for m occupied bins, and nothing to a collapsed class.
  The sum is limited to log(bins). What bias remains over true draws: the mean is .88 for n = 10, .96 for n = 20, .99
  for n = 50 (10 bins).

Ratio and entropy need two images. A single stray value fills a bin, so with many images a class coverage forgives what
entropy does not. Both look at one factor at a time: factors that are tied to each other can still fill their ranges.
Wrong values of the network blur all numbers, so they are to be read beside ``held_out`` and ``floor``, which say what a
perfect generator gets from the same network; its n is that of the held-out images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from noisytwins_jax.metrics.extractors.weights_file import Params, weights_sha256
from noisytwins_jax.metrics.factors.network import NETWORK, RECIPE, Predictions
from noisytwins_jax.utils.errors import UserError

_TRUSTED_R2 = _TRUSTED_ACCURACY = 0.5


def factor_metrics(
    fake_labels: np.ndarray,
    predicted_classes: np.ndarray,
    predicted_factors: np.ndarray,
    factor_names: Sequence[str],
    num_classes: int,
    bins: int = 10,
    groups: Mapping[str, Sequence[int] | np.ndarray] | None = None,
) -> dict[str, Any]:
    """Class accuracy, and coverage and entropy of every factor, class by class and on average.

    Args:
        fake_labels: integers [n], the classes that were asked for. Real images and their labels do as well.
        predicted_classes: integers [n].
        predicted_factors: float [n, F]; values beyond [0, 1] count to the first and the last bin.
        factor_names: F names.
        num_classes: number of classes.
        bins: equal bins of [0, 1], at least 2.
        groups: name -> class ids.

    Returns:
        ``{"metrics", "groups", "per_class"}`` as described at the top of this module.

    Raises:
        UserError: if the arguments do not fit together or a factor is not finite.
    """
    labels, classes = np.asarray(fake_labels), np.asarray(predicted_classes)
    values = np.asarray(predicted_factors, np.float64)
    groups = {name: [int(c) for c in ids] for name, ids in (groups or {}).items()}
    _check_metrics(labels, classes, values, factor_names, num_classes, bins, groups)

    n = np.bincount(labels, minlength=num_classes)
    correct = np.bincount(labels[classes == labels], minlength=num_classes)
    which = np.clip(np.floor(values * bins), 0, bins - 1).astype(np.int64)
    cells = (labels[:, None] * len(factor_names) + np.arange(len(factor_names))) * bins + which
    shape = (num_classes, len(factor_names), bins)
    histogram = np.bincount(cells.ravel(), minlength=int(np.prod(shape))).reshape(shape)

    nan = np.full(num_classes, np.nan)  # stands for None until the end
    accuracy = np.divide(correct, n, out=nan.copy(), where=n > 0)
    some, several = (n >= 1)[:, None], (n >= 2)[:, None]
    expected = np.where(n > 0, 1 - (1 - 1 / bins) ** n, np.nan)
    coverage = np.where(some, (histogram > 0).mean(axis=2), np.nan)
    ratio = np.where(several, np.minimum(coverage / expected[:, None], 1), np.nan)
    entropy = np.where(several, _entropy(histogram), np.nan)
    table = {"coverage": coverage, "coverage_ratio": ratio, "entropy": entropy}

    def summary(chosen: np.ndarray) -> dict[str, Any]:
        """Means over the chosen classes."""
        return {
            "class_accuracy": _mean(accuracy[chosen]),
            "expected_coverage": _mean(expected[chosen]),
            **{key: _mean(value[chosen]) for key, value in table.items()},
            "factors": {
                name: {key: _mean(value[chosen, f]) for key, value in table.items()}
                for f, name in enumerate(factor_names)
            },
        }

    def mean_over(ids: Sequence[int]) -> dict[str, Any]:
        chosen = np.array([c for c in ids if n[c]], dtype=np.int64)
        return {"n_classes": len(chosen), **summary(chosen)}

    return {
        "metrics": mean_over(range(num_classes)),
        "groups": {name: mean_over(ids) for name, ids in groups.items()},
        "per_class": [{"class": c, "n": int(n[c]), **summary(np.array([c]))} for c in range(num_classes)],
    }


def held_out_quality(
    labels: np.ndarray, factors: np.ndarray, predictions: Predictions, factor_names: Sequence[str]
) -> dict[str, Any]:
    """How good the network is on real images that it was not trained on.

    Args:
        labels: integers [n], true classes.
        factors: float [n, F], true factors.
        predictions: of the same images.
        factor_names: F names.

    Returns:
        ``{"class_accuracy", "factors": {name: {"r2", "mae"}}}``: R^2 is 1 - residual / total sum of squares (1 for a
        perfect network, 0 for one that always says the mean, None for a factor that is constant), the mean absolute
        error is in units of the factor's range (.25 for one that always says .5).

    Raises:
        UserError: if the arguments do not fit together.
    """
    labels, factors = np.asarray(labels), np.asarray(factors, np.float64)
    shape = (len(labels), len(factor_names))
    if not factors.shape == np.shape(predictions.factors) == shape or len(predictions.classes) != len(labels):
        raise UserError(
            f"True and predicted factors must both be of shape {list(shape)}, but they are {list(factors.shape)} and "
            f"{list(np.shape(predictions.factors))}: give both for the same images."
        )
    if not len(labels):
        return {"class_accuracy": None, "factors": {name: {"r2": None, "mae": None} for name in factor_names}}
    error = np.asarray(predictions.factors, np.float64) - factors
    total = ((factors - factors.mean(axis=0)) ** 2).sum(axis=0)
    residual = (error**2).sum(axis=0)
    return {
        "class_accuracy": float((predictions.classes == labels).mean()),
        "factors": {
            name: {
                "r2": float(1 - residual[f] / total[f]) if total[f] > 0 else None,
                "mae": float(np.abs(error[:, f]).mean()),
            }
            for f, name in enumerate(factor_names)
        },
    }


def factor_report(
    params: Params,
    *,
    fake_labels: np.ndarray,
    fake: Predictions,
    held_out_labels: np.ndarray,
    held_out_factors: np.ndarray,
    held_out: Predictions,
    factor_names: Sequence[str],
    num_classes: int,
    training: Mapping[str, Any],
    class_groups: Mapping[str, Sequence[int] | np.ndarray],
    bins: int = 10,
) -> dict[str, Any]:
    """Everything about one generator, ready for JSON.

    Args:
        params: the network's weights.
        fake_labels: integers [n], the classes that were asked for.
        fake: predictions for the generated images.
        held_out_labels: integers [m], true classes of real images that the network was not trained on.
        held_out_factors: float [m, F], their true factors.
        held_out: predictions for them.
        factor_names: F names.
        num_classes: number of classes.
        training: plain values about the network's training, recorded: images, steps, seed.
        class_groups: name -> class ids, e.g. head, medium and tail.
        bins: equal bins of [0, 1].

    Returns:
        The nested dict described at the top of this module.

    Raises:
        UserError: if the arguments do not fit together or a factor is not finite.
    """
    quality = held_out_quality(held_out_labels, held_out_factors, held_out, factor_names)
    options = {"factor_names": factor_names, "num_classes": num_classes, "bins": bins, "groups": class_groups}
    measured = factor_metrics(fake_labels, fake.classes, fake.factors, **options)
    floor = factor_metrics(held_out_labels, held_out.classes, held_out.factors, **options)
    protocol = {
        "factors": list(factor_names),
        "bins": bins,
        "num_classes": num_classes,
        "n_fake": len(fake_labels),
        "n_held_out": len(held_out_labels),
        "class_groups": {name: [int(c) for c in ids] for name, ids in class_groups.items()},
        "network": NETWORK,
        "regressor_sha256": weights_sha256(params),
        "recipe": dict(RECIPE),
        "training": dict(training),
        "held_out": quality,
        "headline": "means over classes of values within each class; coverage_ratio and entropy are 1 for a generator "
        "that fills every factor's range as real images do, up to what floor says of this network",
    }
    return {"protocol": protocol, **measured, "floor": floor, "warnings": _warnings(quality, measured["per_class"])}


def _entropy(histogram: np.ndarray) -> np.ndarray:
    """Shannon entropy over the last axis with the Miller-Madow correction, divided by its maximum; 0 without counts."""
    n = np.maximum(histogram.sum(axis=-1), 1)
    p = histogram / n[..., None]
    plug_in = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
    correction = np.maximum((histogram > 0).sum(axis=-1) - 1, 0) / (2 * n)
    return np.clip((plug_in + correction) / np.log(histogram.shape[-1]), 0, 1)


def _mean(values: np.ndarray) -> float | None:
    """Mean of the values that are defined; None if none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def _warnings(quality: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences about numbers that say less than they seem to."""
    found = []
    for name, values in quality["factors"].items():
        if values["r2"] is None:
            found.append(f"The held-out images say nothing of how well the network reads the factor {name}.")
        elif values["r2"] < _TRUSTED_R2:
            found.append(
                f"The network reads the factor {name} badly (R^2 {values['r2']:.2f} on held-out images); do not trust "
                "its coverage and entropy."
            )
    accuracy = quality["class_accuracy"]
    if accuracy is not None and accuracy < _TRUSTED_ACCURACY:
        found.append(f"The network tells classes badly (accuracy {accuracy:.2f} on held-out images).")
    few = sum(row["n"] < 2 for row in rows)
    if few:
        found.append(f"{few} of {len(rows)} classes have fewer than two generated images and no entropy.")
    return found


def _check_metrics(
    labels: np.ndarray,
    classes: np.ndarray,
    factors: np.ndarray,
    factor_names: Sequence[str],
    num_classes: int,
    bins: int,
    groups: Mapping[str, Sequence[int]],
) -> None:
    if bins < 2:
        raise UserError(f"Coverage and entropy need at least 2 bins, got {bins}.")
    if labels.shape != classes.shape or factors.shape != (len(labels), len(factor_names)):
        raise UserError(
            f"{len(labels)} labels, {len(classes)} predicted classes and factors of shape {list(factors.shape)} for "
            f"{len(factor_names)} names do not fit together: give one of each for every image."
        )
    if not np.isfinite(factors).all():
        raise UserError("A predicted factor is not finite: look at the factor network's training.")
    if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
        raise UserError(f"Labels must be within 0..{num_classes - 1}, got {labels.min()} to {labels.max()}.")
    for name, ids in groups.items():
        unknown = [c for c in ids if not 0 <= c < num_classes]
        if unknown:
            raise UserError(f"Class group {name!r} must name classes within 0..{num_classes - 1}, got {unknown}.")
