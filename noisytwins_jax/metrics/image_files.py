"""Images that come from files, to be measured or to measure against: a folder, or the arrays of an ``.npz``.

A folder holds images, or a folder of images for each class (as torchvision's ``ImageFolder`` reads them and
PyTorch-StudioGAN's ``save_fake_images`` writes them). An ``.npz`` holds uint8 images and perhaps labels:

| images | labels | layout | written by |
|---|---|---|---|
| ``images`` | ``labels`` | ``[n, H, W, C]`` | ``--mode=sample`` of this package |
| ``arr_0`` | ``arr_1`` | ``[n, H, W, C]`` | guided-diffusion (ADM) |
| ``x`` | ``y`` | ``[n, C, H, W]`` | BigGAN-PyTorch's ``sample.py`` |

Labels are class ids. What the ids mean is said by ``class_names``, the name of every class from id 0 on, if it is there.

Images are square and of one size, which need not be a power of two. They are grey if all of them are, else RGB: what is
converted is converted as in `data.preprocessing`. Class names that are numbers are in the order of the numbers.
"""

import difflib
import functools
import hashlib
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
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
_CLASS_NAMES = "class_names"  # array of an .npz: the name of every class from id 0 on
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

        classes = (self.labels, self.class_names, self.class_ids, self.named)
        return ImageFiles(self.name, read, self.resolution, channels, *classes)


def read_image_files(path: str | os.PathLike) -> ImageFiles:
    """The images of a folder or an ``.npz`` file, see the module.

    Of a folder's images only the headers are read at first; the images are decoded when they are asked for. Files that
    are hidden or no images by their names are left alone. An ``.npz`` is read into memory.

    Args:
      path: the folder or file.

    Returns:
      The images, class by class for folders, in the order of the file for ``.npz``. Images without classes are of the
      one class "all"; where an ``.npz`` has labels and no ``class_names``, classes are called by their ids, such as "3".

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
    arrays = sorted(path for path in folder.glob("*.npz") if wanted(path.name))
    if arrays and not folders:  # pictures beside them are likely to be grids of many images
        meant = "; if you mean the images beside them, move the arrays elsewhere" if files else ""
        raise UserError(f"{folder} holds arrays of images; give one of their files, for example {arrays[0]}{meant}.")
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
        raise UserError(f"{folder} holds no images ({', '.join(_SUFFIXES)}); give another folder.")
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
    _check_archive(path)
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
            all_names = file[_CLASS_NAMES] if labels is not None and _CLASS_NAMES in file.files else None
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error):
            raise UserError(
                f"{path} holds Python objects, which are not read; save numpy arrays of uint8 images, integer labels and "
                "str class_names."
            ) from None
        raise UserError(f"{path} cannot be read ({first_line(error)}); it is damaged, so write it again.") from None
    if not isinstance(images, np.ndarray):
        raise UserError(f"{path} has a file {key} that is no numpy array; write it with numpy.savez.")
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
    classes = (np.zeros(len(images), np.int32), (ALL,))
    if labels is not None:
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise UserError(
                f"{path} has {len(images)} images, but {labelled} is {labels.dtype} of shape {list(labels.shape)}; save "
                "one class id from 0 for each image."
            )
        ids, numbers = np.unique(labels, return_inverse=True)
        names = [str(c) for c in ids] if all_names is None else _names_of(path, ids, all_names)
        classes = (numbers, names, ids, all_names is not None)
    return ImageFiles(path.name, lambda indices: images[indices], images.shape[1], images.shape[3], *classes)


def _check_archive(path: Path) -> None:
    """Looks whether a file is what its name says, before numpy guesses what else it may be."""
    if zipfile.is_zipfile(path):
        return
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); make it readable.") from None
    if head.startswith(b"PK"):
        raise UserError(f"{path} is damaged or cut off, its end is missing; copy or write it again.")
    begins = f"it begins with {head.decode('latin-1')!a}" if head else "it is empty"
    raise UserError(f"{path} is no .npz ({begins}); give a file that numpy.savez wrote.")


def _names_of(path: Path, ids: np.ndarray, all_names: np.ndarray) -> list[str]:
    if not isinstance(all_names, np.ndarray) or all_names.dtype.kind != "U" or all_names.ndim != 1:
        raise UserError(f"The {_CLASS_NAMES} of {path} are no list of strings; save numpy.array(names, str).")
    if len(all_names) <= ids.max():
        raise UserError(
            f"{path} has {len(all_names)} {_CLASS_NAMES}, but class id {ids.max()}; save the name of every class from id 0 on."
        )
    return [str(all_names[c]) for c in ids]


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


def match_classes(images: ImageFiles, reference: ImageSource) -> Matched:
    """Finds the classes of generated images among those of the reference. Not every class needs generated images.

    Class folders, and an ``.npz`` with ``class_names``, are of the classes of the same names (numbers may have leading
    zeros). If no name of the reference is among them, folders that are called by numbers are class ids, unless the
    reference's classes are called by numbers too. Labels of another ``.npz`` are class ids: of a data set, or of a folder
    whose classes are numbered as they are sorted, the places in the order of classes; of an ``.npz`` its own ids.

    Args:
      images: the generated images.
      reference: the real ones.

    Raises:
      UserError: both have classes, and one of the images' is not among the reference's, which is named.
    """
    known = tuple(reference.class_names)
    sides = [name for name, names in (("images", images.class_names), ("reference", known)) if names == (ALL,)]
    if sides:
        have = (
            "Neither the images nor the reference have"
            if len(sides) == 2
            else f"The {sides[0]} of this evaluation have no"
        )
        return Matched(None, f"{have} classes, so everything is compared as one class.")
    classes = _matched(images, reference, known)
    taken: dict[int, str] = {}
    for name, c in zip(images.class_names, classes, strict=True):
        if c in taken:
            raise UserError(
                f"The classes {taken[c]!r} and {name!r} of the images are one class of the reference, {known[c]!r}; put "
                "them together, or name them as there."
            )
        taken[c] = name
    missing = len(known) - len(classes)
    note = f"There are no generated images of {missing} of {len(known)} classes." if missing else ""
    return Matched(np.array(classes, np.int32)[images.labels], note)


def _matched(images: ImageFiles, reference: ImageSource, known: Sequence[str]) -> list[int]:
    """The reference's class for each class of the images."""
    names = images.class_names
    if images.class_ids is None:
        if all(map(_is_number, names)) and not all(map(_is_number, known)) and not set(names) & set(known):
            return _by_id([int(name) for name in names], {c: c for c in range(len(known))})
        return _by_name(names, known)
    if not images.named or not getattr(reference, "named", True):
        return _by_id(images.class_ids, _ids_of(reference, known))
    if all(c < len(known) and known[c] == name for c, name in zip(images.class_ids, names, strict=True)):
        return list(images.class_ids)  # numbered alike, so that classes of one name are told apart
    return _by_name(names, known)


def _ids_of(reference: ImageSource, known: Sequence[str]) -> dict[int, int]:
    """Class id → the reference's class."""
    if (ids := getattr(reference, "class_ids", None)) is not None:
        return {c: place for place, c in enumerate(ids)}
    if isinstance(reference, ImageFiles) and all(map(_is_number, known)) and [*map(int, known)] != [*range(len(known))]:
        raise UserError(
            f"The class folders of the reference are called by numbers ({_some(known)}) that are not 0 to "
            f"{len(known) - 1}, so it is not clear which class ids of the images they are; save {_CLASS_NAMES} in the "
            ".npz of the images, or give them as class folders too."
        )
    return {c: c for c in range(len(known))}


def _by_id(ids: Sequence[int], places: Mapping[int, int]) -> list[int]:
    for c in ids:
        if c not in places:
            raise UserError(
                f"The images have the class id {c}, but the reference's are {min(places)} to {max(places)}"
                f"{'' if len(places) > max(places) - min(places) else ' with gaps'}; number the classes as there, or name them "
                f"(class folders, or {_CLASS_NAMES} in an .npz)."
            )
    return [places[c] for c in ids]


def _by_name(names: Sequence[str], known: Sequence[str]) -> list[int]:
    numbers = all(map(_is_number, names)) and all(map(_is_number, known))
    places: dict[str | int, list[int]] = {}
    for c, name in enumerate(known):
        places.setdefault(int(name) if numbers else name, []).append(c)
    found = []
    for name in names:
        candidates = places.get(int(name) if numbers else name, ())
        if not candidates:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise UserError(
                f"The images have a class {name!r}, which is none of the {len(known)} of the reference (the nearest is "
                f"{nearest!r}); name the classes as there, or leave the images' out (a flat folder, an .npz without labels) "
                "to compare everything as one class."
            )
        if len(candidates) > 1:
            raise UserError(
                f"The reference has {len(candidates)} classes called {name!r}, which cannot be told apart by name; give the "
                "images as an .npz with labels, numbered as the reference's classes."
            )
        found.append(candidates[0])
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


class FileFakes(HostFakes):
    """Images of files as `features.Fakes`: index i is the i-th image when they are sorted by class.

    Args:
      images: the images.
      labels: the class of each, integers ``[n]``.
      size: images that each device takes in a call of a program.
      ahead: calls under way at once.
    """

    def __init__(self, images: ImageFiles, labels: np.ndarray, size: int = 64, ahead: int = 2) -> None:
        order = np.argsort(labels, kind="stable")
        super().__init__(
            lambda _, indices: (images.take(order[indices])["image"], None),
            size,
            ahead,
            image_size=(images.resolution, images.resolution, images.channels),
        )

    def looked_at(self, look: Look, labels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """See `Fakes`. A class may be larger than the memory: some images are read at a time."""
        seen = []
        for start in range(0, len(labels), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            seen.append(super().looked_at(look, labels[rows], indices[rows]))
        return tuple(np.concatenate(parts) for parts in zip(*seen, strict=True))
