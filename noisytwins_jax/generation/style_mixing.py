"""Each layer's w of samples, and images that take the w of some layers from another sample (StyleGAN2)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from noisytwins_jax.generation.trained_generator import TrainedGenerator
from noisytwins_jax.models.latents import Latents, Truncation
from noisytwins_jax.utils.randomness import sample_keys

Array = jax.Array
_BATCH = 64  # samples in a call of the program


def layer_ws(
    trained: TrainedGenerator,
    labels: np.ndarray,
    indices: np.ndarray,
    seed: int = 0,
    truncation: Truncation | None = None,
) -> np.ndarray:
    """Compute each layer's w of the images that a sampler generates: float32 ``[n, num_ws, w_dim]``, untruncated in W.

    Args:
      trained: a StyleGAN2.
      labels: int ``[n]``.
      indices: int ``[n]``, of samples; see `TrainedGenerator.labels_and_indices`.
      seed: of the latents.
      truncation: that of z counts, one in W does not.

    Raises:
      UserError: the generator is no StyleGAN2.
    """
    generator = trained.stylegan2_generator("Each layer's w")
    in_z = truncation if truncation and truncation.kind != "psi" else None
    program = _program(generator, trained.config.z, in_z and in_z.kind)
    strength, parts = None if in_z is None else np.float32(in_z.strength), []
    for start in range(0, len(labels), _BATCH):
        rows = [np.asarray(x[start : start + _BATCH], np.int32) for x in (labels, indices)]
        padded = [np.pad(x, (0, _BATCH - len(x))) for x in rows]
        parts.append(np.asarray(program(trained.variables, strength, np.uint32(seed), *padded))[: len(rows[0])])
    return np.concatenate(parts)


def mix_layers(ws: np.ndarray, layers: Sequence[int]) -> np.ndarray:
    """Mix styles: entry ``[i, j]`` of the result ``[n, n, num_ws, w_dim]`` is sample i with these layers of sample j."""
    chosen = np.isin(np.arange(ws.shape[1]), layers)
    return np.where(chosen[:, None], ws[None], ws[:, None])


def mixing_images(
    trained: TrainedGenerator,
    ws: np.ndarray,
    layers: Sequence[int],
    psi: float | None = None,
    noise_mode: str = "const",
    seed: int = 0,
) -> np.ndarray:
    """Generate the cells of a picture of style mixing, row by row: uint8 ``[(n + 1)², H, W, C]``.

    The first cell is white, the rest of the first row and column are the samples; the others are those of `mix_layers`.
    Arguments as of `TrainedGenerator.synthesize`.
    """
    n = len(ws)
    images = trained.synthesize(ws, psi, noise_mode, seed)
    cells = trained.synthesize(mix_layers(ws, layers).reshape(n * n, *ws.shape[1:]), psi, noise_mode, seed)
    cells = cells.reshape(n, n, *images.shape[1:])
    rows = [np.full_like(images[:1], 255), images] + [x for i in range(n) for x in (images[i : i + 1], cells[i])]
    return np.concatenate(rows)


@functools.lru_cache(maxsize=8)
def _program(generator: Any, latents: Latents, truncation_kind: str | None) -> Any:
    """Build the program (variables, strength, seed, labels ``[n]``, indices ``[n]``) → each layer's w ``[n, num_ws, w_dim]``."""

    def latent(key: Array, strength: Array | None) -> Array:
        z_key, _ = jax.random.split(key)  # as in `sample_program`
        return latents.draw(z_key, 1, truncation_kind=truncation_kind, strength=strength)[0]

    @jax.jit
    def program(variables: dict, strength: Array | None, seed: Array, labels: Array, indices: Array) -> Array:
        z = jax.vmap(latent, in_axes=(0, None))(sample_keys(seed, indices), strength)
        return generator.apply(variables, z, labels, method="styles")[1]

    return program
