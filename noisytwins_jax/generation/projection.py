"""Projection of images into the latent space of a generator: the points whose images are closest to them.

In StyleGAN2's W or W+, after Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, Sec. 5 and
appendix D: Adam from the mean w, with learning-rate ramps and noise on w that decays to zero, against local minima.
Differences: in place of LPIPS, the distance is that of pixels at several sizes, plus one of features if given; and
per-pixel noise is the generator's stored one, not optimised. Networks without W are projected into z in the same way.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from noisytwins_jax.config import RunConfig
from noisytwins_jax.generation.pixel_distance import pixel_distance
from noisytwins_jax.generation.sample_programs import quantize
from noisytwins_jax.generation.trained_generator import TrainedGenerator
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.sharding import Layout

Array = jax.Array
Features = Callable[[Array], Array]  # images [n, H, W, C], floats from 0 to 255 -> features [n, d]

SPACES = ("w", "w+", "z")  # w+: each layer has its own w
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # fractions of the steps in which the learning rate rises and falls
NOISE = 0.75  # fraction of the steps with noise on points
_CHUNK = 25  # steps in a call of the program
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


@dataclass(frozen=True, eq=False)
class Projections:
    """Result of `project_images`.

    Attributes:
      points: float32 ``[n, w_dim]``, ``[n, num_ws, w_dim]`` in W+, or ``[n, z_dim]``.
      losses: float32 ``[n, steps]``, the distance at each step, including the noise on the point.
      way_steps: numbers of steps after which images were kept: 0, 25, 50, 100, … and the last.
      way_images: uint8 ``[n, len(way_steps), H, W, C]``, the generator's images of the points then.
      way_distances: float32 ``[n, len(way_steps)]``, without noise.
    """

    points: np.ndarray
    losses: np.ndarray
    way_steps: tuple[int, ...]
    way_images: np.ndarray
    way_distances: np.ndarray


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
      report: called with the number of steps done and the distance, every 25 steps.

    Raises:
      UserError: as `project_images`.
    """
    found = project_images(
        trained,
        np.asarray(image)[None],
        [label],
        "w+" if per_layer else "w",
        steps,
        features,
        feature_weight,
        learning_rate,
        noise,
        noise_mode,
        seed,
        None if report is None else lambda done, distances: report(done, float(distances[0])),
    )
    return Projection(found.points, found.way_images[0, -1], found.losses[0])


def project_images(
    trained: TrainedGenerator,
    images: np.ndarray,
    labels: Sequence[int | None],
    space: str = "w",
    steps: int = 500,
    features: Features | None = None,
    feature_weight: float = 1.0,
    learning_rate: float = 0.1,
    noise: float = 0.05,
    noise_mode: str = "const",
    seed: int = 0,
    report: Callable[[int, np.ndarray], None] | None = None,
) -> Projections:
    """Search a latent space for the points whose images are closest to given ones, all in one batch.

    Rows share the noise on points, so that a result depends on the other images up to rounding only. All devices of this
    process share the work.

    Args:
      trained: the generator.
      images: uint8 ``[n, H, W, C]``, of the size of the generator's images.
      labels: class of each image ``[n]``. In W it sets the start, its mean w (that of all classes for None); in z, where
        the class is an input of the network, it must be given.
      space: of `SPACES`; see `check_space`.
      steps, features, feature_weight, learning_rate, noise, noise_mode, seed: see `project`; `noise_mode` is StyleGAN2's.
      report: called with the number of steps done and the distances ``[n]``, every 25 steps.

    Raises:
      UserError: the generator does not have the space, an image has another size, an argument is out of range, or a
        point has diverged.
    """
    check_space(trained.config, space)
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != trained.model.image_shape:
        raise UserError(
            f"The image is {images.dtype} {list(images.shape[1:])}, the generator's are uint8 "
            f"{list(trained.model.image_shape)}; crop and resize it."
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
    starts, spreads = _starts(trained, labels, space, seed)
    model, variables = trained.model, trained.variables
    if space == "z":
        variables = trained.variables_with_statistics(None)
    else:
        model = dataclasses.replace(model, noise_mode=noise_mode)
    programs = _programs(model, space, features, float(feature_weight))
    layout, count = Layout(jax.local_devices()), len(images)

    def put(x: np.ndarray) -> Array:  # padded with copies of the last row, so that devices have equal parts
        return jax.device_put(
            np.pad(x, [(0, -count % layout.num_devices)] + [(0, 0)] * (x.ndim - 1), "edge"), layout.split
        )

    constants = (
        layout.replicate_to_devices(variables),
        put(images.astype(np.float32)),
        put(np.array([label or 0 for label in labels], np.int32)),
    )
    points = put(starts)
    state, losses = (points, _ADAM.init(points)), []
    rates, noises = schedule(steps)
    schedules = [(learning_rate * rates).astype(np.float32), (noise * noises).astype(np.float32), np.arange(steps)]
    way = {0: programs.result(*constants, points)}
    for first in range(0, steps, _CHUNK):
        # Padded to one length, for one compiled program: steps beyond the last have rate 0.
        chunk = [np.pad(x[first : first + _CHUNK], (0, max(0, first + _CHUNK - steps))) for x in schedules]
        state, distances = programs.steps(*constants, put(spreads), np.uint32(seed), state, tuple(chunk))
        losses.append(distances[: steps - first])
        done = min(first + _CHUNK, steps)
        if done == steps or _is_kept(done):
            way[done] = programs.result(*constants, state[0])
        if report is not None:
            report(done, np.asarray(losses[-1][-1])[:count])
    points = np.asarray(state[0])[:count]
    if not np.isfinite(points).all():
        raise UserError(f"{space} has diverged; lower the learning_rate, which is {learning_rate}.")
    kept, distances = (np.stack([np.asarray(x[i])[:count] for x in way.values()], axis=1) for i in (0, 1))
    return Projections(points, np.concatenate(losses).T[:count], tuple(way), kept, distances)


def check_space(config: RunConfig, space: str) -> None:
    """Check that a run's generator can be projected into a space.

    W and W+ are those of StyleGAN2; z is for the networks without W, BigGAN and R3GAN.

    Raises:
      UserError: it cannot.
    """
    if config.instances.neighbours > 0:
        raise UserError(
            "An instance-conditioned generator (IC-GAN) has no projection: its images depend on more than z."
        )
    if config.has_mapping_network and space == "z":
        raise UserError("A StyleGAN2 generator is projected into W or W+, not into z: --space=w or --space=w+.")
    if not config.has_mapping_network and space != "z":
        raise UserError(
            f"Projection into {space} works in StyleGAN2's W, which a {config.network} generator does not have; it is "
            "projected into z: --space=z."
        )
    if config.utlo.active and space == "w":
        raise UserError(
            "The low layers of this generator (UTLO) have a w of their own; give --space=w+, or per_layer=True."
        )


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


def _is_kept(step: int) -> bool:
    """Return whether the images after this step, a multiple of the chunk, are part of the way: chunks 1, 2, 4, 8, …."""
    chunks = step // _CHUNK
    return chunks & (chunks - 1) == 0


def _starts(
    trained: TrainedGenerator, labels: Sequence[int | None], space: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the points to start from ``[n, …]``, and the root mean square distance of random points from them ``[n]``."""
    if space == "z":
        trained.labels_and_indices([*labels], 1)  # checks the classes
        z = np.asarray(trained.config.z.draw(jax.random.key(seed), 10_000))
        spread = np.sqrt(z.var(axis=0).sum())
        return np.repeat(z.mean(axis=0)[None], len(labels), axis=0), np.full(len(labels), spread, np.float32)
    means = {label: mean_w(trained, label, seed=seed) for label in dict.fromkeys(labels)}
    starts = np.stack([means[label][0] for label in labels])
    return starts if space == "w+" else starts[:, 0], np.array([means[label][1] for label in labels], np.float32)


@functools.lru_cache(maxsize=8)
def _mean_program(generator: Any) -> Any:
    """Build the program (variables, z ``[n, z_dim]``, labels ``[n]``) → the mean of each layer's w ``[num_ws, w_dim]``, and the spread."""

    @jax.jit
    def program(variables: dict, z: Array, labels: Array) -> tuple[Array, Array]:
        w, ws = generator.apply(variables, z, labels, method="styles")
        return ws.mean(axis=0), jnp.sqrt(jnp.square(w - w.mean(axis=0)).sum(axis=1).mean())

    return program


@dataclass(frozen=True)
class _Programs:
    """Compiled programs of a projection of n images; both begin with (variables, images ``[n, H, W, C]``, labels ``[n]``).

    Attributes:
      steps: (…, spreads ``[n]``, seed, (points, Adam's state), (rates, noises, numbers ``[k]``)) → the state, distances
        ``[k, n]``.
      result: (…, points) → images uint8 ``[n, H, W, C]``, distances ``[n]``.
    """

    steps: Any
    result: Any


@functools.lru_cache(maxsize=4)
def _programs(model: Any, space: str, features: Features | None, feature_weight: float) -> _Programs:
    """Build the programs of a `Model`."""

    def generate(variables: dict, points: Array, labels: Array) -> Array:
        if space == "z":
            return model.sample(variables, points, labels, jax.random.key(0))[0]
        generator = model.generator
        ws = points if space == "w+" else points[:, None]
        ws = jnp.broadcast_to(ws, (len(ws), generator.num_ws, ws.shape[2]))
        return generator.apply(variables, ws, model.noise_mode, method="synthesize")

    def distance(generated: Array, images: Array, target: Array | None) -> Array:
        pixels = 127.5 * generated + 127.5
        # Values beyond black or white are no difference where the image is black or white.
        pixels = jnp.clip(pixels, jnp.where(images > 0, -jnp.inf, 0.0), jnp.where(images < 255, jnp.inf, 255.0))
        total = pixel_distance(pixels, images)
        if target is not None:
            difference = jnp.square(features(pixels) - target).sum(axis=1)
            total += feature_weight * difference / (jnp.square(target).sum(axis=1) + 1e-8)
        return total

    @jax.jit
    def steps(
        variables: dict, images: Array, labels: Array, spreads: Array, seed: Array, state: tuple, schedules: tuple
    ) -> tuple[tuple, Array]:
        target = None if features is None else features(images)

        def total(points: Array) -> tuple[Array, Array]:  # a row's gradient is that of its own distance
            distances = distance(generate(variables, points, labels), images, target)
            return distances.sum(), distances

        def step(state: tuple, schedule: tuple) -> tuple[tuple, Array]:
            (points, moments), (rate, noise, number) = state, schedule
            random = jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), points.shape[1:])
            near = points + jnp.tensordot(noise * spreads, random, axes=0)
            gradient, distances = jax.grad(total, has_aux=True)(near)
            update, moments = _ADAM.update(gradient, moments)
            return (points - rate * update, moments), distances

        return jax.lax.scan(step, state, schedules)

    @jax.jit
    def result(variables: dict, images: Array, labels: Array, points: Array) -> tuple[Array, Array]:
        generated = generate(variables, points, labels)
        target = None if features is None else features(images)
        return quantize(generated), distance(generated, images, target)

    return _Programs(steps, result)
