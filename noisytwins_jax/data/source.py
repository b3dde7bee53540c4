"""Random access to labelled uint8 images, and the splits of an experiment."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import NotRequired, Protocol, TypedDict

import numpy as np

from noisytwins_jax.data.aspect import Aspect
from noisytwins_jax.data.instance_table import InstanceTable
from noisytwins_jax.data.long_tail import count_classes
from noisytwins_jax.utils.errors import UserError


class LabelledImages(TypedDict):
    """One image (``image`` uint8 ``[H, W, C]``, ``label`` int32 scalar) or a batch (a leading ``[B]`` on both).

    A training batch may also have ``instance`` int32 ``[B]``; see `data.instance_table`.
    """

    image: np.ndarray
    label: np.ndarray
    instance: NotRequired[np.ndarray]


class ImageSource(Protocol):
    """Random access to labelled images that are all square and of one size.

    A source that reads batches faster than single images may also define
    ``take(indices: np.ndarray) -> LabelledImages``, which ``read_images`` then calls.

    Attributes:
      num_classes: number of classes.
      resolution: height and width in pixels, a power of two of at least 8.
      channels: 1 (grey) or 3 (RGB).
      class_names: one name per class, in the order of the class ids.
      class_counts: int64 ``[num_classes]``, images per class, all at least 1.
      labels: int32 ``[len(source)]``, class ids in ``[0, num_classes)``, readable without reading any image.
      fingerprint: hexadecimal SHA-256 of shape, images and labels; identifies the data in caches and reports.
      preprocessing: how the images were cropped and resized, see `data.preprocessing`; empty if they were not.
      aspect: the aspect ratio of the pictures that were made square, see `data.aspect`; None if they share none.
      factor_names: names of the true factors of rendered images, else empty.
      factors: float32 ``[len(source), len(factor_names)]`` in [0, 1], or None.
    """

    num_classes: int
    resolution: int
    channels: int
    class_names: tuple[str, ...]
    class_counts: np.ndarray
    labels: np.ndarray
    fingerprint: str
    preprocessing: str
    aspect: Aspect | None
    factor_names: tuple[str, ...]
    factors: np.ndarray | None

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int) -> LabelledImages:
        """Return image ``index``: ``{"image": uint8 [H, W, C], "label": int32 scalar}``. Must be thread-safe."""
        ...


class ArraySource:
    """An ``ImageSource`` held in memory.

    Args:
      images: uint8 ``[N, H, W, C]`` in 0..255, H = W a power of two of at least 8, C 1 or 3. Not copied.
      labels: integers ``[N]`` in ``[0, len(class_names))``; every class has at least one image.
      class_names: one name per class.
      name: short name of the data set for messages.
      factors: true factors of rendered images by name, float ``[N]`` each.

    Raises:
      UserError: the arrays are not as described.
    """

    preprocessing = ""
    aspect = None

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        name: str,
        factors: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        images, labels = np.asarray(images), np.asarray(labels)
        if images.dtype != np.uint8:
            raise UserError(
                f"The images of {name} must be uint8 in 0..255, but they are {images.dtype}; convert them first."
            )
        if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] not in (1, 3):
            raise UserError(
                f"The images of {name} must have shape [N, H, W, C] with H = W and 1 or 3 channels, but it is "
                f"{list(images.shape)}; crop them to squares and put the channels last."
            )
        check_resolution(images.shape[1])
        if labels.shape[:1] != images.shape[:1]:
            raise UserError(
                f"{name} has {images.shape[0]} images but labels of shape {list(labels.shape)}; "
                "give exactly one label per image."
            )
        self.name = name
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.resolution, self.channels = images.shape[1], images.shape[3]
        self.class_counts = count_classes(labels, self.num_classes)
        self.labels = labels.astype(np.int32)
        self.images = images.view()
        self.factor_names = tuple(factors or ())
        self.factors = np.stack([*factors.values()], axis=1).astype(np.float32) if factors else None
        # The fingerprint is cached, so the data must not change.
        for array in (self.images, self.labels, self.class_counts):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> LabelledImages:
        """Return image ``index``: ``{"image": uint8 [H, W, C] (read-only view), "label": int32 scalar}``."""
        return {"image": self.images[index], "label": self.labels[index]}

    def take(self, indices: np.ndarray) -> LabelledImages:
        """Return copies of images ``indices`` ``[B]``: ``{"image": uint8 [B, H, W, C], "label": int32 [B]}``."""
        return {"image": self.images[indices], "label": self.labels[indices]}

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hexadecimal SHA-256 of shape, images and labels."""
        digest = hashlib.sha256(repr(tuple(int(n) for n in self.images.shape)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.astype("<i4").data)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class DataSplits:
    """The data splits of one experiment.

    Attributes:
      train: the GAN's training images; its ``class_counts`` are the long tail.
      reference: the real images with which metrics compare generated ones.
      classifier: a balanced set of real images to train the embedded feature extractor.
      instances: the training images as conditions, for instance-conditioned networks.
      full: all images before the long tail was cut off, where the set has them: the reference of UTLO's protocol.
      few_classes: class ids that UTLO's protocol also evaluates alone; empty where none are published.

    Raises:
      UserError: the sets differ in classes, resolution, channels or preprocessing.
    """

    train: ImageSource
    reference: ImageSource
    classifier: ImageSource
    instances: InstanceTable | None = None
    full: ImageSource | None = None
    few_classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in ("class_names", "resolution", "channels", "preprocessing"):
            expected = getattr(self.train, field)
            for split in ("reference", "classifier"):
                if getattr(getattr(self, split), field) != expected:
                    raise UserError(
                        f"The {split} set and the training set differ in {field}; "
                        "prepare both from the same classes, at the same resolution and in the same way."
                    )


def read_images(source: ImageSource, indices: np.ndarray) -> LabelledImages:
    """Read a batch of images.

    Args:
      source: the images.
      indices: integers ``[B]`` in ``[0, len(source))``, repeats allowed; B at least 1.

    Returns:
      ``{"image": uint8 [B, H, W, C], "label": int32 [B]}``; the arrays belong to the caller.
    """
    take = getattr(source, "take", None)
    if take is not None:
        return take(indices)
    records = [source[int(i)] for i in indices]
    return {
        "image": np.stack([record["image"] for record in records]),
        "label": np.array([record["label"] for record in records], dtype=np.int32),
    }


def check_resolution(resolution: int, largest: int | None = None) -> None:
    """Raise a ``UserError`` unless ``resolution`` is a power of two from 8 to ``largest`` (None: no upper limit)."""
    power_of_two = resolution >= 8 and resolution & (resolution - 1) == 0
    if not power_of_two or (largest is not None and resolution > largest):
        limit = f" and at most {largest}" if largest is not None else ""
        raise UserError(
            f"The resolution must be a power of two of at least 8{limit}, but it is {resolution}; "
            f"choose one of 8, 16, 32, 64{', ...' if largest is None or largest > 64 else ''}."
        )


def seeded_generator(seed: int) -> np.random.Generator:
    """Build the random generator of a data set; raise a ``UserError`` if ``seed`` is negative."""
    if seed < 0:
        raise UserError(f"The seed of a data set must not be negative, but it is {seed}.")
    return np.random.Generator(np.random.PCG64(seed))
