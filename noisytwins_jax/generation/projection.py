"""Projection of an image into StyleGAN2's W: the point whose image is closest to it.

After Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, Sec. 5 and appendix D: Adam from
the mean w, with learning-rate ramps and noise on w that decays to zero, against local minima. Differences: in place of
LPIPS, the distance is that of pixels at several sizes, plus one of features if given; and per-pixel noise is the
generator's stored one, not optimised.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from noisytwins_jax.generation.trained_generator import TrainedGenerator
from noisytwins_jax.utils.errors import UserError

Array = jax.Array
Features = Callable[[Array], Array]  # images [n, H, W, C], floats from 0 to 255 -> features [n, d]

RAMP_UP, RAMP_DOWN, NOISE = 0.05, 0.25, 0.75  # fractions of the steps with learning-rate ramps, and with noise on w
_CHUNK = 50  # steps in a call of the program
_SMALLEST = 4  # pixels: side of the smallest images that are compared
_ADAM = optax.scale_by_adam(b1=0.9, b2=0.999)


@dataclass(frozen=True, eq=False)
class Projection:
    """Result of `project`.

    Attributes:
      w: float32 ``[1, w_dim]``, or ``[1, num_ws, w_dim]`` with each layer's own, for `TrainedGenerator.synthesize`.
      image: uint8 ``[H, W, C]``, the generator's image of it.
      losses: float32 ``[steps]``, the distance at each step, including the noise on w.
    """

    w: np.ndarray
    image: np.ndarray
    losses: np.ndarray


def project(
    trained: TrainedGenerator,
    image: np.ndarray,
    steps: int = 500,
    label: int | None = None,
    per_layer: bool = False,
    features: Features | None = None,
    feature_weight: float = 1.0,
    learning_rate: float = 0.1,
    noise: float = 0.05,
    noise_mode: str = "const",
    seed: int = 0,
    report: Callable[[int, float], None] | None = None,
) -> Projection:
    """Search W by gradient descent for the point whose image is closest to a given one.

    Args:
      trained: a StyleGAN2.
      image: uint8 ``[H, W, C]``, of the size of the generator's images.
      steps: number of steps of Adam.
      label: class whose mean w to start from; None for the mean over all classes.
      per_layer: whether every layer gets its own w (W+): closer to the image, further from the generator's distribution.
      features: adds ``|f(x) - f(image)|² / |f(image)|²`` with this function f of pixel values to the distance; for example
        an extractor, ``lambda x: extractor.apply(extractor.variables, x)[0]``. The same function object is compiled once.
      feature_weight: weight of the distance of features.
      learning_rate: maximum of the schedule.
      noise: initial standard deviation of the noise on w, in units of the root mean square distance of w from its mean.
      noise_mode: per-pixel noise, ``"const"`` (the stored one) or ``"none"``.
      seed: of the random numbers.
      report: called with the number of steps done and the distance, every 50 steps.

    Raises:
      UserError: the generator is no StyleGAN2, the image has another size, an argument is out of range, or w has
        diverged.
    """
    generator = trained.stylegan2_generator("Projection")
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.shape != trained.model.image_shape:
        raise UserError(
            f"The image is {image.dtype} {list(image.shape)}, the generator's are uint8 {list(trained.model.image_shape)}; "
            "crop and resize it."
        )
    if steps < 1 or learning_rate <= 0 or noise < 0:
        raise UserError(
            f"steps = {steps}, learning_rate = {learning_rate} and noise = {noise} make no projection; the first two must "
            "be above 0, the last not below."
        )
    if noise_mode not in ("const", "none"):
        raise UserError(
            f"A projection needs noise_mode const or none, whose images are always the same, not {noise_mode}."
        )
    if generator.low_resolution and not per_layer:
        raise UserError("The low layers of this generator (UTLO) have a w of their own; give per_layer=True.")
    start, spread = mean_w(trained, label, seed=seed)
    w = start if per_layer else start[:1]
    rates, noises = schedule(steps)
    schedules = (learning_rate * rates, noise * spread * noises, np.arange(len(rates)))
    schedules = tuple(x.astype(t) for x, t in zip(schedules, (np.float32, np.float32, np.int32), strict=True))
    program = _program(generator, features, float(feature_weight), noise_mode)
    constants = trained.variables, jnp.asarray(image, jnp.float32), np.uint32(seed)
    state, losses = (jnp.asarray(w), _ADAM.init(jnp.asarray(w))), []
    for first in range(0, steps, _CHUNK):
        # Padded to one length, for one compiled program: steps beyond the last have rate 0.
        chunk = [np.pad(x[first : first + _CHUNK], (0, max(0, first + _CHUNK - steps))) for x in schedules]
        state, distances = program(*constants, state, tuple(chunk))
        losses.append(np.asarray(distances)[: steps - first])
        if report is not None:
            report(min(first + _CHUNK, steps), float(losses[-1][-1]))
    w = np.asarray(state[0])[None] if per_layer else np.asarray(state[0])
    if not np.isfinite(w).all():
        raise UserError(f"w has diverged; lower the learning_rate, which is {learning_rate}.")
    return Projection(w, trained.synthesize(w, noise_mode=noise_mode)[0], np.concatenate(losses))


def mean_w(
    trained: TrainedGenerator, label: int | None = None, count: int = 10_000, seed: int = 0
) -> tuple[np.ndarray, float]:
    """Compute the mean of w over random latents and its spread, the start of a projection.

    Args:
      trained: a StyleGAN2.
      label: class; None for all classes, evenly.
      count: number of latents.
      seed: of the latents.

    Returns:
      float32 ``[num_ws, w_dim]``, each layer's mean (the same in all of them, but for UTLO), and the root mean square
      distance of w from its mean.

    Raises:
      UserError: the generator is no StyleGAN2, or the class does not exist.
    """
    generator = trained.stylegan2_generator("The mean of w")
    if label is not None:
        trained.labels_and_indices([label], 1)  # checks the class
    labels = np.full(count, label) if label is not None else np.arange(count) % len(trained.class_names)
    z = trained.config.z.draw(jax.random.key(seed), count)
    mean, spread = _mean_program(generator)(trained.variables, z, labels.astype(np.int32))
    return np.asarray(mean), float(spread)


def schedule(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute learning rate and noise of every step, as fractions of their maximum: float64 ``[steps]`` each.

    The rate ramps up linearly in the first twentieth and down as half a cosine in the last quarter; the noise decays from
    one to zero with the square of the remaining time of the first three quarters.
    """
    t = np.arange(steps) / steps
    fall = 0.5 - 0.5 * np.cos(np.pi * np.minimum(1.0, (1.0 - t) / RAMP_DOWN))
    return np.minimum(1.0, (t + 1 / steps) / RAMP_UP) * fall, np.maximum(0.0, 1.0 - t / NOISE) ** 2


@functools.lru_cache(maxsize=8)
def _mean_program(generator: Any) -> Any:
    """Build the program (variables, z ``[n, z_dim]``, labels ``[n]``) → the mean of each layer's w ``[num_ws, w_dim]``, and the spread."""

    @jax.jit
    def program(variables: dict, z: Array, labels: Array) -> tuple[Array, Array]:
        w, ws = generator.apply(variables, z, labels, method="styles")
        return ws.mean(axis=0), jnp.sqrt(jnp.square(w - w.mean(axis=0)).sum(axis=1).mean())

    return program


@functools.lru_cache(maxsize=4)
def _program(generator: Any, features: Features | None, feature_weight: float, noise_mode: str) -> Any:
    """Build the program of k steps.

    Returns:
      (variables, image ``[H, W, C]``, seed, (w ``[1 or num_ws, w_dim]``, Adam's state), (rates, noises, numbers ``[k]``)) →
      the state, distances ``[k]``.
    """

    def distance(w: Array, variables: dict, image: Array, target: Array | None) -> Array:
        ws = jnp.broadcast_to(w, (1, generator.num_ws, w.shape[1]))
        pixels = 127.5 * generator.apply(variables, ws, noise_mode, method="synthesize") + 127.5
        # Values beyond black or white are no difference where the image is black or white.
        pixels = jnp.clip(pixels, jnp.where(image > 0, -jnp.inf, 0.0), jnp.where(image < 255, jnp.inf, 255.0))
        total = pixel_distance(pixels, image[None])
        if target is not None:
            total += feature_weight * jnp.square(features(pixels) - target).sum() / (jnp.square(target).sum() + 1e-8)
        return total

    @jax.jit
    def program(variables: dict, image: Array, seed: Array, state: tuple, schedules: tuple) -> tuple[tuple, Array]:
        target = None if features is None else features(image[None])

        def step(state: tuple, schedule: tuple) -> tuple[tuple, Array]:
            (w, moments), (rate, noise, number) = state, schedule
            key = jax.random.fold_in(jax.random.key(seed), number)
            near = w + noise * jax.random.normal(key, w.shape)
            value, gradient = jax.value_and_grad(distance)(near, variables, image, target)
            update, moments = _ADAM.update(gradient, moments)
            return (w - rate * update, moments), value

        return jax.lax.scan(step, state, schedules)

    return program


def pixel_distance(a: Array, b: Array) -> Array:
    """Compute the mean square difference of images ``[n, H, W, C]`` with values from 0 to 255, in units of half that range.

    It is averaged over sizes: the original, and each halved by averaging 2×2 pixels, down to 4 pixels.
    """
    x, values = (a - b) / 127.5, []
    while True:
        values.append(jnp.square(x).mean())
        n, height, width, channels = x.shape
        if min(height, width) < 2 * _SMALLEST:
            return jnp.stack(values).mean()
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
