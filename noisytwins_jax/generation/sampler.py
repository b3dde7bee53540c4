"""Images from a trained generator: each one a pure function of (seed, its index, its class, truncation)."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.instance_table import InstanceTable
from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.generation.sample_programs import interpolation_program, sample_program
from noisytwins_jax.generation.standing_statistics import standing_statistics
from noisytwins_jax.models.latents import Latents, Truncation
from noisytwins_jax.models.model import Model
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.utils.multihost import local_copy
from noisytwins_jax.utils.sharding import Layout

Array = jax.Array


class Sampler:
    """Generator of images from fixed variables on this process's devices, in padded batches of one compiled shape.

    Class noise is off. Image i depends on (seed, i, class, truncation) only: bit for bit whatever the other images, and on
    another number of devices up to rounding (a grey level in less than 1 % of the values). With instances it depends on
    them too: its instance is one of its class, sampled with its index. A network with BatchNorm needs variables with the
    `standing_statistics` of this truncation.

    Args:
      model: the networks.
      latents: the distribution of z.
      variables: the generator's collections, usually the moving average; whole in this process (`multihost.local_copy`).
      seed: of latents and per-pixel noise.
      truncation: ``None`` for none.
      per_device_batch: images per device and call; changing it changes the last bits of the results.
      prefetch: batches in flight at once.
      instances: the table, where the model is conditioned on instances; an argument of the programs, like the variables.
      style_seed: seed of the style's half of z (Content–Style), by default `seed`; interpolation ignores it.
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
        style_seed: int | None = None,
    ):
        self._layout = Layout(jax.local_devices())
        self._batching = {"per_device_batch": per_device_batch, "prefetch": prefetch}
        self._arguments = self._layout.replicate_to_devices((variables, instances))
        kind = truncation and truncation.kind
        self._program = sample_program(model, latents, kind)
        self._interpolation_program = interpolation_program(model, latents, kind)
        self._seed = np.uint32(seed)
        self._style_seed = None if style_seed is None else np.uint32(style_seed)
        self._strength = None if truncation is None else np.float32(truncation.strength)
        self.image_size = None  # that of the reference images; see `metrics.features.Fakes`

    def __call__(self, labels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Generate images uint8 ``[n, H, W, C]`` and w ``[n, D]`` of labels ``[n]`` int and sample indices ``[n]``."""
        images, w = self.extract_features(lambda images: (images,), labels, indices)
        return images, w

    def extract_features(
        self, extract: Callable[[Array], tuple[Array, ...]], labels: np.ndarray, indices: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Return the results of ``extract(images)``, called while images are still on the devices, and w ``[n, D]``."""

        def program(arguments: tuple[dict, InstanceTable | None], labels: Array, indices: Array) -> tuple[Array, ...]:
            variables, instances = arguments
            images, w = self._program(
                variables, self._strength, self._seed, labels, indices, instances, self._style_seed
            )
            return *extract(images), w

        arrays = np.asarray(labels, np.int32), np.asarray(indices, np.int32)
        return self._layout.map_batches(program, self._arguments, *arrays, **self._batching)

    def compile(self) -> jax.stages.Compiled:
        """Compile the program of a batch, the one that the next call runs."""
        rows = [np.zeros(self._batching["per_device_batch"] * self._layout.num_devices, np.int32)] * 2
        variables, instances = self._arguments
        rows = jax.device_put(rows, self._layout.split)
        return self._program.lower(variables, self._strength, self._seed, *rows, instances, self._style_seed).compile()

    def interpolate(self, labels: np.ndarray, indices: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Generate images between one (class, z) at t = 0 and another at t = 1, uint8 ``[n, H, W, C]``.

        Interpolation is linear in z, whatever the distribution of latents (halfway, normal latents are therefore closer to
        the mean than sampled ones), and between the classes (see `Model.sample_between`). A class or z that is the same at
        both ends does not change. Each end has an instance of its own. Per-pixel noise is that of the first index for all
        t.

        Args:
          labels: int ``[n, 2]``, of either end.
          indices: int ``[n, 2]``, sample indices whose z are the ends.
          t: float ``[n]``.
        """

        def program(arguments: tuple[dict, InstanceTable | None], *rows: Array) -> tuple[Array, ...]:
            variables, instances = arguments
            return (self._interpolation_program(variables, self._strength, self._seed, *rows, instances),)

        arrays = np.asarray(labels, np.int32), np.asarray(indices, np.int32), np.asarray(t, np.float32)
        (images,) = self._layout.map_batches(program, self._arguments, *arrays, **self._batching)
        return images


def build_sampler(
    config: RunConfig,
    variables: dict,
    splits: DataSplits,
    truncation: Truncation | None = None,
    **options: Any,
) -> Sampler:
    """Build the sampler of a run's generator; `options` are arguments of `Sampler`. To be called by all processes."""
    model = build_model(config, splits.train.channels, splits.train.num_classes)
    counts = config.evaluation.standing_passes, config.evaluation.standing_batch
    variables = standing_statistics(model, config.z, local_copy(variables), truncation, *counts, splits.instances)
    return Sampler(model, config.z, variables, truncation=truncation, instances=splits.instances, **options)
