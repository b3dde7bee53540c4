"""Feature extraction on this process's devices, with several extractors at once, from host arrays or a generator."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from typing_extensions import override

from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.sharding import Layout

Array = jax.Array
Extract = Callable[[Array], tuple[Array, ...]]


class Features(NamedTuple):
    """Features and logits of n images."""

    features: np.ndarray  # float32 [n, d]
    logits: np.ndarray  # float32 [n, k], k = 0 where the extractor has none


class Fakes(Protocol):
    """A source of generated images, such as `generation.sampler.Sampler`.

    Attributes:
      image_size: height, width and channels; None for those of the reference images.
    """

    image_size: tuple[int, int, int] | None

    def extract_features(self, extract: Extract, labels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """Generate an image for each label and extract features while it is on the device.

        Args:
          extract: images uint8 ``[m, H, W, C]`` on this process's devices → arrays ``[m, …]``.
          labels: int32 ``[n]``.
          indices: int64 ``[n]``. Image i is a function of its label and its index alone, so that results do not depend
            on how images are divided among calls, devices and processes.

        Returns:
          The arrays from ``extract``, and w float32 ``[n, D]``, on the host.
        """
        ...


class HostFakes(Fakes):
    """Generated images from a function on the host, such as a reader of files.

    Args:
      generate: (labels int32 ``[n]``, indices int64 ``[n]``) → images uint8 ``[n, H, W, C]`` and w ``[n, D]`` or None.
      per_device_batch: images per device and call.
      prefetch: batches in flight at once.
      image_size: as in `Fakes`.
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

    @override
    def extract_features(self, extract: Extract, labels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        images, w = self._generate(labels, indices)
        outputs = self._layout.map_batches(lambda _, x: extract(x), None, images, **self._batching)
        return *outputs, np.zeros((len(labels), 0), np.float32) if w is None else np.asarray(w)


class Embedder:
    """Feature extractors with their weights on this process's devices.

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
        self._apply = {name: jax.jit(x.apply) for name, x in self.extractors.items()}
        self._variables = {name: self._layout.replicate_to_devices(x.variables) for name, x in self.extractors.items()}

    def compile(self, size: tuple[int, int, int], sharding: jax.sharding.Sharding | None = None) -> dict[str, Any]:
        """Compile each extractor's program for a batch of images of a size, the one that the next call runs."""
        batch = self._batching["per_device_batch"] * self._layout.num_devices
        images = jax.device_put(np.zeros((batch, *size), np.uint8), sharding or self._layout.split)
        return {name: f.lower(self._variables[name], images).compile() for name, f in self._apply.items()}

    def embed_images(self, images: np.ndarray) -> dict[str, Features]:
        """Compute the features of images uint8 ``[n, H, W, C]`` on the host, by extractor."""
        return self._by_extractor(
            self._layout.map_batches(lambda _, x: self._extract(x), None, images, **self._batching)
        )

    def embed_fakes(
        self,
        fakes: Fakes,
        labels: np.ndarray,
        indices: np.ndarray,
        size: tuple[int, int, int],
        return_images: bool = False,
    ) -> tuple[dict[str, Features], np.ndarray, np.ndarray | None]:
        """Compute features by extractor, w ``[n, D]`` and, with `return_images`, the images uint8 ``[n, H, W, C]``.

        Raises:
          UserError: the images are not uint8 ``[n, *size]``.
        """

        def extract(images: Array) -> tuple[Array, ...]:
            if images.shape[1:] != size or images.dtype != np.uint8:
                raise UserError(
                    f"The generator made {images.dtype} images of shape {images.shape[1:]}, but the reference images call "
                    f"for uint8 {size}: use the data configuration that the checkpoint was trained with."
                )
            return (*self._extract(images), *((images,) if return_images else ()))

        *outputs, w = fakes.extract_features(extract, labels, indices)
        images = outputs.pop() if return_images else None
        return self._by_extractor(outputs), w, images

    def _extract(self, images: Array) -> tuple[Array, ...]:
        return tuple(x for name, apply in self._apply.items() for x in apply(self._variables[name], images))

    def _by_extractor(self, outputs: Sequence[np.ndarray]) -> dict[str, Features]:
        pairs = zip(outputs[::2], outputs[1::2], strict=True)
        return {name: Features(*pair) for name, pair in zip(self.extractors, pairs, strict=True)}
