"""Features of images: several extractors at once, on this process's devices, from the host or from a generator."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import jax
import numpy as np

from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.sharding import Layout

Array = jax.Array
Look = Callable[[Array], tuple[Array, ...]]


class Features(NamedTuple):
    """What an extractor says of n images."""

    features: np.ndarray  # float32 [n, d]
    logits: np.ndarray  # float32 [n, k], k = 0 where the extractor has none


class Fakes(Protocol):
    """Where generated images come from; `sampling.Sampler` is one.

    Attributes:
      image_size: height, width and channels of the images; None for those of the reference images.
    """

    image_size: tuple[int, int, int] | None

    def extract_features(self, look: Look, labels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """Generates an image for each row and looks at it before it leaves the device.

        Args:
          look: images uint8 ``[m, H, W, C]`` on this process's devices → arrays ``[m, …]``.
          labels: int32 ``[n]``.
          indices: int64 ``[n]``. Image i is a function of its label and its index alone, so that results do not depend
            on how images are divided among calls, devices and processes.

        Returns:
          What ``look`` gave, and w float32 ``[n, D]``, on the host.
        """
        ...


class HostFakes:
    """`Fakes` from a function on the host, such as a reader of files.

    Args:
      generate: (labels int32 ``[n]``, indices int64 ``[n]``) → images uint8 ``[n, H, W, C]`` and w ``[n, D]`` or None.
      per_device_batch: images per device and call.
      prefetch: batches in flight at once.
      image_size: see `Fakes`.
    """

    def __init__(
        self,
        generate: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray | None]],
        per_device_batch: int = 64,
        prefetch: int = 2,
        image_size: tuple[int, int, int] | None = None,
    ) -> None:
        self._generate, self._layout = generate, Layout(jax.local_devices())
        self._batching = {"per_device_batch": per_device_batch, "prefetch": prefetch}
        self.image_size = image_size

    def extract_features(self, look: Look, labels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """See `Fakes`."""
        images, w = self._generate(labels, indices)
        seen = self._layout.map_batches(lambda _, x: look(x), None, images, **self._batching)
        return *seen, np.zeros((len(labels), 0), np.float32) if w is None else np.asarray(w)


class Embedder:
    """Extractors with their weights on this process's devices.

    Args:
      extractors: by name.
      per_device_batch: images per device and call; changing it changes the last bits of the results.
      prefetch: batches in flight at once.
    """

    def __init__(
        self, extractors: Mapping[str, FeatureExtractor], per_device_batch: int = 64, prefetch: int = 2
    ) -> None:
        self._layout = Layout(jax.local_devices())
        self._batching = {"per_device_batch": per_device_batch, "prefetch": prefetch}
        self.extractors = dict(extractors)
        self._variables = {name: self._layout.put_everywhere(x.variables) for name, x in self.extractors.items()}

    def of_images(self, images: np.ndarray) -> dict[str, Features]:
        """Features of images uint8 ``[n, H, W, C]`` on the host, by extractor."""
        seen = self._layout.map_batches(lambda _, x: self._look(x), None, images, **self._batching)
        return self._named(seen)

    def of_fakes(
        self, fakes: Fakes, labels: np.ndarray, indices: np.ndarray, size: tuple[int, int, int], keep: bool = False
    ) -> tuple[dict[str, Features], np.ndarray, np.ndarray | None]:
        """Features by extractor, w ``[n, D]`` and, if they are to be kept, the images uint8 ``[n, H, W, C]``.

        Raises:
          UserError: the images are not uint8 ``[n, *size]``.
        """

        def look(images: Array) -> tuple[Array, ...]:
            if images.shape[1:] != size or images.dtype != np.uint8:
                raise UserError(
                    f"The generator made {images.dtype} images of shape {images.shape[1:]}, but the reference images call "
                    f"for uint8 {size}: use the data configuration that the checkpoint was trained with."
                )
            return (*self._look(images), *((images,) if keep else ()))

        *seen, w = fakes.extract_features(look, labels, indices)
        images = seen.pop() if keep else None
        return self._named(seen), w, images

    def _look(self, images: Array) -> tuple[Array, ...]:
        return tuple(
            x for name, extractor in self.extractors.items() for x in extractor.apply(self._variables[name], images)
        )

    def _named(self, seen: tuple[np.ndarray, ...] | list[np.ndarray]) -> dict[str, Features]:
        pairs = zip(seen[::2], seen[1::2], strict=True)
        return {name: Features(*pair) for name, pair in zip(self.extractors, pairs, strict=True)}
