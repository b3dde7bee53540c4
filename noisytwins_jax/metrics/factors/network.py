"""Network that predicts class and factors of variation from images; `factors.coverage` computes metrics of its output."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from noisytwins_jax.data.source import ImageSource, check_resolution, read_images
from noisytwins_jax.metrics.extractors.weights_file import Params
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.sharding import Layout

_IMAGES_AT_ONCE = 1024  # in the host's memory
_INFERENCE_BATCH = 64  # per device; always padded to it, so that predictions do not depend on the number of images
_PROGRESS_EVERY = 20  # steps
_SMALLEST_STEPS = 10
NETWORK = (
    "conv3x3-32 (stride 2 above 16 px), then stride-2 conv3x3 of 64, 128, 128, ... features down to 4x4, each with "
    "group normalisation and relu; linear-256, relu; class logits and linear factors"
)
RECIPE = {  # what the weights depend on besides the data, the network, the steps and the seed
    "version": 1,
    "optimizer": "adamw, linear warm-up over a tenth of the steps, then a cosine to 0; gradient norm at most 1",
    "learning_rate": 2e-3,
    "weight_decay": 1e-2,
    "loss": "cross-entropy + sum over factors of the squared error in units of the uniform distribution's variance",
    "augmentation": "none: shifts, flips and colours are what the factors are about",
}

_DIRECTION = optax.chain(  # AdamW's; the learning rate, an argument of the step, scales it
    optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.add_decayed_weights(RECIPE["weight_decay"])
)


class FactorNetwork(nn.Module):
    """Convolutions down to 4x4, a hidden layer, and two heads.

    The hidden layer takes the flattened map, not a spatial mean, since position is a factor. With group normalisation, unlike
    batch normalisation, predictions for an image depend on that image alone.
    """

    num_classes: int
    num_factors: int

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Predict class and factors.

        Args:
            images: float32 [n, H, W, C] in [-1, 1], H = W a power of two >= 8.

        Returns:
            Class logits float32 [n, num_classes], and factors float32 [n, num_factors], unbounded but trained towards
            [0, 1].
        """
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
    """Predictions for n images: ``classes`` int32 [n], ``factors`` float32 [n, num_factors] in [0, 1]."""

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
    progress: Callable[[int, int], None] | None = None,
) -> Params:
    """Train a :class:`FactorNetwork` on real images, on one device.

    Deterministic for one seed, machine and library version; in a run of several processes, call it on the primary only
    (`multihost.broadcast_from_primary`). Images of a source are read batch by batch.

    Use a balanced set: after a long-tailed one the network itself is weak on the tail. Faint factors need many images, 1000
    or more of each class where there are few classes: with 200 the network overfits, and R^2 is near 1 on the training
    images and near 0 on others.

    Args:
        images: uint8 [N, H, W, C], H = W a power of two >= 8 and C 1 or 3, or a source of as many images.
        labels: integers [N] in [0, num_classes).
        factors: float [N, F] in [0, 1], true factors of each image.
        num_classes: number of classes.
        seed: of initialisation and of the images' order, which is a new permutation in each pass over them.
        steps: updates, at least 10.
        batch_size: images per update; all of them if there are fewer.
        progress: called with (steps done, steps) every 20 steps and at the end.

    Returns:
        The weights, {layer: {name: float32 array}} on the host.

    Raises:
        UserError: if the arguments do not match, or if training diverges.
    """
    labels, factors = np.asarray(labels), np.asarray(factors, np.float32)
    _check_training(images, labels, factors, num_classes, steps)
    example = _read(images, np.arange(1))
    _check_images(example)
    rng = np.random.default_rng(seed)
    schedule = optax.warmup_cosine_decay_schedule(0.0, RECIPE["learning_rate"], steps // 10, steps)
    rates = np.asarray(schedule(np.arange(steps) + 0.5), np.float32)
    params, optimizer_state = _init(jax.random.key(seed), example, num_classes, factors.shape[1])
    for i, batch in enumerate(_batches(len(labels), batch_size, steps, rng)):
        data = _read(images, batch), labels[batch], factors[batch]
        params, optimizer_state, loss = _step(params, optimizer_state, *data, rates[i], num_classes)
        if progress and ((i + 1) % _PROGRESS_EVERY == 0 or i + 1 == steps):
            jax.block_until_ready(loss)  # count finished steps, not dispatched ones
            progress(i + 1, steps)
    if not np.isfinite(loss):
        raise UserError(
            f"The factor network's loss is {float(loss)} after {steps} steps: check the factors and the images of "
            "the training set."
        )
    return jax.tree.map(np.asarray, params)


def predict(params: Params, images: np.ndarray | ImageSource, num_classes: int) -> Predictions:
    """Predict classes and factors of images, on this process's devices, in batches of one size.

    Args:
        params: weights from `train_regressor`.
        images: uint8 [n, H, W, C] of the resolution and channels that the network was trained on, or a source of them.
        num_classes: as in training.

    Returns:
        The likeliest class, and factors clipped to [0, 1].

    Raises:
        UserError: if type, resolution, channels or number of classes differ from those in training.
    """
    if num_classes != params["classes"]["bias"].size:
        raise UserError(
            f"The factor network knows {params['classes']['bias'].size} classes, not {num_classes}: train one on this "
            "data set."
        )
    if not len(images):
        return Predictions(np.zeros(0, np.int32), np.zeros((0, params["factors"]["bias"].size), np.float32))
    layout = Layout(jax.local_devices())
    variables = layout.replicate_to_devices(params)
    results = []
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        block = _read(images, np.arange(start, min(start + _IMAGES_AT_ONCE, len(images))))
        _check_images(block, params)
        results.append(layout.map_batches(_predict, variables, block, per_device_batch=_INFERENCE_BATCH))
    classes, factors = (np.concatenate(parts) for parts in zip(*results, strict=True))
    return Predictions(classes, factors)


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
    """Update once; called in a Python loop because XLA's convolutions are slow inside a compiled loop on CPUs."""

    def loss_fn(params: Params) -> jax.Array:
        logits, predicted = FactorNetwork(num_classes, factors.shape[1]).apply({"params": params}, _to_float(images))
        squares = 12 * (predicted - factors) ** 2  # 1/12 is the variance of the uniform distribution
        return (optax.softmax_cross_entropy_with_integer_labels(logits, labels) + squares.sum(axis=1)).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(params)
    updates, optimizer_state = _DIRECTION.update(gradients, optimizer_state, params)
    return jax.tree.map(lambda p, u: p - rate * u, params, updates), optimizer_state, loss


@jax.jit
def _predict(params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Predict the likeliest class int32 [n] and factors [n, F] in [0, 1] of images uint8 [n, H, W, C]."""
    model = FactorNetwork(params["classes"]["bias"].size, params["factors"]["bias"].size)
    logits, factors = model.apply({"params": params}, _to_float(images))
    return logits.argmax(axis=1).astype(jnp.int32), jnp.clip(factors, 0.0, 1.0)


def _to_float(images: jax.Array) -> jax.Array:
    """Convert uint8 0..255 to float32 [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def _read(images: np.ndarray | ImageSource, indices: np.ndarray) -> np.ndarray:
    return images[indices] if isinstance(images, np.ndarray) else read_images(images, indices)["image"]


def _batches(count: int, batch_size: int, steps: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield `steps` batches of indices of one size: shuffled passes over `count` images, without their remainders."""
    size = min(batch_size, count)
    per_pass = count // size
    for step in range(steps):
        if step % per_pass == 0:
            order = rng.permutation(count)
        start = step % per_pass * size
        yield order[start : start + size]


def _check_images(images: np.ndarray, params: Params | None = None) -> None:
    """Check that a network can be trained on the images, or that the one with these weights takes them."""
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
) -> None:
    if not len(images) == len(labels) == len(factors) or factors.ndim != 2 or not factors.shape[1]:
        raise UserError(
            f"There are {len(images)} images, {len(labels)} labels and factors of shape {list(factors.shape)}: give "
            "one label and one row of factors for each image."
        )
    if not len(labels):
        raise UserError("There is no image to train the factor network on: give at least one.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"Labels must be within 0..{num_classes - 1}, got {labels.min()} to {labels.max()}.")
    if not ((factors >= 0) & (factors <= 1)).all():  # also true of NaN
        raise UserError("The factors of an image must be within 0 and 1: divide each by its range.")
    if steps < _SMALLEST_STEPS:
        raise UserError(f"The factor network needs at least {_SMALLEST_STEPS} steps of training, got {steps}.")
