"""The interface of a generator and a discriminator, so that the training step is written once for every family."""

import abc
from typing import Any, ClassVar, NamedTuple

import jax

from noisytwins_jax.models.discriminator_output import DiscriminatorOutput
from noisytwins_jax.models.rows import Rows

Array = jax.Array
PyTree = Any


class GeneratorInputs(NamedTuple):
    """Random inputs of a batch of N generated images."""

    z: Array  # [N, z_dim]
    labels: Array  # [N] int32
    class_noise: Array  # [N, class_noise_dims[0]]
    mixing_z: Array | None  # [N, z_dim], second latents of style mixing
    mixing_noise: Array | None  # class noise of the second latents
    mixing_cutoff: Array | None  # int, the first layer that takes the second latents
    key: Array  # per-pixel noise
    instances: Array | None = None  # [N, d], features of instances, where images are conditioned on them


class DiscriminatorInputs(NamedTuple):
    """Inputs of the discriminator for N real or generated images."""

    images: Array  # [N, H, W, C]
    labels: Array  # [N] int32
    class_noise: Array  # [N, class_noise_dims[1]]
    low_images: Array | None = None  # [N, h, w, C], where there are low logits
    dropout: Array | None = None  # key, for a discriminator that drops features; None to drop none
    instances: Array | None = None  # [N, d], features of instances
    augment_key: Array | None = None  # of the augmentation still to be done; networks take augmented images


class Model(abc.ABC):
    """A generator and a discriminator; subclasses are frozen dataclasses, so that a model can be hashed.

    `variables` are Flax collections with ``params`` among them. "Statistics" are the other collections; methods return
    those that they changed, complete, and ``{}`` for none.

    Attributes:
      generator, discriminator: Flax modules.
      instance_features: d, width of the features of instances; 0 for none: then all `instances` are None.
      needs_standing_statistics: whether sampling needs statistics of activations that are computed beforehand, by
        `batch_statistics`.
      scales_class_tables: whether the networks divide their class embeddings by √classes.
    """

    generator: Any
    discriminator: Any
    instance_features: int = 0
    needs_standing_statistics: ClassVar[bool] = False
    scales_class_tables: ClassVar[bool] = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return (self.generator.resolution, self.generator.resolution, self.generator.channels)

    @property
    def z_dim(self) -> int:
        """Width of the latents."""
        return self.generator.z_dim

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.generator.num_classes

    @property
    @abc.abstractmethod
    def class_noise_dims(self) -> tuple[int, int]:
        """Widths of the class noise of generator and discriminator."""

    @property
    def mixing_layers(self) -> int:
        """Number of layers that style mixing chooses a cutoff from, 0 where there is no style mixing."""
        return 0

    @property
    def low_shape(self) -> tuple[int, int, int] | None:
        """Shape ``(h, w, C)`` of the low-resolution images that have logits of their own (UTLO), or None."""
        return None

    @property
    def parameters_without_r1(self) -> tuple[tuple[str, ...], ...]:
        """Paths, or prefixes of paths, of the discriminator's parameters that R1 does not depend on."""
        return ()

    @abc.abstractmethod
    def init(self, key: Array) -> tuple[dict, dict]:
        """Initialise the variables of generator and discriminator."""

    @abc.abstractmethod
    def map(self, variables: dict, inputs: GeneratorInputs, update_stats: bool = False) -> tuple[Array, Any, PyTree]:
        """Return w ``[N, D]``, the conditioning that `synthesize` takes, and the changed statistics."""

    def style(self, variables: dict, inputs: GeneratorInputs) -> Array | None:
        """Return the class's style ``[N, S]`` of a mapping network that has a head for it (Content–Style), or None."""
        del variables, inputs
        return None

    @abc.abstractmethod
    def synthesize(
        self, variables: dict, conditioning: Any, key: Array, update_stats: bool = False, rows: Rows | None = None
    ) -> tuple[Array, Array | None, PyTree]:
        """Generate images in training mode.

        Args:
          variables: of the generator.
          conditioning: second result of `map`.
          key: of per-pixel noise.
          update_stats: whether statistics change.
          rows: in a micro-batch, which rows of the batch it is.

        Returns:
          Images ``[N, H, W, C]``, low-resolution images ``[N, *low_shape]`` or None, and the changed statistics.
        """

    def low_images(self, images: Array) -> Array | None:
        """Downsample real images ``[N, H, W, C]`` to ``[N, *low_shape]``; return None where there is no `low_shape`."""
        del images
        return None

    @abc.abstractmethod
    def discriminate(
        self, variables: dict, inputs: DiscriminatorInputs, update_stats: bool = False
    ) -> tuple[DiscriminatorOutput, PyTree]:
        """Return the discriminator's output and its changed statistics; low logits where there are low images."""

    @abc.abstractmethod
    def discriminate_both(
        self, variables: dict, real: DiscriminatorInputs, fake: DiscriminatorInputs
    ) -> tuple[DiscriminatorOutput, DiscriminatorOutput, PyTree]:
        """Return the outputs for N real and for N generated images, and the changed statistics.

        The result is that of two passes, one for each kind: operations over the batch must not mix the two.
        """

    @abc.abstractmethod
    def latent_w(self, variables: dict, z: Array, labels: Array, instances: Array | None = None) -> Array:
        """Map latents ``[N, z_dim]``, labels ``[N]`` and instances ``[N, d]`` to w ``[N, D]``, without class noise."""

    @abc.abstractmethod
    def sample(
        self,
        variables: dict,
        z: Array,
        labels: Array,
        key: Array,
        psi: Array | None = None,
        instances: Array | None = None,
    ) -> tuple[Array, Array]:
        """Generate images for evaluation, each independent of the others in the batch.

        Class noise is off, and statistics are those in the variables.

        Args:
          variables: of the generator.
          z: latents ``[N, z_dim]``.
          labels: int32 ``[N]``.
          key: of per-pixel noise.
          psi: strength of truncation in W, ignored by networks without W; None for none.
          instances: features ``[N, d]``.

        Returns:
          Images ``[N, H, W, C]`` and w ``[N, D]``.
        """

    @abc.abstractmethod
    def sample_between(
        self,
        variables: dict,
        z: Array,
        labels: Array,
        t: Array,
        key: Array,
        psi: Array | None = None,
        instances: Array | None = None,
    ) -> Array:
        """Generate images ``[N, H, W, C]`` between two classes: of ``labels[:, 0]`` at t = 0, ``labels[:, 1]`` at t = 1.

        What conditions the generator on z and the class is interpolated linearly; otherwise as `sample`.

        Args:
          variables: of the generator.
          z: latents ``[N, z_dim]``.
          labels: int32 ``[N, 2]``.
          t: ``[N]``.
          key: of per-pixel noise.
          psi: see `sample`.
          instances: features at either end ``[N, 2, d]``.
        """

    def batch_statistics(self, variables: dict, z: Array, labels: Array, instances: Array | None = None) -> PyTree:
        """Return the batch statistics of every BatchNorm for one batch, where `needs_standing_statistics`."""
        raise NotImplementedError(f"{type(self).__name__} has no batch statistics.")

    def with_transition(self, stats: dict, t: Array) -> dict:
        """Return the generator's statistics with the class transition (Transitional-cGAN) at t, where there is one."""
        del t
        return stats


def lerp(a: Array, b: Array, t: Array) -> Array:
    """Interpolate linearly between rows of a and b ``[N, …]`` by t ``[N]``; exact at t = 0 (a) and t = 1 (b)."""
    t = t.reshape(-1, *[1] * (a.ndim - 1))
    return (1.0 - t) * a + t * b
