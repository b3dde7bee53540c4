"""Images that come from files, to be measured or to measure against: a folder, or the arrays of an ``.npz``.

A folder holds images, or a folder of images for each class (as torchvision's ``ImageFolder`` reads them and
PyTorch-StudioGAN's ``save_fake_images`` writes them). An ``.npz`` holds uint8 images and perhaps labels:

| images | labels | layout | written by |
|---|---|---|---|
| ``images`` | ``labels`` | ``[n, H, W, C]`` | ``--mode=sample`` of this package |
| ``arr_0`` | ``arr_1`` | ``[n, H, W, C]`` | guided-diffusion (ADM) |
| ``x`` | ``y`` | ``[n, C, H, W]`` | BigGAN-PyTorch's ``sample.py`` |

Images are square and of one size, which need not be a power of two. They are grey if all of them are, else RGB: what is
converted is converted as in `data.preprocessing`. Class names that are numbers are in the order of the numbers.
"""

import functools
import hashlib
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from noisytwins_jax.data.prepare.files import wanted
from noisytwins_jax.data.preprocessing import Preprocessing
from noisytwins_jax.data.source import ImageSource, LabelledImages, read_images
from noisytwins_jax.errors import UserError, first_line
from noisytwins_jax.metrics.features import HostFakes, Look

ALL = "all"  # name of the only class of images that have none
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_ARRAYS = {"images": ("labels", "NHWC"), "arr_0": ("arr_1", "NHWC"), "x": ("y", "NCHW")}  # images: labels, layout
_AT_ONCE = 1024  # images in the host's memory


class ImageFiles:
    """An ``ImageSource`` of images in files; its resolution may be any number.

    Args:
      name: of the folder or file, for messages and reports.
      read: integers ``[B]`` → images uint8 ``[B, resolution, resolution, channels]`` that belong to the caller.
      resolution: height and width in pixels.
      channels: 1 or 3.
      labels: integers ``[N]``, class ids; every class has an image.
      class_names: one name a class.
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
    ) -> None:
        self.name, self._read = name, read
        self.resolution, self.channels = resolution, channels
        self.class_names = tuple(class_names)
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
        with tqdm(
            total=len(self),
            desc=f"Reading {self.name}",
            unit="img",
            delay=2,
            mininterval=0.1 if sys.stderr.isatty() else 30.0,
            disable=jax.process_index() > 0,
        ) as bar:
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

        return ImageFiles(self.name, read, self.resolution, channels, self.labels, self.class_names)


def read_image_files(path: str | os.PathLike) -> ImageFiles:
    """The images of a folder or an ``.npz`` file, see the module.

    Of a folder's images only the headers are read at first; the images are decoded when they are asked for. Files that
    are hidden or no images by their names are left alone. An ``.npz`` is read into memory.

    Args:
      path: the folder or file.

    Returns:
      The images, class by class for folders, in the order of the file for ``.npz``. Images without classes are of the
      one class "all"; labels of an ``.npz`` become class names, such as "3".

    Raises:
      UserError: there is no such thing; it holds no images, or images of several sizes; a file cannot be read.
    """
    path = Path(os.path.abspath(path))
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise UserError(f"There is no {path}; give a folder of images or an .npz file.")
    if path.suffix.lower() != ".npz":
        raise UserError(f"{path} is neither a folder of images nor an .npz file by its name; give one of these.")
    return _from_npz(path)


def _from_folder(folder: Path) -> ImageFiles:
    files, folders = _list(folder)
    if files and folders:
        raise UserError(
            f"{folder} holds images beside folders ({files[0].name} and {folders[0].name}); give a folder of images, "
            "or one with a folder of images for each class."
        )
    if folders:
        folders.sort(key=lambda path: path.name)
        if all(_is_number(path.name) for path in folders):
            folders.sort(key=lambda path: int(path.name))
        classes = {path.name: _images_of_class(path) for path in folders}
    elif files:
        classes = {ALL: files}
    else:
        arrays = sorted(path.name for path in folder.glob("*.npz"))
        raise UserError(
            f"{folder} holds no images ({', '.join(_SUFFIXES)})"
            + (
                f", but arrays; give one of them, for example {folder / arrays[0]}."
                if arrays
                else "; give another folder."
            )
        )
    paths = [path for images in classes.values() for path in images]
    labels = np.repeat(np.arange(len(classes)), [len(images) for images in classes.values()])
    (width, height), grey = _size_and_colours(folder, paths)
    _check_square(str(folder), height, width)
    channels = 1 if grey else 3
    read = functools.partial(_decode, paths, width, channels)
    return ImageFiles(folder.name, read, width, channels, labels, tuple(classes))


def _list(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images by their names, sorted, and folders; neither hidden."""
    try:
        entries = sorted((path for path in folder.iterdir() if wanted(path.name)), key=lambda path: path.name)
        folders = [path for path in entries if path.is_dir()]
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be listed ({first_line(error)}); make it readable.") from None
    return [path for path in entries if path.suffix.lower() in _SUFFIXES and path not in folders], folders


def _images_of_class(folder: Path) -> list[Path]:
    images, folders = _list(folder)
    if folders:
        raise UserError(
            f"{folder.parent} has folders within its folders ({folder.name}/{folders[0].name}), one level too many; "
            "give a folder of images, or one with a folder of images for each class."
        )
    if not images:
        raise UserError(f"The class folder {folder} holds no images; remove it, or put the images of the class there.")
    return images


def _size_and_colours(folder: Path, paths: list[Path]) -> tuple[tuple[int, int], bool]:
    """The size (width, height) that all images have, and whether all are grey; from their headers."""

    def look(path: Path) -> tuple[tuple[int, int], str]:
        try:
            with Image.open(path) as image:
                return image.size, image.mode
        except Exception as error:  # Pillow's readers raise of everything
            raise _unreadable(path, error) from None

    grey, size = True, None
    with ThreadPoolExecutor() as pool:
        for path, (its_size, mode) in zip(paths, pool.map(look, paths), strict=True):
            if mode == "F":  # 0 to 1 as likely as 0 to 255
                raise UserError(f"{path} holds floating-point numbers; save images with 8 bits a channel, 0 to 255.")
            size, grey = size or its_size, grey and (mode in ("1", "L", "LA", "La") or mode.startswith("I"))
            if its_size != size:
                first, other = (
                    f"{p.relative_to(folder)} of {w}x{h}" for p, (w, h) in ((paths[0], size), (path, its_size))
                )
                raise UserError(
                    f"{folder} holds images of several sizes, {first} and {other} pixels: resize them to one size or, "
                    "if they are the reference, prepare the folder (python -m noisytwins_jax.data.prepare image_folder) "
                    "and give it as config.data.name instead."
                )
    return size, grey


def _decode(paths: list[Path], resolution: int, channels: int, indices: np.ndarray) -> np.ndarray:
    """Images uint8 ``[B, resolution, resolution, channels]`` of files, in threads."""
    convert = Preprocessing()

    def decode(index: int) -> np.ndarray:
        try:
            return convert(paths[index].read_bytes(), resolution, channels)
        except Exception as error:  # as above
            raise _unreadable(paths[index], error) from None

    with ThreadPoolExecutor() as pool:
        return np.stack([*pool.map(decode, indices)])


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read as an image ({first_line(error)}); replace or remove it.")


def _from_npz(path: Path) -> ImageFiles:
    try:
        with np.load(path, allow_pickle=False) as file:
            key = next((key for key in _ARRAYS if key in file.files), None)
            if key is None:
                wanted_arrays = "; ".join(f"{images} and {of[0]}" for images, of in _ARRAYS.items())
                raise UserError(
                    f"{path} has the arrays {', '.join(file.files) or '(none)'}, but images and labels are to be "
                    f"called {wanted_arrays} (labels may be missing)."
                )
            labelled, layout = _ARRAYS[key]
            images = file[key]
            labels = file[labelled] if labelled in file.files else None
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}); it is damaged or no .npz, so write it again."
        ) from None
    if images.dtype != np.uint8:
        raise UserError(f"The images of {path} are {images.dtype}; save them as uint8 from 0 to 255.")
    if layout == "NCHW" and images.ndim == 4:
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise UserError(
            f"The array {key} of {path} is to have the layout {layout} with 1 or 3 channels, but as such its shape is "
            f"{list(images.shape)}; save it so."
        )
    if not len(images):
        raise UserError(f"{path} holds no images; give another file.")
    _check_square(str(path), *images.shape[1:3])
    ids, names = np.zeros(len(images), np.int32), (ALL,)
    if labels is not None:
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise UserError(
                f"{path} has {len(images)} images, but {labelled} is {labels.dtype} of shape {list(labels.shape)}; save "
                "one class id from 0 for each image."
            )
        values, ids = np.unique(labels, return_inverse=True)
        names = tuple(str(value) for value in values)
    return ImageFiles(path.name, lambda indices: images[indices], images.shape[1], images.shape[3], ids, names)


def _check_square(name: str, height: int, width: int) -> None:
    if height != width:
        raise UserError(f"The images of {name} are {width}x{height} pixels, but evaluation takes squares; crop them.")


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


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


class Matched(NamedTuple):
    """Generated images and the classes of the reference.

    Attributes:
      labels: the class of the reference that each generated image is of, int32 ``[n]``; None: they have to be compared
        without classes.
      note: a sentence for the reader, or "".
    """

    labels: np.ndarray | None
    note: str


def match_classes(images: ImageFiles, class_names: Sequence[str]) -> Matched:
    """Finds the classes of generated images among those of the reference.

    They are the classes of the same names (numbers may have leading zeros). Else, numbers are class ids, unless the
    reference's classes are called by numbers too, which then are other ones. Not every class needs generated images.

    Args:
      images: the generated images.
      class_names: the reference's.
    """
    sides = [
        name for name, names in (("images", images.class_names), ("reference", class_names)) if tuple(names) == (ALL,)
    ]
    if sides:
        have = (
            "Neither the images nor the reference have"
            if len(sides) == 2
            else f"The {sides[0]} of this evaluation have no"
        )
        return Matched(None, f"{have} classes, so everything is compared as one class.")
    ids = _class_ids(images.class_names, class_names)
    if ids is None:
        return Matched(
            None,
            f"The classes of the images ({_some(images.class_names)}) are not among those of the reference "
            f"({_some(class_names)}), so everything is compared as one class.",
        )
    missing = len(class_names) - len(ids)
    note = f"There are no generated images of {missing} of {len(class_names)} classes." if missing else ""
    return Matched(np.array(ids, np.int32)[images.labels], note)


def _class_ids(names: Sequence[str], known: Sequence[str]) -> list[int] | None:
    places = {name: c for c, name in enumerate(known)}
    if not all(name in places for name in names):
        if not all(map(_is_number, names)):
            return None
        names = [int(name) for name in names]
        numbered = all(map(_is_number, known))
        places = {int(name) if numbered else c: c for c, name in enumerate(known)}
    ids = [places.get(name) for name in names]
    return None if None in ids or len(set(ids)) < len(ids) else ids


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


class FileFakes(HostFakes):
    """Images of files as `features.Fakes`: index i is the i-th image when they are sorted by class.

    Args:
      images: the images.
      labels: the class of each, integers ``[n]``.
      batch_size: images that each device takes at once.

    Attributes:
      size: of an image, (H, W, C).
    """

    def __init__(self, images: ImageFiles, labels: np.ndarray, batch_size: int = 64) -> None:
        order = np.argsort(labels, kind="stable")
        super().__init__(lambda _, indices: (images.take(order[indices])["image"], None), batch_size)
        self.size = (images.resolution, images.resolution, images.channels)

    def looked_at(self, look: Look, labels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """See `Fakes`. A class may be larger than the memory: some images are read at a time."""
        seen = []
        for start in range(0, len(labels), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            seen.append(super().looked_at(look, labels[rows], indices[rows]))
        return tuple(np.concatenate(parts) for parts in zip(*seen, strict=True))
