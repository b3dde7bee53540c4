"""The two networks of a run behind one interface, so that the training step is written once for every family."""

from typing import Any, NamedTuple, Protocol

import jax

from noisytwins_jax.models.discriminator_output import DiscriminatorOutput

Array = jax.Array
PyTree = Any


class GeneratorInputs(NamedTuple):
    """What a batch of generated images is made from."""

    z: Array  # [N, z_dim]
    labels: Array  # [N] int32
    class_noise: Array  # [N, class_noise_dims[0]]
    mixing_z: Array | None  # [N, z_dim], second latents of style mixing
    mixing_noise: Array | None  # class noise of the second latents
    mixing_cutoff: Array | None  # int, the first layer that takes the second latents
    key: Array  # per-pixel noise
    instances: Array | None = None  # [N, d], features of instances, where images are conditioned on them


class DiscriminatorInputs(NamedTuple):
    """What a discriminator looks at."""

    images: Array  # [N, H, W, C], after augmentation
    labels: Array  # [N] int32
    class_noise: Array  # [N, class_noise_dims[1]]
    low_images: Array | None = None  # [N, h, w, C], where there are low logits
    dropout: Array | None = None  # key, for a discriminator that drops features; None to drop none
    instances: Array | None = None  # [N, d], features of instances


class OfItsGenerator:
    """What every family's `Model` says of itself as its `generator` does."""

    generator: Any  # a Flax module

    @property
    def num_classes(self) -> int:
        """See `Model`."""
        return self.generator.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """See `Model`."""
        return (self.generator.resolution, self.generator.resolution, self.generator.channels)

    @property
    def z_dim(self) -> int:
        """See `Model`."""
        return self.generator.z_dim


class Model(Protocol):
    """A generator and a discriminator, as a value that can be hashed.

    `variables` are Flax collections with ``params`` among them.
    Statistics are the other collections; methods return those that they changed, complete, and ``{}`` for none.
    """

    image_shape: tuple[int, int, int]  # height, width, channels
    z_dim: int
    num_classes: int
    class_noise_dims: tuple[int, int]  # widths of the class embeddings of generator and discriminator
    mixing_layers: int  # layers that style mixing chooses a cutoff from, 0 where there is none
    low_shape: tuple[int, int, int] | None  # of the low-resolution images that have logits of their own (UTLO)
    # Paths, or their beginnings, of the discriminator's parameters that R1 does not involve; see `Discriminator`.
    parameters_without_r1: tuple[tuple[str, ...], ...]
    w_is_truncated: bool  # whether truncation can act in W (ψ)
    instance_features: int  # d, width of the features of instances; 0 for none: then all `instances` are None
    standing_statistics: (
        bool  # whether images need moments of activations that are taken beforehand, `batch_statistics`
    )

    def init(self, key: Array) -> tuple[dict, dict]:
        """Fresh variables of generator and discriminator."""
        ...

    def map(self, variables: dict, draws: GeneratorInputs, update_stats: bool = False) -> tuple[Array, Array, PyTree]:
        """Conditioning of a batch: w ``[N, D]``, what `synthesize` takes, and the statistics after it."""
        ...

    def synthesize(
        self, variables: dict, conditioning: Array, key: Array, update_stats: bool = False
    ) -> tuple[Array, Array | None, PyTree]:
        """Images ``[N, H, W, C]``, low-resolution images ``[N, *low_shape]`` if any, and the statistics after it."""
        ...

    def low_images(self, images: Array) -> Array | None:
        """The low-resolution versions ``[N, *low_shape]`` of real images ``[N, H, W, C]``, if any."""
        ...

    def discriminate(
        self, variables: dict, inputs: DiscriminatorInputs, update_stats: bool = False
    ) -> tuple[DiscriminatorOutput, PyTree]:
        """What the discriminator says of N images, and its statistics after it; low logits where there are low images."""
        ...

    def discriminate_both(
        self, variables: dict, real: DiscriminatorInputs, fake: DiscriminatorInputs
    ) -> tuple[DiscriminatorOutput, DiscriminatorOutput, PyTree]:
        """What the discriminator says of N real and of N generated images, and its statistics after it.

        As if passed one after the other, each kind on its own: whatever is a matter of the batch must not mix them.
        """
        ...

    def latent_w(self, variables: dict, z: Array, labels: Array, instances: Array | None = None) -> Array:
        """w ``[N, D]`` of latents ``[N, z_dim]``, labels ``[N]`` and instances ``[N, d]``, without class noise."""
        ...

    def sample(
        self,
        variables: dict,
        z: Array,
        labels: Array,
        key: Array,
        psi: Array | None = None,
        instances: Array | None = None,
    ) -> tuple[Array, Array]:
        """Images ``[N, H, W, C]`` as people and metrics see them, each by itself, and w ``[N, D]``.

        Without class noise, and with statistics as they are in the variables. `psi` truncates w, where that can be;
        `key` is of per-pixel noise; `instances` are features ``[N, d]``.
        """
        ...

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
        """Images ``[N, H, W, C]`` between two classes: of ``labels[:, 0]`` at t = 0, of ``labels[:, 1]`` at t = 1.

        On a straight line between what the two classes make of z; otherwise as `sample`.

        Args:
          variables: the generator's.
          z: latents ``[N, z_dim]``.
          labels: int32 ``[N, 2]``.
          t: ``[N]``.
          key: of per-pixel noise.
          psi: see `sample`.
          instances: features at either end ``[N, 2, d]``.
        """
        ...

    def batch_statistics(self, variables: dict, z: Array, labels: Array, instances: Array | None = None) -> PyTree:
        """The collections of statistics as one batch has them, where there are `standing_statistics`."""
        ...

    def with_transition(self, stats: dict, t: Array) -> dict:
        """The generator's statistics with the transition to the class (Transitional-cGAN) at t, where there is one."""
        ...


def between(a: Array, b: Array, t: Array) -> Array:
    """Rows of a ``[N, …]`` at t = 0, of b at t = 1, both to the bit, and on the line between them elsewhere; t is ``[N]``."""
    t = t.reshape(-1, *[1] * (a.ndim - 1))
    return (1.0 - t) * a + t * b
