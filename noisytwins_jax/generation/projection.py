"""Projection: the point in StyleGAN2's W whose image is nearest to a given one.

After Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, Sec. 5 and appendix D: Adam from
the mean w, a learning rate that rises and falls, and noise on w that dies out, so that the way does not end in the first
valley. What differs: the distance is that of pixels at several sizes, with features beside it if some are given, in place
of LPIPS; and per-pixel noise is the generator's stored one, not optimised.
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

RISE, FALL, NOISY = 0.05, 0.25, 0.75  # shares of the steps in which the rate rises, in which it falls, with noise on w
_CHUNK = 50  # steps in a call of the program
_SMALLEST = 4  # pixels: side of the smallest images that are compared
_ADAM = optax.scale_by_adam(b1=0.9, b2=0.999)


@dataclass(frozen=True, eq=False)
class Projection:
    """What `project` found.

    Attributes:
      w: float32 ``[1, w_dim]``, or ``[1, num_ws, w_dim]`` with each layer's own: what `TrainedGenerator.synthesize` takes.
      image: uint8 ``[H, W, C]``, the generator's image of it.
      losses: float32 ``[steps]``, the distance at each step, with the noise of that step on w.
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
    """Looks for an image in W by gradient descent.

    Args:
      trained: a StyleGAN2.
      image: uint8 ``[H, W, C]``, of the size of its images.
      steps: of Adam.
      label: class at whose mean w to begin; None for the mean over all classes.
      per_layer: whether every layer gets a w of its own (W+): nearer to the image, further from what the generator knows.
      features: a distance beside that of pixels, ``|f(x) - f(image)|² / |f(image)|²``, of this function of pixel values; for
        example of an extractor, ``lambda x: extractor.apply(extractor.variables, x)[0]``. The same function again is not
        compiled again.
      feature_weight: of that distance.
      learning_rate: at its height.
      noise: standard deviation of the first noise on w, in units of the root mean square distance of w from its mean.
      noise_mode: per-pixel noise, ``"const"`` (the stored one) or ``"none"``.
      seed: of the draws.
      report: is told of steps done and the distance, every 50 steps.

    Raises:
      UserError: the generator is no StyleGAN2, the image is not of its size, an argument is out of range, or w has left
        all bounds.
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
    rows = (learning_rate * rates, noise * spread * noises, np.arange(len(rates)))
    rows = tuple(x.astype(t) for x, t in zip(rows, (np.float32, np.float32, np.int32), strict=True))
    program = _program(generator, features, float(feature_weight), noise_mode)
    given = trained.variables, jnp.asarray(image, jnp.float32), np.uint32(seed)
    state, losses = (jnp.asarray(w), _ADAM.init(jnp.asarray(w))), []
    for first in range(0, steps, _CHUNK):
        # Of one length, for one compiled program: the steps beyond the last have rate 0.
        some = [np.pad(x[first : first + _CHUNK], (0, max(0, first + _CHUNK - steps))) for x in rows]
        state, distances = program(*given, state, tuple(some))
        losses.append(np.asarray(distances)[: steps - first])
        if report is not None:
            report(min(first + _CHUNK, steps), float(losses[-1][-1]))
    w = np.asarray(state[0])[None] if per_layer else np.asarray(state[0])
    if not np.isfinite(w).all():
        raise UserError(f"w has left all bounds; lower the learning_rate, which is {learning_rate}.")
    return Projection(w, trained.synthesize(w, noise_mode=noise_mode)[0], np.concatenate(losses))


def mean_w(
    trained: TrainedGenerator, label: int | None = None, count: int = 10_000, seed: int = 0
) -> tuple[np.ndarray, float]:
    """Mean of w over random latents, and its spread: where a projection begins.

    Args:
      trained: a StyleGAN2.
      label: class; None for all of them, evenly.
      count: latents.
      seed: of the latents.

    Returns:
      float32 ``[num_ws, w_dim]``, each layer's mean (the same in all of them, but for UTLO), and the root mean square
      distance of w from its mean.

    Raises:
      UserError: the generator is no StyleGAN2, or has no such class.
    """
    generator = trained.stylegan2_generator("The mean of w")
    if label is not None:
        trained.rows([label], 1)  # refuses a class that there is not
    labels = np.full(count, label) if label is not None else np.arange(count) % len(trained.class_names)
    z = trained.config.z.draw(jax.random.key(seed), count)
    mean, spread = _mean_program(generator)(trained.variables, z, labels.astype(np.int32))
    return np.asarray(mean), float(spread)


def schedule(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Learning rate and noise of every step, as shares of their largest: float64 ``[steps]`` each.

    The rate rises in a line in the first twentieth and falls as half a cosine in the last quarter; the noise falls from one
    to zero with the square of the time left of the first three quarters.
    """
    t = np.arange(steps) / steps
    fall = 0.5 - 0.5 * np.cos(np.pi * np.minimum(1.0, (1.0 - t) / FALL))
    return np.minimum(1.0, (t + 1 / steps) / RISE) * fall, np.maximum(0.0, 1.0 - t / NOISY) ** 2


@functools.lru_cache(maxsize=8)
def _mean_program(generator: Any) -> Any:
    """(variables, z ``[n, z_dim]``, labels ``[n]``) → the mean of each layer's w ``[num_ws, w_dim]``, and the spread."""

    @jax.jit
    def program(variables: dict, z: Array, labels: Array) -> tuple[Array, Array]:
        w, ws = generator.apply(variables, z, labels, method="styles")
        return ws.mean(axis=0), jnp.sqrt(jnp.square(w - w.mean(axis=0)).sum(axis=1).mean())

    return program


@functools.lru_cache(maxsize=4)
def _program(generator: Any, features: Features | None, feature_weight: float, noise_mode: str) -> Any:
    """(variables, image ``[H, W, C]``, seed, (w, Adam's state), (rates, noises, numbers ``[k]``)) → the state, distances ``[k]``.

    w is ``[1 or num_ws, w_dim]``.
    """

    def distance(w: Array, variables: dict, image: Array, known: Array | None) -> Array:
        ws = jnp.broadcast_to(w, (1, generator.num_ws, w.shape[1]))
        pixels = 127.5 * generator.apply(variables, ws, noise_mode, method="synthesize") + 127.5
        # What a generator makes darker than black is black: no difference, where the image is so too.
        pixels = jnp.clip(pixels, jnp.where(image > 0, -jnp.inf, 0.0), jnp.where(image < 255, jnp.inf, 255.0))
        total = pixel_distance(pixels, image[None])
        if known is not None:
            total += feature_weight * jnp.square(features(pixels) - known).sum() / (jnp.square(known).sum() + 1e-8)
        return total

    @jax.jit
    def program(variables: dict, image: Array, seed: Array, state: tuple, rows: tuple) -> tuple[tuple, Array]:
        known = None if features is None else features(image[None])

        def step(state: tuple, row: tuple) -> tuple[tuple, Array]:
            (w, moments), (rate, noise, number) = state, row
            key = jax.random.fold_in(jax.random.key(seed), number)
            near = w + noise * jax.random.normal(key, w.shape)
            value, gradient = jax.value_and_grad(distance)(near, variables, image, known)
            update, moments = _ADAM.update(gradient, moments)
            return (w - rate * update, moments), value

        return jax.lax.scan(step, state, rows)

    return program


def pixel_distance(a: Array, b: Array) -> Array:
    """Mean square difference of images ``[n, H, W, C]`` with values from 0 to 255, in units of half that range.

    It is the mean over sizes: as they are, and halved again and again by averaging 2×2 pixels, down to 4 pixels.
    """
    x, values = (a - b) / 127.5, []
    while True:
        values.append(jnp.square(x).mean())
        n, height, width, channels = x.shape
        if min(height, width) < 2 * _SMALLEST:
            return jnp.stack(values).mean()
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
