"""Compiled programs that generate images: each image is a pure function of (seed, its index, its class, truncation)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.data.instance_table import InstanceTable
from noisytwins_jax.models.instance_sampling import sample_features_of_classes
from noisytwins_jax.models.latents import Latents
from noisytwins_jax.models.model import Model, lerp
from noisytwins_jax.utils.randomness import sample_keys

Array = jax.Array
Strength = Array | np.float32 | None
_INSTANCE = 0x494E  # separates the key of an instance from that of z


def quantize(images: Array) -> Array:
    """Convert images in [-1, 1] to uint8 by the published rule: ``⌊clip(127.5·x + 128, 0, 255)⌋``."""
    return jnp.clip(127.5 * images + 128.0, 0.0, 255.0).astype(jnp.uint8)


@functools.lru_cache(maxsize=8)  # compiled once for all samplers of a model: variables are arguments
def sample_program(model: Model, latents: Latents, truncation: str | None = None) -> jax.stages.Wrapped:
    """Build the program of a `Sampler`.

    Args:
      model: the networks.
      latents: the distribution of z.
      truncation: kind, None for none.

    Returns:
      (variables, strength of truncation or None, seed uint32, labels int32 ``[n]``, indices int32 ``[n]``, instances or
      None (default), seed of the style's half of z or None for the same (default)) → images uint8 ``[n, H, W, C]``, w ``[n, D]``.
    """
    in_w = truncation == "psi"
    in_z = None if in_w else truncation

    def sample_one(
        variables: dict,
        strength: Strength,
        instances: InstanceTable | None,
        label: Array,
        key: Array,
        style_key: Array | None,
    ) -> tuple[Array, Array]:
        z_key, noise_key = jax.random.split(key)
        z = latents.draw(z_key, 1, truncation_kind=in_z, strength=strength)
        if style_key is not None:
            other = latents.draw(jax.random.split(style_key)[0], 1, truncation_kind=in_z, strength=strength)
            z = jnp.where(jnp.arange(latents.z_dim) < latents.z_dim // 2, other, z)
        features = instance_features(key[None], instances, label[None])
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
        style_seed: Array | None = None,
    ) -> tuple[Array, Array]:
        keys = sample_keys(seed, indices)
        style_keys = None if style_seed is None else sample_keys(style_seed, indices)
        one = jax.vmap(sample_one, in_axes=(None, None, None, 0, 0, 0))
        return one(variables, strength, instances, labels, keys, style_keys)

    return program


@functools.lru_cache(maxsize=8)
def interpolation_program(model: Model, latents: Latents, truncation: str | None = None) -> jax.stages.Wrapped:
    """Build the program of `Sampler.interpolate`; arguments as `sample_program`.

    Returns:
      (variables, strength or None, seed, labels int32 ``[n, 2]``, indices int32 ``[n, 2]``, t ``[n]``, instances or None)
      → images uint8 ``[n, H, W, C]``.
    """
    in_w = truncation == "psi"
    in_z = None if in_w else truncation

    def sample_one(
        variables: dict, strength: Strength, instances: InstanceTable | None, labels: Array, keys: Array, t: Array
    ) -> Array:
        (first_key, noise_key), (second_key, _) = map(jax.random.split, (keys[0], keys[1]))  # as in `sample_program`
        first, second = (
            latents.draw(key, 1, truncation_kind=in_z, strength=strength) for key in (first_key, second_key)
        )
        psi = strength if in_w else None
        z, features = lerp(first, second, t[None]), instance_features(keys, instances, labels)
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
        return jax.vmap(sample_one, in_axes=(None, None, None, 0, 0, 0))(
            variables, strength, instances, labels, keys, t
        )

    return program


def instance_features(keys: Array, instances: InstanceTable | None, labels: Array) -> Array | None:
    """Sample an instance of each class ``[n]`` with the keys ``[n]`` of samples; return features ``[n, d]``, None without a table."""
    return sample_features_of_classes(jax.vmap(lambda key: jax.random.fold_in(key, _INSTANCE))(keys), instances, labels)
