"""Features of real and of generated images, for `evaluation` to compare.

In a run of several processes each computes its share, by the images' global numbers, and all get everything.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from noisytwins_jax.data.source import ImageSource, read_images
from noisytwins_jax.errors import UserError
from noisytwins_jax.together import shared_rows

Generate = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
IMAGES_AT_ONCE = 1024  # in the host's memory


class FeatureExtractor(Protocol):
    """What the evaluation asks of an extractor; ``metrics.classifier.Extractor`` is the embedded one."""

    name: str
    sha256: str
    description: dict[str, Any]

    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [n, H, W, C] -> features float32 [n, d], class logits float32 [n, num_classes]."""
        ...


def reference_features(reference: ImageSource, extractor: FeatureExtractor) -> np.ndarray:
    """Features [n, d] of all reference images."""

    def embed(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        return (
            np.concatenate([extractor.features(read_images(reference, part)["image"])[0] for part in _parts(rows)]),
        )

    return shared_rows(embed, len(reference))[0]


def generated_features(
    generate: Generate,
    extractor: FeatureExtractor,
    labels: np.ndarray,
    reference: ImageSource,
    progress: Callable[[int, int], None] | None = None,
    look: Callable[[np.ndarray], tuple[np.ndarray, ...]] = lambda images: (),
) -> tuple[np.ndarray, ...]:
    """Generates an image for each label, and looks at it.

    Args:
        generate: (labels int32 [m], indices int64 [m]) -> (images uint8 [m, H, W, C], w float [m, D]). Sample i must
            depend on its label and its global index i alone, so that results do not depend on how the images are
            divided among calls, devices and processes.
        extractor: gives features and class logits.
        labels: int32 [n].
        reference: the real images, whose size the generated ones must have.
        progress: called with (images done, images) of this process's share, after each call.
        look: what else is to be read off the images: uint8 [m, H, W, C] -> arrays [m, ...].

    Returns:
        Features [n, d], predicted classes int [n], w [n, D] and, [n, ...] each, what ``look`` gave.

    Raises:
        UserError: if the images are of another size or type.
    """
    size = (reference.resolution, reference.resolution, reference.channels)

    def embed(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        results, done = [], 0
        for part in _parts(rows):
            images, w = generate(labels[part], part)
            images = np.asarray(images)
            if images.shape != (len(part), *size) or images.dtype != np.uint8:
                raise UserError(
                    f"The generator made {images.dtype} images of shape {images.shape}, but the reference images call "
                    f"for uint8 {(len(part), *size)}: use the data configuration that the checkpoint was trained with."
                )
            features, logits = extractor.features(images)
            results.append((features, logits.argmax(axis=1), np.asarray(w), *look(images)))
            done += len(part)
            if progress:
                progress(done, len(rows))
        return tuple(np.concatenate(arrays) for arrays in zip(*results, strict=True))

    return shared_rows(embed, len(labels))


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + IMAGES_AT_ONCE] for start in range(0, len(rows), IMAGES_AT_ONCE)]
