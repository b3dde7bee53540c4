"""DiffAugment (Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020).

Random inputs are sampled separately, so that `apply` is a deterministic function of them. Shapes are static and there is no
gather: translation is a product with 0/1 matrices, cutout a mask.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from noisytwins_jax.utils.errors import UserError, did_you_mean

Array = jax.Array

POLICIES = ("color", "translation", "cutout")


class DiffAugmentInputs(NamedTuple):
    """Random inputs, each ``[N]``, an entry for each image."""

    brightness: Array  # U[0, 1)
    saturation: Array  # U[0, 1)
    contrast: Array  # U[0, 1)
    translation_rows: Array  # int in [-s, s], s = ⌊H/8 + ½⌋
    translation_columns: Array  # int, likewise of W
    cutout_row: Array  # int, centre of the hole
    cutout_column: Array


def parse_policy(policy: str) -> tuple[str, ...]:
    """Parse ``"color,translation,cutout"`` (any subset; ``""`` for none); the result is in the published order.

    Raises:
      UserError: unknown operation.
    """
    names = [name for name in policy.split(",") if name]
    unknown = sorted(set(names) - set(POLICIES))
    if unknown:
        raise UserError(
            f"DiffAugment has no operation {unknown[0]!r}; {did_you_mean(unknown[0], POLICIES)} "
            f"(Valid: {', '.join(POLICIES)}.)"
        )
    return tuple(name for name in POLICIES if name in names)


def sample_inputs(key: Array, shape: tuple[int, ...]) -> DiffAugmentInputs:
    """Sample random inputs for images of `shape` ``(N, H, W, C)``."""
    n, height, width, _ = shape
    keys = jax.random.split(key, 7)
    ranges = jnp.array(
        [(-_max_shift(size), _max_shift(size) + 1) for size in (height, width)]
        + [(0, size + 1 - _hole(size) % 2) for size in (height, width)]
    )
    # Mapped over keys: the same numbers from a fraction of the operations, which take longer to compile than to run.
    strengths = jax.vmap(lambda k: jax.random.uniform(k, (n,)))(keys[:3])
    pixels = jax.vmap(lambda k, of_key: jax.random.randint(k, (n,), *of_key))(keys[3:], ranges)
    return DiffAugmentInputs(*strengths, *pixels)


def apply(images: Array, inputs: DiffAugmentInputs, policy: tuple[str, ...] = POLICIES) -> Array:
    """Augment images ``[N, H, W, C]``, nominally in [-1, 1], each by its own random inputs."""
    if "color" in policy:
        images = _color(images, inputs)
    if "translation" in policy:
        images = _translate(images, inputs)
    if "cutout" in policy:
        images = _cutout(images, inputs)
    return images


def _color(x: Array, inputs: DiffAugmentInputs) -> Array:
    brightness, saturation, contrast = (
        u.astype(x.dtype)[:, None, None, None] for u in (inputs.brightness, inputs.saturation, inputs.contrast)
    )
    x = x + (brightness - 0.5)
    mean = x.mean(axis=3, keepdims=True)
    x = (x - mean) * (2.0 * saturation) + mean
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    return (x - mean) * (contrast + 0.5) + mean


def _max_shift(size: int) -> int:
    return int(size * 0.125 + 0.5)


def _hole(size: int) -> int:
    return int(size * 0.5 + 0.5)


def _translate(x: Array, inputs: DiffAugmentInputs) -> Array:
    def selection(shift: Array, size: int) -> Array:
        source = jnp.arange(size)[None, :, None] + shift[:, None, None]
        return (source == jnp.arange(size)[None, None, :]).astype(x.dtype)

    rows = selection(inputs.translation_rows, x.shape[1])
    columns = selection(inputs.translation_columns, x.shape[2])
    x = jnp.einsum("nyh,nhwc->nywc", rows, x, precision="highest")
    return jnp.einsum("nxw,nywc->nyxc", columns, x, precision="highest")


def _cutout(x: Array, inputs: DiffAugmentInputs) -> Array:
    def inside(centre: Array, size: int) -> Array:
        hole = _hole(size)
        offset = jnp.arange(size)[None, :] - (centre[:, None] - hole // 2)
        return (offset >= 0) & (offset < hole)

    rows = inside(inputs.cutout_row, x.shape[1])[:, :, None, None]
    columns = inside(inputs.cutout_column, x.shape[2])[:, None, :, None]
    return jnp.where(rows & columns, 0.0, x)
