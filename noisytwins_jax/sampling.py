"""Images from a trained generator: each one a pure function of (seed, its index, its class, truncation)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.networks.stylegan2 import Generator, truncate
from noisytwins_jax.randomness import sample_keys

Array = jax.Array


def quantize(images: Array) -> Array:
    """[-1, 1] to uint8: ``⌊clip(127.5·x + 128, 0, 255)⌋``, the published rule."""
    return jnp.clip(127.5 * images + 128.0, 0.0, 255.0).astype(jnp.uint8)


class Sampler:
    """Generates from fixed variables, in padded batches of one compiled shape.

    Class noise is off. Image i depends on (seed, i, class, psi) only, whatever the batch size or the other images.

    Args:
      generator: the network.
      variables: its collections, usually the moving average.
      seed: of latents and per-pixel noise.
      noise_mode: per-pixel noise: ``"random"`` (by index), ``"const"`` or ``"none"``.
      psi: truncation in W; ``None`` or 1 for none.
      batch_size: images a call of the program.
    """

    def __init__(
        self,
        generator: Generator,
        variables: dict,
        seed: int = 0,
        noise_mode: str = "random",
        psi: float | None = None,
        batch_size: int = 180,
    ):
        self.variables, self.batch_size = variables, batch_size
        self._program = _sample_program(generator, seed, noise_mode, psi)

    def __call__(self, labels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels ``[n]`` int and global sample indices ``[n]`` → images uint8 ``[n, H, W, C]`` and w ``[n, w_dim]``."""
        images, ws = [], []
        for start in range(0, len(labels), self.batch_size):
            rows = slice(start, start + self.batch_size)
            padding = (0, self.batch_size - len(labels[rows]))
            image, w = self._program(
                self.variables,
                np.pad(np.asarray(labels[rows], np.int32), padding),
                np.pad(np.asarray(indices[rows], np.int32), padding),
            )
            images.append(np.asarray(image)[: len(labels[rows])])
            ws.append(np.asarray(w)[: len(labels[rows])])
        return np.concatenate(images), np.concatenate(ws)


@functools.lru_cache(maxsize=8)  # compiled once for all samplers of a generator: variables are arguments
def _sample_program(
    generator: Generator, seed: int, noise_mode: str, psi: float | None
) -> Callable[[dict, Array, Array], tuple[Array, Array]]:
    def one(variables: dict, label: Array, key: Array) -> tuple[Array, Array]:
        z_key, noise_key = jax.random.split(key)
        z = jax.random.normal(z_key, (1, generator.z_dim))
        w, ws = generator.apply(variables, z, label[None], method="styles")
        if psi is not None:
            w, ws = (truncate(x, variables["buffers"]["mapping"]["w_avg"], psi) for x in (w, ws))
        image = generator.apply(variables, ws, noise_mode, method="synthesize", rngs={"noise": noise_key})
        return quantize(image[0]), w[0]

    @jax.jit
    def program(variables: dict, labels: Array, indices: Array) -> tuple[Array, Array]:
        return jax.vmap(one, in_axes=(None, 0, 0))(variables, labels, sample_keys(seed, indices))

    return program
