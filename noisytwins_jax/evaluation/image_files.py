"""Images of files as the evaluation takes them: real ones, generated ones, and ones without their classes."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from noisytwins_jax.data.preprocessing import Preprocessing
from noisytwins_jax.data.source import ImageSource, LabelledImages, read_images
from noisytwins_jax.metrics.features import Extract, HostFakes
from noisytwins_jax.utils.progress_bar import images_bar

ALL = "all"  # name of the only class of images that have none
_AT_ONCE = 1024  # images in the host's memory


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all names of classes are whole numbers, such as 7 or 007."""
    return all(name.isascii() and name.isdecimal() for name in names)


class ImageFiles:
    """An ``ImageSource`` of images in files; its resolution may be any number.

    Args:
      name: of the folder or file, for messages and reports.
      read: integers ``[B]`` → images uint8 ``[B, resolution, resolution, channels]`` that belong to the caller.
      resolution: height and width in pixels.
      channels: 1 or 3.
      labels: integers ``[N]``, class ids; every class has an image.
      class_names: one name a class.
      class_ids: the id of each class, where the files have ids; they may have gaps. None for folders.
      named: whether the class names are more than the ids as text.
    """

    preprocessing = ""
    factor_names: tuple[str, ...] = ()
    factors = None

    def __init__(
        self,
        name: str,
        read: Callable[[np.ndarray], np.ndarray],
        resolution: int,
        channels: int,
        labels: np.ndarray,
        class_names: Sequence[str],
        class_ids: Sequence[int] | None = None,
        named: bool = True,
    ) -> None:
        self.name, self._read = name, read
        self.resolution, self.channels = resolution, channels
        self.class_names = tuple(class_names)
        self.class_ids, self.named = None if class_ids is None else tuple(map(int, class_ids)), named
        self.num_classes = len(self.class_names)
        self.labels = np.asarray(labels, np.int32)
        self.class_counts = np.bincount(self.labels, minlength=self.num_classes).astype(np.int64)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> LabelledImages:
        """Image ``index``: ``{"image": uint8 [H, W, C], "label": int32 scalar}``."""
        return {"image": self._read(np.array([index]))[0], "label": self.labels[index]}

    def take(self, indices: np.ndarray) -> LabelledImages:
        """Images ``indices``, integers ``[B]``: ``{"image": uint8 [B, H, W, C], "label": int32 [B]}``.

        Raises:
          UserError: a file cannot be read.
        """
        return {"image": self._read(indices), "label": self.labels[indices]}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of shape, images and labels, as `data.source.ArraySource` has it; reads every image."""
        shape = (len(self), self.resolution, self.resolution, self.channels)
        digest = hashlib.sha256(repr(shape).encode())
        with images_bar(f"Reading {self.name}", len(self)) as bar:
            for start in range(0, len(self), _AT_ONCE):
                images = self._read(np.arange(start, min(start + _AT_ONCE, len(self))))
                digest.update(np.ascontiguousarray(images).data)
                bar.update(len(images))
        digest.update(self.labels.astype("<i4").data)
        return digest.hexdigest()

    def converted(self, channels: int) -> "ImageFiles":
        """The same images as RGB (3) or as grey ones (1, ITU-R 601 luma)."""
        if channels == self.channels:
            return self
        convert = functools.partial(Preprocessing(), resolution=self.resolution, channels=channels)

        def read(indices: np.ndarray) -> np.ndarray:
            images = self._read(indices)
            return np.stack([convert(image[..., 0] if self.channels == 1 else image) for image in images])

        classes = (self.labels, self.class_names, self.class_ids, self.named)
        return ImageFiles(self.name, read, self.resolution, channels, *classes)


class OneClass:
    """The images of an ``ImageSource`` without their classes: all are of the class "all".

    The fingerprint is the source's, whose labels it covers: the images are the same, and so are their features.
    """

    num_classes, class_names = 1, (ALL,)
    factor_names: tuple[str, ...] = ()
    factors = None

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self.resolution, self.channels, self.preprocessing = source.resolution, source.channels, source.preprocessing
        self.labels = np.zeros(len(source), np.int32)
        self.class_counts = np.array([len(source)], np.int64)

    @property
    def fingerprint(self) -> str:
        """The source's."""
        return self._source.fingerprint

    def __len__(self) -> int:
        """Number of images."""
        return len(self._source)

    def __getitem__(self, index: int) -> LabelledImages:
        """Image ``index``: ``{"image": uint8 [H, W, C], "label": int32 scalar}``."""
        return {"image": self._source[index]["image"], "label": self.labels[index]}

    def take(self, indices: np.ndarray) -> LabelledImages:
        """Images ``indices``, integers ``[B]``: ``{"image": uint8 [B, H, W, C], "label": int32 [B]}``."""
        return {"image": read_images(self._source, indices)["image"], "label": self.labels[indices]}


class FileFakes(HostFakes):
    """Images of files as `features.Fakes`: index i is the i-th image when they are sorted by class.

    Args:
      images: the images.
      labels: the class of each, integers ``[n]``.
      per_device_batch: images per device and call.
      prefetch: batches in flight at once.
    """

    def __init__(self, images: ImageFiles, labels: np.ndarray, per_device_batch: int = 64, prefetch: int = 2) -> None:
        order = np.argsort(labels, kind="stable")
        super().__init__(
            lambda _, indices: (images.take(order[indices])["image"], None),
            per_device_batch,
            prefetch,
            image_size=(images.resolution, images.resolution, images.channels),
        )

    def extract_features(self, extract: Extract, labels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """See `Fakes`. A class may be larger than the memory: some images are read at a time."""
        seen = []
        for start in range(0, len(labels), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            seen.append(super().extract_features(extract, labels[rows], indices[rows]))
        return tuple(np.concatenate(parts) for parts in zip(*seen, strict=True))
