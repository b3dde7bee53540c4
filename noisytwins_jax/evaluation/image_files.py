"""Image sources for evaluations of files: real images, generated images, and images without classes."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from typing_extensions import override

from noisytwins_jax.data.preprocessing import Preprocessing
from noisytwins_jax.data.source import ImageSource, LabelledImages, read_images
from noisytwins_jax.metrics.features import Extract, HostFakes
from noisytwins_jax.utils.progress_bar import images_bar

ALL = "all"  # class name of images without classes
_READ_BATCH = 1024  # images in the host's memory


def are_numbers(names: Iterable[str]) -> bool:
    """Return whether all class names are whole numbers, such as 7 or 007."""
    return all(name.isascii() and name.isdecimal() for name in names)


class ImageFiles:
    """An ``ImageSource`` of images in files; its resolution may be any number.

    Args:
      name: of the folder or file, for messages and reports.
      read: function from indices, integers ``[B]``, to new arrays of images uint8 ``[B, resolution, resolution, channels]``.
      resolution: height and width in pixels.
      channels: 1 or 3.
      labels: integers ``[N]``, class ids; every class has an image.
      class_names: one name a class.
      class_ids: the id of each class, where the files have ids; they may have gaps. None for folders.
      named: whether the class names are real names rather than the ids as text.
    """

    preprocessing = ""
    aspect = None
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
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> LabelledImages:
        """Return image ``index``: ``{"image": uint8 [H, W, C], "label": int32 scalar}``."""
        return {"image": self._read(np.array([index]))[0], "label": self.labels[index]}

    def take(self, indices: np.ndarray) -> LabelledImages:
        """Return images ``indices``, integers ``[B]``: ``{"image": uint8 [B, H, W, C], "label": int32 [B]}``.

        Raises:
          UserError: a file cannot be read.
        """
        return {"image": self._read(indices), "label": self.labels[indices]}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of shape, images and labels, as in `data.source.ArraySource`; reads every image."""
        shape = (len(self), self.resolution, self.resolution, self.channels)
        digest = hashlib.sha256(repr(shape).encode())
        with images_bar(f"Reading {self.name}", len(self)) as bar:
            for start in range(0, len(self), _READ_BATCH):
                images = self._read(np.arange(start, min(start + _READ_BATCH, len(self))))
                digest.update(np.ascontiguousarray(images).data)
                bar.update(len(images))
        digest.update(self.labels.astype("<i4").data)
        return digest.hexdigest()

    def convert(self, channels: int) -> "ImageFiles":
        """Return the same images in RGB (3) or grey (1, ITU-R 601 luma)."""
        if channels == self.channels:
            return self
        convert_image = functools.partial(Preprocessing(), resolution=self.resolution, channels=channels)

        def read(indices: np.ndarray) -> np.ndarray:
            images = self._read(indices)
            return np.stack([convert_image(image[..., 0] if self.channels == 1 else image) for image in images])

        classes = (self.labels, self.class_names, self.class_ids, self.named)
        return ImageFiles(self.name, read, self.resolution, channels, *classes)


class OneClass:
    """The images of an ``ImageSource`` without their classes: all have the class "all".

    The fingerprint is the source's, so that features cached for the source are used.
    """

    num_classes, class_names = 1, (ALL,)
    factor_names: tuple[str, ...] = ()
    factors = None

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self.resolution, self.channels, self.preprocessing = source.resolution, source.channels, source.preprocessing
        self.aspect = source.aspect
        self.labels = np.zeros(len(source), np.int32)
        self.class_counts = np.array([len(source)], np.int64)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the source."""
        return self._source.fingerprint

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._source)

    def __getitem__(self, index: int) -> LabelledImages:
        """Return image ``index``: ``{"image": uint8 [H, W, C], "label": int32 scalar}``."""
        return {"image": self._source[index]["image"], "label": self.labels[index]}

    def take(self, indices: np.ndarray) -> LabelledImages:
        """Return images ``indices``, integers ``[B]``: ``{"image": uint8 [B, H, W, C], "label": int32 [B]}``."""
        return {"image": read_images(self._source, indices)["image"], "label": self.labels[indices]}


class FileFakes(HostFakes):
    """Images of files as a source of generated images: index i is the i-th image in the order of classes.

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

    @override
    def extract_features(self, extract: Extract, labels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        outputs = []  # in batches, since a class may be larger than the memory
        for start in range(0, len(labels), _READ_BATCH):
            rows = slice(start, start + _READ_BATCH)
            outputs.append(super().extract_features(extract, labels[rows], indices[rows]))
        return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))
