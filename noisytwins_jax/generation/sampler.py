"""Images from a trained generator: each one a pure function of (seed, its index, its class, truncation)."""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.instance_table import InstanceTable
from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.models.instance_sampling import sample_features_of_classes
from noisytwins_jax.models.latents import Latents, Truncation
from noisytwins_jax.models.model import Model, lerp
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.utils.multihost import distributed_map, local_copy
from noisytwins_jax.utils.randomness import sample_keys
from noisytwins_jax.utils.sharding import Layout

Array = jax.Array
PyTree = Any
Strength = Array | np.float32 | None
_STANDING_KEY = 0x5354  # sets the draws of standing statistics apart from those of images
_INSTANCE = 0x494E  # sets the draw of an instance apart from that of z


def quantize(images: Array) -> Array:
    """[-1, 1] to uint8: ``⌊clip(127.5·x + 128, 0, 255)⌋``, the published rule."""
    return jnp.clip(127.5 * images + 128.0, 0.0, 255.0).astype(jnp.uint8)


class Sampler:
    """Generates from fixed variables on this process's devices, in padded batches of one compiled shape.

    Class noise is off. Image i depends on (seed, i, class, truncation) only, whatever the number of devices or the other
    images; with instances on them too: its instance is one of its class, drawn with its index. A network with BatchNorm
    needs variables with the `standing_statistics` of this truncation.

    Args:
      model: the networks.
      latents: what z is drawn from.
      variables: the generator's collections, usually the moving average; whole in this process (`together.local_copy`).
      seed: of latents and per-pixel noise.
      truncation: ``None`` for none.
      per_device_batch: images per device and call; changing it changes the last bits of the results.
      prefetch: batches in flight at once.
      instances: where the model takes such; an argument of the programs, like the variables.
    """

    def __init__(
        self,
        model: Model,
        latents: Latents,
        variables: dict,
        seed: int = 0,
        truncation: Truncation | None = None,
        per_device_batch: int = 64,
        prefetch: int = 1,
        instances: InstanceTable | None = None,
    ):
        self._layout = Layout(jax.local_devices())
        self._batching = {"per_device_batch": per_device_batch, "prefetch": prefetch}
        self._given = self._layout.put_everywhere((variables, instances))
        kind = truncation and truncation.kind
        self._program = sample_program(model, latents, kind)
        self._between = between_program(model, latents, kind)
        self._seed = np.uint32(seed)
        self._strength = None if truncation is None else np.float32(truncation.strength)
        self.image_size = None  # the network's

    def __call__(self, labels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels ``[n]`` int and global sample indices ``[n]`` → images uint8 ``[n, H, W, C]`` and w ``[n, D]``."""
        images, w = self.extract_features(lambda images: (images,), labels, indices)
        return images, w

    def extract_features(
        self, extract: Callable[[Array], tuple[Array, ...]], labels: np.ndarray, indices: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Return ``extract(images)``, called with images that are still on the devices, and w ``[n, D]``."""

        def program(given: tuple[dict, InstanceTable | None], labels: Array, indices: Array) -> tuple[Array, ...]:
            variables, instances = given
            images, w = self._program(variables, self._strength, self._seed, labels, indices, instances)
            return *extract(images), w

        arrays = np.asarray(labels, np.int32), np.asarray(indices, np.int32)
        return self._layout.map_batches(program, self._given, *arrays, **self._batching)

    def between(self, labels: np.ndarray, indices: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Images on the way from one (class, z) at t = 0 to another at t = 1, uint8 ``[n, H, W, C]``.

        The way is straight in z, whatever the distribution of latents (in the middle, normal ones are so nearer the mean
        than such as are drawn), and between the classes (see `Model.sample_between`). With one class or one z at both
        ends, that stays as it is. An instance is that of its end. Per-pixel noise is that of the first index all the way.

        Args:
          labels: int ``[n, 2]``, of either end.
          indices: int ``[n, 2]``, global sample indices whose z are the ends.
          t: float ``[n]``.
        """

        def program(given: tuple[dict, InstanceTable | None], *rows: Array) -> tuple[Array, ...]:
            variables, instances = given
            return (self._between(variables, self._strength, self._seed, *rows, instances),)

        arrays = np.asarray(labels, np.int32), np.asarray(indices, np.int32), np.asarray(t, np.float32)
        (images,) = self._layout.map_batches(program, self._given, *arrays, **self._batching)
        return images


@functools.lru_cache(maxsize=8)  # compiled once for all samplers of a model: variables are arguments
def sample_program(model: Model, latents: Latents, truncation: str | None = None) -> Callable[..., tuple[Array, Array]]:
    """The program of a `Sampler`: (variables, strength or None, seed, labels, indices int32 ``[n]``) → images, w.

    The seed is a uint32. A last argument is the table of instances, None (the default) where the model takes none.

    `truncation` is its kind, None for none.
    """
    in_w = truncation == "psi"
    in_z = None if in_w else truncation

    def one(
        variables: dict, strength: Strength, instances: InstanceTable | None, label: Array, key: Array
    ) -> tuple[Array, Array]:
        z_key, noise_key = jax.random.split(key)
        z = latents.draw(z_key, 1, truncation_kind=in_z, strength=strength)
        features = _features(key[None], instances, label[None])
        image, w = model.sample(variables, z, label[None], noise_key, strength if in_w else None, features)
        return quantize(image[0]), w[0]

    @jax.jit
    def program(
        variables: dict,
        strength: Strength,
        seed: Array,
        labels: Array,
        indices: Array,
        instances: InstanceTable | None = None,
    ) -> tuple[Array, Array]:
        keys = sample_keys(seed, indices)
        return jax.vmap(one, in_axes=(None, None, None, 0, 0))(variables, strength, instances, labels, keys)

    return program


@functools.lru_cache(maxsize=8)
def between_program(model: Model, latents: Latents, truncation: str | None = None) -> Callable[..., Array]:
    """The program of `Sampler.between`, of labels and indices int32 ``[n, 2]`` and t ``[n]``: otherwise as `sample_program`.

    (variables, strength or None, seed, labels, indices, t, instances or None) → images.
    """
    in_w = truncation == "psi"
    in_z = None if in_w else truncation

    def one(
        variables: dict, strength: Strength, instances: InstanceTable | None, labels: Array, keys: Array, t: Array
    ) -> Array:
        (first_key, noise_key), (second_key, _) = map(jax.random.split, (keys[0], keys[1]))  # as in `sample_program`
        first, second = (
            latents.draw(key, 1, truncation_kind=in_z, strength=strength) for key in (first_key, second_key)
        )
        psi = strength if in_w else None
        z, features = lerp(first, second, t[None]), _features(keys, instances, labels)
        features = None if features is None else features[None]
        image = model.sample_between(variables, z, labels[None], t[None], noise_key, psi, features)
        return quantize(image[0])

    @jax.jit
    def program(
        variables: dict,
        strength: Strength,
        seed: Array,
        labels: Array,
        indices: Array,
        t: Array,
        instances: InstanceTable | None = None,
    ) -> Array:
        keys = sample_keys(seed, indices.reshape(-1)).reshape(indices.shape)
        return jax.vmap(one, in_axes=(None, None, None, 0, 0, 0))(variables, strength, instances, labels, keys, t)

    return program


def _features(keys: Array, instances: InstanceTable | None, labels: Array) -> Array | None:
    """Features ``[n, d]`` of instances of classes ``[n]``, by the samples' keys ``[n]``; None without a table."""
    return sample_features_of_classes(jax.vmap(lambda key: jax.random.fold_in(key, _INSTANCE))(keys), instances, labels)


def variables_sha256(variables: PyTree) -> str:
    """Hexadecimal SHA-256 of a generator's variables (or any tree), names and values."""
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(np.asarray(value)).tobytes())
    return digest.hexdigest()


_known_moments: dict[tuple, PyTree] = {}  # of this process's samplers, by what they are of
_MOST_KNOWN = 64


def standing_statistics(
    model: Model,
    latents: Latents,
    variables: dict,
    truncation: Truncation | None,
    passes: int,
    batch: int,
    instances: InstanceTable | None = None,
) -> dict:
    """The variables with moments of activations for sampling: plain means of batch moments over many passes.

    BigGAN (Brock et al., ICLR 2019, Sec. 2.1 and appendix C): the generator runs on fresh z and classes, uniformly drawn,
    and every BatchNorm's mean and variance are averaged over the passes. They go with one truncation, and make samples
    independent of the batch they are made in. A pass is one device's, so the result is the same on any number of them.
    To be called by all processes, which share the passes.

    Args:
      model: the networks; one without BatchNorm has its variables returned as they are.
      latents: what z is drawn from.
      variables: the generator's collections; whole in this process.
      truncation: of the latents, None for none.
      passes: how many.
      batch: images of each.
      instances: where the model takes such; each image has one of its class.
    """
    if not model.needs_standing_statistics:
        return variables
    key = (model, latents, variables_sha256(variables), truncation, passes, batch, variables_sha256(instances))
    if key not in _known_moments:
        while len(_known_moments) >= _MOST_KNOWN:
            _known_moments.pop(next(iter(_known_moments)))
        _known_moments[key] = _standing_moments(model, latents, variables, truncation, passes, batch, instances)
    return {**variables, **_known_moments[key]}


def _standing_moments(
    model: Model,
    latents: Latents,
    variables: dict,
    truncation: Truncation | None,
    passes: int,
    batch: int,
    instances: InstanceTable | None,
) -> PyTree:
    layout = Layout(jax.local_devices())
    program = _moments_program(model, latents, batch, truncation and truncation.kind)
    strength = None if truncation is None else np.float32(truncation.strength)
    put = layout.put_everywhere((variables, instances))
    structure = jax.tree.structure({"batch_stats": variables["batch_stats"]})

    def compute(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        return layout.map_batches(
            lambda given, numbers: program(*given, strength, numbers),
            put,
            rows.astype(np.int32),
            per_device_batch=1,
            prefetch=2,
        )

    moments = distributed_map(compute, passes)
    means = [x.astype(np.float64).mean(axis=0).astype(np.float32) for x in moments]
    return jax.tree.unflatten(structure, means)


@functools.lru_cache(maxsize=8)
def _moments_program(
    model: Model, latents: Latents, batch: int, truncation: str | None
) -> Callable[[dict, InstanceTable | None, Strength, Array], tuple[Array, ...]]:
    """(variables, instances or None, strength or None, numbers of passes int32 ``[n]``) → each moment ``[n, …]``.

    In order of the tree.
    """
    num_classes = model.num_classes

    def one(variables: dict, instances: InstanceTable | None, strength: Strength, number: Array) -> tuple[Array, ...]:
        z_key, label_key = jax.random.split(jax.random.fold_in(jax.random.key(_STANDING_KEY), number))
        z = latents.draw(z_key, batch, truncation_kind=truncation, strength=strength)
        labels = jax.random.randint(label_key, (batch,), 0, num_classes)
        features = _features(jax.random.split(label_key, batch), instances, labels)
        return tuple(jax.tree.leaves(model.batch_statistics(variables, z, labels, features)))

    return jax.jit(jax.vmap(one, in_axes=(None, None, None, 0)))


def build_sampler(
    config: RunConfig,
    variables: dict,
    splits: DataSplits,
    truncation: Truncation | None = None,
    **options: Any,
) -> Sampler:
    """A sampler of a run's generator; `options` go to `Sampler`. To be called by all processes."""
    model = build_model(config, splits.train.channels, splits.train.num_classes)
    counts = config.evaluation.standing_passes, config.evaluation.standing_batch
    variables = standing_statistics(model, config.z, local_copy(variables), truncation, *counts, splits.instances)
    return Sampler(model, config.z, variables, truncation=truncation, instances=splits.instances, **options)
