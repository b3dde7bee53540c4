"""Class consistency and diversity from known factors: how a generated image was made, read off by a small network.

A procedural data set stores with every image the factors that it was drawn from, each uniform in [0, 1] and
independent of the class. A network that is trained on real images to tell class and factors says of a generated image
whether it is of its class and where in each factor's range it lies. The result is a nested dict of plain Python values
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

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from noisytwins_jax.data.source import ImageSource, check_resolution, read_images
from noisytwins_jax.errors import UserError
from noisytwins_jax.metrics.weights_file import Params, weights_sha256
from noisytwins_jax.sharding import Layout

_IMAGES_AT_ONCE = 1024  # in the host's memory
_INFERENCE_BATCH = 64  # a device; one size, padded: predictions do not depend on how many are asked for
_PROGRESS_EVERY = 20  # steps
_SMALLEST_STEPS = 10
_TRUSTED_R2 = _TRUSTED_ACCURACY = 0.5
NETWORK = (
    "conv3x3-32 (stride 2 above 16 px), then stride-2 conv3x3 of 64, 128, 128, ... features down to 4x4, each with "
    "group normalisation and relu; linear-256, relu; class logits and linear factors"
)
RECIPE = {  # everything that the weights depend on besides the data, the network, the steps and the seed
    "version": 1,
    "optimizer": "adamw, linear warm-up over a tenth of the steps, then a cosine to 0; gradient norm at most 1",
    "learning_rate": 2e-3,
    "weight_decay": 1e-2,
    "loss": "cross-entropy + sum over factors of the squared error in units of the uniform distribution's variance",
    "augmentation": "none: shifts, flips and colours are what the factors are about",
}

_DIRECTION = optax.chain(  # of AdamW; the learning rate, an argument of the step, scales it
    optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.add_decayed_weights(RECIPE["weight_decay"])
)


class FactorNetwork(nn.Module):
    """Convolutions down to 4x4, a hidden layer, and two heads.

    ``__call__``: images float32 [n, H, W, C] in [-1, 1], H = W a power of two >= 8 -> (class logits float32
    [n, num_classes], factors float32 [n, num_factors], unbounded but trained towards [0, 1]).

    The hidden layer sees the flattened map, not a spatial mean, since position is a factor. Group normalisation keeps
    an image's values its own, which batch normalisation does not.
    """

    num_classes: int
    num_factors: int

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See the class."""
        size = images.shape[1]

        def block(x: jax.Array, features: int, stride: int, name: str) -> jax.Array:
            conv = nn.Conv(
                features, (3, 3), stride, padding=1, use_bias=False, precision="highest", name=f"{name}_{x.shape[1]}"
            )
            return nn.relu(nn.GroupNorm(num_groups=8, name=f"norm_{name}_{x.shape[1]}")(conv(x)))

        x = block(images, 32, 1 if size <= 16 else 2, "stem")
        features = 64
        while x.shape[1] > 4:
            x = block(x, features, 2, "conv")
            features = 128
        hidden = nn.relu(nn.Dense(256, precision="highest", name="hidden")(x.reshape(len(x), -1)))
        logits = nn.Dense(self.num_classes, precision="highest", name="classes")(hidden)
        return logits, nn.Dense(self.num_factors, precision="highest", name="factors")(hidden)


class Predictions(NamedTuple):
    """What the network says of n images: ``classes`` int32 [n], ``factors`` float32 [n, num_factors] in [0, 1]."""

    classes: np.ndarray
    factors: np.ndarray


def train_regressor(
    images: np.ndarray | ImageSource,
    labels: np.ndarray,
    factors: np.ndarray,
    num_classes: int,
    seed: int = 0,
    *,
    steps: int = 1000,
    batch_size: int = 64,
    rows: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Params:
    """Trains a :class:`FactorNetwork` on real images, on one device.

    Deterministic for one seed, machine and library version; in a run of several processes it is for the first one
    (``together.on_first_process``). Images of a source are read batch by batch.

    A balanced set serves all classes alike; a long-tailed one leaves the network itself weak on the tail. Factors that
    show faintly need many images, 1000 or more of each class where there are few classes: with 200 the network learns
    them by heart, and R^2 is near 1 on the training images and near 0 on others.

    Args:
        images: uint8 [N, H, W, C], H = W a power of two >= 8 and C 1 or 3, or a source of as many images.
        labels: integers [N] in [0, num_classes).
        factors: float [N, F] in [0, 1], true factors of each image.
        num_classes: number of classes.
        seed: of initialisation and of the images' order, which is a new permutation in each pass over them.
        steps: updates, at least 10.
        batch_size: images an update; all of them if there are fewer.
        rows: integers, the images to train on, for example all but those held out; None for all.
        progress: called with (steps done, steps), now and then and at the end.

    Returns:
        The weights, {layer: {name: float32 array}} on the host.

    Raises:
        UserError: if the arguments do not fit together, or if training diverges.
    """
    labels, factors = np.asarray(labels), np.asarray(factors, np.float32)
    rows = np.arange(len(labels)) if rows is None else np.asarray(rows)
    _check_training(images, labels, factors, num_classes, steps, rows)
    example = _read(images, rows[:1])
    _check_images(example)
    rng = np.random.default_rng(seed)
    schedule = optax.warmup_cosine_decay_schedule(0.0, RECIPE["learning_rate"], steps // 10, steps)
    rates = np.asarray(schedule(np.arange(steps) + 0.5), np.float32)
    params, optimizer_state = _init(jax.random.key(seed), example, num_classes, factors.shape[1])
    for i, batch in enumerate(_batches(rows, batch_size, steps, rng)):
        some = _read(images, batch), labels[batch], factors[batch]
        params, optimizer_state, loss = _step(params, optimizer_state, *some, rates[i], num_classes)
        if progress and ((i + 1) % _PROGRESS_EVERY == 0 or i + 1 == steps):
            jax.block_until_ready(loss)  # steps are done, not only on their way
            progress(i + 1, steps)
    if not np.isfinite(loss):
        raise UserError(
            f"The factor network's loss is {float(loss)} after {steps} steps: look at the factors and the images of "
            "the training set."
        )
    return jax.tree.map(np.asarray, params)


def predict(
    params: Params, images: np.ndarray | ImageSource, num_classes: int, rows: np.ndarray | None = None
) -> Predictions:
    """Classes and factors of images, on this process's devices, in batches of one size.

    Args:
        params: of `train_regressor`.
        images: uint8 [n, H, W, C] of the resolution and channels that the network was trained on, or a source of them.
        num_classes: as in training.
        rows: integers [n], the images to look at; None for all.

    Returns:
        See `Predictions`: the likeliest class, and factors limited to [0, 1].

    Raises:
        UserError: if type, resolution, channels or number of classes differ from those in training.
    """
    if num_classes != params["classes"]["bias"].size:
        raise UserError(
            f"The factor network knows {params['classes']['bias'].size} classes, not {num_classes}: train one on this "
            "data set."
        )
    rows = np.arange(len(images)) if rows is None else np.asarray(rows)
    if not len(rows):
        return Predictions(np.zeros(0, np.int32), np.zeros((0, params["factors"]["bias"].size), np.float32))
    layout = Layout(jax.local_devices())
    variables = layout.put_everywhere(params)
    results = []
    for start in range(0, len(rows), _IMAGES_AT_ONCE):
        some = _read(images, rows[start : start + _IMAGES_AT_ONCE])
        _check_images(some, params)
        results.append(layout.map_rows(_predict, variables, some, size=_INFERENCE_BATCH))
    classes, factors = (np.concatenate(parts) for parts in zip(*results, strict=True))
    return Predictions(classes, factors)


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


@functools.partial(jax.jit, static_argnames=("num_classes", "num_factors"))
def _init(key: jax.Array, images: jax.Array, num_classes: int, num_factors: int) -> tuple[Params, optax.OptState]:
    params = FactorNetwork(num_classes, num_factors).init(key, _to_float(images))["params"]
    return params, _DIRECTION.init(params)


@functools.partial(jax.jit, static_argnames="num_classes", donate_argnums=(0, 1))
def _step(
    params: Params,
    optimizer_state: optax.OptState,
    images: jax.Array,
    labels: jax.Array,
    factors: jax.Array,
    rate: jax.Array,
    num_classes: int,
) -> tuple[Params, optax.OptState, jax.Array]:
    """One update; called in a Python loop because XLA's convolutions are slow inside a compiled one on CPUs."""

    def loss_fn(params: Params) -> jax.Array:
        logits, predicted = FactorNetwork(num_classes, factors.shape[1]).apply({"params": params}, _to_float(images))
        squares = 12 * (predicted - factors) ** 2  # 1/12 is the variance of the uniform distribution
        return (optax.softmax_cross_entropy_with_integer_labels(logits, labels) + squares.sum(axis=1)).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(params)
    updates, optimizer_state = _DIRECTION.update(gradients, optimizer_state, params)
    return jax.tree.map(lambda p, u: p - rate * u, params, updates), optimizer_state, loss


@jax.jit
def _predict(params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Likeliest class int32 [n] and factors [n, F] in [0, 1] of images uint8 [n, H, W, C]."""
    model = FactorNetwork(params["classes"]["bias"].size, params["factors"]["bias"].size)
    logits, factors = model.apply({"params": params}, _to_float(images))
    return logits.argmax(axis=1).astype(jnp.int32), jnp.clip(factors, 0.0, 1.0)


def _to_float(images: jax.Array) -> jax.Array:
    """uint8 0..255 to float32 [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def _read(images: np.ndarray | ImageSource, rows: np.ndarray) -> np.ndarray:
    return images[rows] if isinstance(images, np.ndarray) else read_images(images, rows)["image"]


def _batches(rows: np.ndarray, batch_size: int, steps: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """`steps` batches of one size: passes over `rows`, each in an order of its own and without its remainder."""
    size = min(batch_size, len(rows))
    per_pass = len(rows) // size
    for step in range(steps):
        if step % per_pass == 0:
            order = rng.permutation(rows)
        start = step % per_pass * size
        yield order[start : start + size]


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


def _check_images(images: np.ndarray, params: Params | None = None) -> None:
    """Whether a network can be trained on the images, or one with these weights can read them."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2]:
        raise UserError(
            f"The factor network takes uint8 images of shape [n, H, W, C] with H = W, got {images.dtype} "
            f"{list(images.shape)}: convert them first."
        )
    check_resolution(images.shape[1])
    if params is not None:
        (stem,) = (name for name in params if name.startswith("stem_"))
        expected = (int(stem.removeprefix("stem_")), params[stem]["kernel"].shape[2])
        if (images.shape[1], images.shape[3]) != expected:
            raise UserError(
                f"The factor network was trained on images of {expected[0]} px and {expected[1]} channel(s), got "
                f"{images.shape[1]} px and {images.shape[3]}: train one on this data set."
            )


def _check_training(
    images: np.ndarray | ImageSource,
    labels: np.ndarray,
    factors: np.ndarray,
    num_classes: int,
    steps: int,
    rows: np.ndarray,
) -> None:
    if not len(images) == len(labels) == len(factors) or factors.ndim != 2 or not factors.shape[1]:
        raise UserError(
            f"There are {len(images)} images, {len(labels)} labels and factors of shape {list(factors.shape)}: give "
            "one label and one row of factors for each image."
        )
    if not len(rows):
        raise UserError("There is no image to train the factor network on: give at least one.")
    used = labels[rows]
    if used.min() < 0 or used.max() >= num_classes:
        raise UserError(f"Labels must be within 0..{num_classes - 1}, got {used.min()} to {used.max()}.")
    if not ((factors[rows] >= 0) & (factors[rows] <= 1)).all():  # also true of NaN
        raise UserError("The factors of an image must be within 0 and 1: divide each by its range.")
    if steps < _SMALLEST_STEPS:
        raise UserError(f"The factor network needs at least {_SMALLEST_STEPS} steps of training, got {steps}.")


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
