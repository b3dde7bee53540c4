"""Images from a trained generator: each one a pure function of (seed, its index, its class, truncation)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.networks.stylegan2 import Generator, truncate
from noisytwins_jax.randomness import sample_keys
from noisytwins_jax.sharding import Layout

Array = jax.Array


def quantize(images: Array) -> Array:
    """[-1, 1] to uint8: ``⌊clip(127.5·x + 128, 0, 255)⌋``, the published rule."""
    return jnp.clip(127.5 * images + 128.0, 0.0, 255.0).astype(jnp.uint8)


class Sampler:
    """Generates from fixed variables on this process's devices, in padded batches of one compiled shape.

    Class noise is off. Image i depends on (seed, i, class, psi) only, whatever the number of devices or the other images.

    Args:
      generator: the network.
      variables: its collections, usually the moving average; whole in this process (`together.local_copy`).
      seed: of latents and per-pixel noise.
      noise_mode: per-pixel noise: ``"random"`` (by index), ``"const"`` or ``"none"``.
      psi: truncation in W; ``None`` or 1 for none.
      rows: images that each device makes in a call of the program. Another number changes the last bits.
      ahead: calls under way at once.
    """

    def __init__(
        self,
        generator: Generator,
        variables: dict,
        seed: int = 0,
        noise_mode: str = "random",
        psi: float | None = None,
        rows: int = 64,
        ahead: int = 1,
    ):
        self._layout, self._rows, self._ahead = Layout(jax.local_devices()), rows, ahead
        self._variables = self._layout.put_everywhere(variables)
        self._program = sample_program(generator, seed, noise_mode)
        self._psi = None if psi in (None, 1) else np.float32(psi)
        self.image_size = None  # the network's

    def __call__(self, labels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels ``[n]`` int and global sample indices ``[n]`` → images uint8 ``[n, H, W, C]`` and w ``[n, w_dim]``."""
        images, w = self.looked_at(lambda images: (images,), labels, indices)
        return images, w

    def looked_at(
        self, look: Callable[[Array], tuple[Array, ...]], labels: np.ndarray, indices: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """What ``look(images)`` gives, called with images that are still on the devices; and w ``[n, w_dim]``."""

        def program(variables: dict, labels: Array, indices: Array) -> tuple[Array, ...]:
            images, w = self._program(variables, self._psi, labels, indices)
            return *look(images), w

        rows = np.asarray(labels, np.int32), np.asarray(indices, np.int32)
        return self._layout.map_rows(program, self._variables, *rows, size=self._rows, ahead=self._ahead)


@functools.lru_cache(maxsize=8)  # compiled once for all samplers of a generator: variables are arguments
def sample_program(
    generator: Generator, seed: int, noise_mode: str
) -> Callable[[dict, Array | None, Array, Array], tuple[Array, Array]]:
    """The program of a `Sampler`: (variables, ψ or None, labels int32 ``[n]``, indices int32 ``[n]``) → images and w."""

    def one(variables: dict, psi: Array | None, label: Array, key: Array) -> tuple[Array, Array]:
        z_key, noise_key = jax.random.split(key)
        z = jax.random.normal(z_key, (1, generator.z_dim))
        w, ws = generator.apply(variables, z, label[None], method="styles")
        if psi is not None:
            w, ws = (truncate(x, variables["buffers"]["mapping"]["w_avg"], psi) for x in (w, ws))
        image = generator.apply(variables, ws, noise_mode, method="synthesize", rngs={"noise": noise_key})
        return quantize(image[0]), w[0]

    @jax.jit
    def program(variables: dict, psi: Array | None, labels: Array, indices: Array) -> tuple[Array, Array]:
        return jax.vmap(one, in_axes=(None, None, 0, 0))(variables, psi, labels, sample_keys(seed, indices))

    return program
