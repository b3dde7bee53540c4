"""Class consistency and diversity from known factors of variation, predicted from generated images by a small network.

A procedural data set stores with every image its factors, each uniform in [0, 1] and independent of the class. A network
trained on real images to predict class and factors (`factors.network`) tells whether a generated image is of its class
and where in each factor's range it lies. The result is a nested dict of plain Python values
(``json.dumps(result, allow_nan=False)`` works; undefined values, such as the entropy of one image, are ``None``)::

    {
      "protocol": {"factors", "bins", "num_classes", "n_fake", "n_held_out", "class_groups",
                   "network", "regressor_sha256", "recipe",
                   "training": {...},                           # from the caller, e.g. images, steps, seed
                   "held_out": {"class_accuracy",               # of the network on held-out real images
                                "factors": {<factor>: {"r2", "mae"}}},
                   "headline"},
      "metrics":  {"n_classes",                                 # classes with at least one image
                   "class_accuracy",                            # means over those classes
                   "expected_coverage", "coverage", "coverage_ratio", "entropy",    # means over the factors, too
                   "factors": {<factor>: {"coverage", "coverage_ratio", "entropy"}}},
      "groups":   {<group>: {the keys of "metrics"}},           # means over the group's classes
      "per_class": [{"class", "n", "class_accuracy", "expected_coverage", "coverage", "coverage_ratio", "entropy",
                     "factors": {<factor>: {"coverage", "coverage_ratio", "entropy"}}}, ...],   # in order of class id
      "real_vs_real": {"metrics", "groups", "per_class"},       # the same of held-out real images
      "warnings": [str, ...],
    }

The images of class c are those generated with label c, whatever class they resemble:

* class_accuracy: share of them that the network classifies as c.
* coverage: share of the ``bins`` equal bins of [0, 1] that contain at least one of their factor values.
* expected_coverage: mean coverage of n samples of the true, uniform distribution, 1 - (1 - 1 / bins)^n.
* coverage_ratio: coverage / expected_coverage, clipped at 1, which biases it down: over samples of the true distribution
  the mean is .94 for n = 10, .96 for n = 20, .995 for n = 50 (10 bins).
* entropy: of the histogram over the bins, divided by log(bins): 0 for one bin, 1 for a uniform histogram. The plug-in
  entropy of n uniform samples falls short of log(bins) by about (bins - 1) / (2 n); the correction of Miller 1955 ("Note
  on the bias of information estimates") adds (m - 1) / (2 n) for m occupied bins, and nothing to a collapsed class.
  The sum is clipped at log(bins). The remaining bias over samples of the true distribution: the mean is .88 for n = 10, .96 for n = 20, .99
  for n = 50 (10 bins).

Ratio and entropy need two images. A single stray value fills a bin, so with many images a class coverage forgives what
entropy does not. Both treat one factor at a time: correlated factors can still fill their ranges. Errors of the network
blur all numbers, so compare them with ``held_out`` and ``real_vs_real``, the values of a perfect generator under the same
network; its n is the number of held-out images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from noisytwins_jax.metrics.extractors.weights_file import Params, weights_sha256
from noisytwins_jax.metrics.factors.network import NETWORK, RECIPE, Predictions
from noisytwins_jax.utils.errors import UserError

BINS = 10  # equal bins of [0, 1]
_TRUSTED_R2 = _TRUSTED_ACCURACY = 0.5


def factor_metrics(
    fake_labels: np.ndarray,
    predicted_classes: np.ndarray,
    predicted_factors: np.ndarray,
    factor_names: Sequence[str],
    num_classes: int,
    groups: Mapping[str, Sequence[int] | np.ndarray] | None = None,
) -> dict[str, Any]:
    """Compute class accuracy, and coverage and entropy of every factor, for each class and on average.

    Args:
        fake_labels: integers [n], the labels of generated or of real images.
        predicted_classes: integers [n].
        predicted_factors: float [n, F]; values outside [0, 1] belong to the first and the last bin.
        factor_names: F names.
        num_classes: number of classes.
        groups: name -> class ids.

    Returns:
        ``{"metrics", "groups", "per_class"}`` as described at the top of this module.

    Raises:
        UserError: if the arguments do not match or a factor is not finite.
    """
    labels, classes = np.asarray(fake_labels), np.asarray(predicted_classes)
    values = np.asarray(predicted_factors, np.float64)
    groups = {name: [int(c) for c in ids] for name, ids in (groups or {}).items()}
    _check_metrics(labels, classes, values, factor_names, num_classes, groups)

    n = np.bincount(labels, minlength=num_classes)
    correct = np.bincount(labels[classes == labels], minlength=num_classes)
    which = np.clip(np.floor(values * BINS), 0, BINS - 1).astype(np.int64)
    cells = (labels[:, None] * len(factor_names) + np.arange(len(factor_names))) * BINS + which
    shape = (num_classes, len(factor_names), BINS)
    histogram = np.bincount(cells.ravel(), minlength=int(np.prod(shape))).reshape(shape)

    nan = np.full(num_classes, np.nan)  # becomes None in the result
    accuracy = np.divide(correct, n, out=nan.copy(), where=n > 0)
    any_image, several = (n >= 1)[:, None], (n >= 2)[:, None]
    expected = np.where(n > 0, 1 - (1 - 1 / BINS) ** n, np.nan)
    coverage = np.where(any_image, (histogram > 0).mean(axis=2), np.nan)
    ratio = np.where(several, np.minimum(coverage / expected[:, None], 1), np.nan)
    entropy = np.where(several, _entropy(histogram), np.nan)
    table = {"coverage": coverage, "coverage_ratio": ratio, "entropy": entropy}

    def summary(chosen: np.ndarray) -> dict[str, Any]:
        """Average over the chosen classes."""
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
    """Compute the accuracy of the network on real images that it was not trained on.

    Args:
        labels: integers [n], true classes.
        factors: float [n, F], true factors.
        predictions: for the same images.
        factor_names: F names.

    Returns:
        ``{"class_accuracy", "factors": {name: {"r2", "mae"}}}``: R^2 is 1 - residual / total sum of squares (1 for a
        perfect network, 0 for one that always predicts the mean, None for a constant factor), the mean absolute error
        is in units of the factor's range (.25 for one that always predicts .5).

    Raises:
        UserError: if the arguments do not match.
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
) -> dict[str, Any]:
    """Build the whole report on one generator, ready for JSON.

    Args:
        params: the network's weights.
        fake_labels: integers [n], labels of the generated images.
        fake: predictions for the generated images.
        held_out_labels: integers [m], true classes of real images that the network was not trained on.
        held_out_factors: float [m, F], their true factors.
        held_out: predictions for them.
        factor_names: F names.
        num_classes: number of classes.
        training: plain values that describe the network's training, recorded: images, steps, seed.
        class_groups: name -> class ids, e.g. head, medium and tail.

    Returns:
        The nested dict described at the top of this module.

    Raises:
        UserError: if the arguments do not match or a factor is not finite.
    """
    quality = held_out_quality(held_out_labels, held_out_factors, held_out, factor_names)
    options = {"factor_names": factor_names, "num_classes": num_classes, "groups": class_groups}
    generated = factor_metrics(fake_labels, fake.classes, fake.factors, **options)
    real_vs_real = factor_metrics(held_out_labels, held_out.classes, held_out.factors, **options)
    protocol = {
        "factors": list(factor_names),
        "bins": BINS,
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
        "that fills every factor's range as real images do, up to the limits of this network in real_vs_real",
    }
    warnings = _warnings(quality, generated["per_class"])
    return {"protocol": protocol, **generated, "real_vs_real": real_vs_real, "warnings": warnings}


def _entropy(histogram: np.ndarray) -> np.ndarray:
    """Compute the Shannon entropy over the last axis, Miller-Madow corrected, as a share of its maximum; 0 without counts."""
    n = np.maximum(histogram.sum(axis=-1), 1)
    p = histogram / n[..., None]
    plug_in = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
    correction = np.maximum((histogram > 0).sum(axis=-1) - 1, 0) / (2 * n)
    return np.clip((plug_in + correction) / np.log(histogram.shape[-1]), 0, 1)


def _mean(values: np.ndarray) -> float | None:
    """Average the values that are defined; None if none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def _warnings(quality: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return warnings about numbers that cannot be trusted."""
    warnings = []
    for name, values in quality["factors"].items():
        if values["r2"] is None:
            warnings.append(f"The held-out images cannot show how well the network reads the factor {name}.")
        elif values["r2"] < _TRUSTED_R2:
            warnings.append(
                f"The network reads the factor {name} badly (R^2 {values['r2']:.2f} on held-out images); do not trust "
                "its coverage and entropy."
            )
    accuracy = quality["class_accuracy"]
    if accuracy is not None and accuracy < _TRUSTED_ACCURACY:
        warnings.append(f"The network tells classes badly (accuracy {accuracy:.2f} on held-out images).")
    few = sum(row["n"] < 2 for row in rows)
    if few:
        warnings.append(f"{few} of {len(rows)} classes have fewer than two generated images and no entropy.")
    return warnings


def _check_metrics(
    labels: np.ndarray,
    classes: np.ndarray,
    factors: np.ndarray,
    factor_names: Sequence[str],
    num_classes: int,
    groups: Mapping[str, Sequence[int]],
) -> None:
    if labels.shape != classes.shape or factors.shape != (len(labels), len(factor_names)):
        raise UserError(
            f"{len(labels)} labels, {len(classes)} predicted classes and factors of shape {list(factors.shape)} for "
            f"{len(factor_names)} names do not fit together: give one of each for every image."
        )
    if not np.isfinite(factors).all():
        raise UserError("A predicted factor is not finite: check the factor network's training.")
    if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
        raise UserError(f"Labels must be within 0..{num_classes - 1}, got {labels.min()} to {labels.max()}.")
    for name, ids in groups.items():
        unknown = [c for c in ids if not 0 <= c < num_classes]
        if unknown:
            raise UserError(f"Class group {name!r} must name classes within 0..{num_classes - 1}, got {unknown}.")
