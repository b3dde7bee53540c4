"""Reading of generated or reference images from a folder, a ``.zip`` or the arrays of an ``.npz``.

A folder holds images, or a folder of images for each class (as torchvision's ``ImageFolder`` reads them and
PyTorch-StudioGAN's ``save_fake_images`` writes them). A ``.zip``, or a folder too, may hold images and their class ids in
``dataset.json``, as in data sets of StyleGAN2-ADA, StyleGAN3 and EDM. An ``.npz`` holds uint8 images and optionally labels:

| images | labels | layout | written by |
|---|---|---|---|
| ``images`` | ``labels`` | ``[n, H, W, C]`` | ``--mode=sample`` of this package |
| ``arr_0`` | ``arr_1`` | ``[n, H, W, C]`` | guided-diffusion (ADM) |
| ``x`` | ``y`` | ``[n, C, H, W]`` | BigGAN-PyTorch's ``sample.py`` |

Labels are class ids. An optional array ``class_names`` names every class from id 0 on.

Images are square and of one size, which need not be a power of two. They are grey if all of them are, else RGB,
converted as in `data.preprocessing`. Class names that are numbers are sorted as numbers.
"""

import functools
import io
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from noisytwins_jax.data.prepare.files import IMAGE_SUFFIXES, Location, is_image, is_visible, list_files, read_location
from noisytwins_jax.data.prepare.labels_file import LABELS_FILE, LabelledFiles, find_labelled
from noisytwins_jax.data.prepare.listing import Problems
from noisytwins_jax.data.preprocessing import Preprocessing
from noisytwins_jax.evaluation.image_files import ALL, ImageFiles, are_numbers
from noisytwins_jax.utils.errors import UserError, first_line

_CLASS_NAMES = "class_names"  # array of an .npz: the name of every class from id 0 on
_ARRAYS = {"images": ("labels", "NHWC"), "arr_0": ("arr_1", "NHWC"), "x": ("y", "NCHW")}  # images: labels, layout


def read_image_files(path: str | os.PathLike) -> ImageFiles:
    """Read the images of a folder, a ``.zip`` or an ``.npz``; see the module docstring.

    Of a folder's or zip's images only the headers are read at first; images are decoded on access. Hidden files and files
    without the suffix of an image are ignored. An ``.npz`` is read into memory.

    Args:
      path: the folder or file.

    Returns:
      The images, class by class for class folders, in the order of the file for ``.npz``, else by name. Images without
      classes have the single class "all"; where there are class ids and no names, classes are named by ids, such as "3".

    Raises:
      UserError: the path does not exist; it holds no images, or images of several sizes; a file cannot be read.
    """
    path = Path(os.path.abspath(path))
    is_zip = path.is_file() and path.suffix.lower() == ".zip"
    if path.is_dir() or is_zip:
        problems = Problems()
        labelled = find_labelled(list_files(path, unpack_in=path), str(path), problems)
        for kind, images in problems.wrong.items():
            raise UserError(f"{path} holds {len(images)} {kind}, for example {images[0]}; write the file again.")
        if labelled is not None:
            return _read_labelled(path, labelled)
        if is_zip:
            raise UserError(f"{path} has no images with {LABELS_FILE} beside them; unpack it, and give the folder.")
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f"There is no {path}; give a folder of images, or a .zip or .npz file.")
    if path.suffix.lower() != ".npz":
        raise UserError(f"{path} is neither a folder of images nor a .zip or .npz file by its name; give one of these.")
    return _read_npz(path)


def _read_labelled(path: Path, labelled: LabelledFiles) -> ImageFiles:
    if labelled.labels is None:
        return _image_files(path, labelled.files, np.zeros(len(labelled.files), np.int32), (ALL,))
    ids, labels = np.unique([labelled.labels[name] for name in labelled.files], return_inverse=True)
    return _image_files(path, labelled.files, labels, tuple(map(str, ids)))


def _read_folder(folder: Path) -> ImageFiles:
    files, folders = _list(folder)
    arrays = sorted(path for path in folder.glob("*.npz") if is_visible(path.name))
    if arrays and not folders:  # images beside them are likely to be grids
        hint = "; if you mean the images beside them, move the arrays elsewhere" if files else ""
        raise UserError(f"{folder} holds arrays of images; give one of their files, for example {arrays[0]}{hint}.")
    if files and folders:
        raise UserError(
            f"{folder} holds images beside folders ({files[0].name} and {folders[0].name}); give a folder of images, "
            "or one with a folder of images for each class."
        )
    if folders:
        folders.sort(key=lambda path: path.name)
        if are_numbers(path.name for path in folders):
            folders.sort(key=lambda path: int(path.name))
        classes = {path.name: _images_of_class(path) for path in folders}
    elif files:
        classes = {ALL: files}
    else:
        raise UserError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}); give another folder.")
    paths = {str(path.relative_to(folder)): str(path) for images in classes.values() for path in images}
    labels = np.repeat(np.arange(len(classes)), [len(images) for images in classes.values()])
    return _image_files(folder, paths, labels, tuple(classes))


def _image_files(
    root: Path, files: Mapping[str, Location], labels: np.ndarray, class_names: tuple[str, ...]
) -> ImageFiles:
    """Build the image source of files, by their names in the folder or zip `root`."""
    (width, height), grey = _read_headers(root, files)
    _check_square(str(root), height, width)
    channels = 1 if grey else 3
    read = functools.partial(_decode, root, [*files.items()], width, channels)
    return ImageFiles(root.name, read, width, channels, labels, class_names)


def _list(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the images (by suffix) and the folders of a folder, sorted and without hidden ones."""
    try:
        entries = sorted((path for path in folder.iterdir() if is_visible(path.name)), key=lambda path: path.name)
        folders = [path for path in entries if path.is_dir()]
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be listed ({first_line(error)}); make it readable.") from None
    return [path for path in entries if is_image(path.name) and path not in folders], folders


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


def _read_headers(root: Path, files: Mapping[str, Location]) -> tuple[tuple[int, int], bool]:
    """Read from their headers the size (width, height) that all images have, and whether all are grey."""

    def read_header(name: str) -> tuple[tuple[int, int], str]:
        location = files[name]
        try:
            with Image.open(location if isinstance(location, str) else io.BytesIO(read_location(location))) as image:
                return image.size, image.mode
        except Exception as error:  # Pillow raises many types
            raise _unreadable_error(root / name, error) from None

    grey, size, first = True, None, next(iter(files))
    with ThreadPoolExecutor() as pool:
        for name, (image_size, mode) in zip(files, pool.map(read_header, files), strict=True):
            if mode == "F":  # the range may be 0 to 1 or 0 to 255
                raise UserError(
                    f"{root / name} holds floating-point numbers; save images with 8 bits a channel, 0 to 255."
                )
            size, grey = size or image_size, grey and (mode in ("1", "L", "LA", "La") or mode.startswith("I"))
            if image_size != size:
                one, other = (f"{n} of {w}x{h}" for n, (w, h) in ((first, size), (name, image_size)))
                raise UserError(
                    f"{root} holds images of several sizes, {one} and {other} pixels: resize them to one size or, "
                    "if they are the reference, prepare the folder (python -m noisytwins_jax.data.prepare image_folder) "
                    "and give it as config.data.name instead."
                )
    return size, grey


def _decode(
    root: Path, files: Sequence[tuple[str, Location]], resolution: int, channels: int, indices: np.ndarray
) -> np.ndarray:
    """Decode files in threads to images uint8 ``[B, resolution, resolution, channels]``."""
    convert = Preprocessing()

    def decode(index: int) -> np.ndarray:
        name, location = files[index]
        try:
            return convert(read_location(location), resolution, channels)
        except Exception as error:  # as above
            raise _unreadable_error(root / name, error) from None

    with ThreadPoolExecutor() as pool:
        return np.stack([*pool.map(decode, indices)])


def _unreadable_error(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read as an image ({first_line(error)}); replace or remove it.")


def _read_npz(path: Path) -> ImageFiles:
    _check_archive(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            key = next((key for key in _ARRAYS if key in file.files), None)
            if key is None:
                wanted_arrays = "; ".join(f"{images} and {labels}" for images, (labels, _) in _ARRAYS.items())
                raise UserError(
                    f"{path} has the arrays {', '.join(file.files) or '(none)'}, but images and labels are to be "
                    f"called {wanted_arrays} (labels may be missing)."
                )
            labels_key, layout = _ARRAYS[key]
            images = file[key]
            labels = file[labels_key] if labels_key in file.files else None
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
                f"{path} has {len(images)} images, but {labels_key} is {labels.dtype} of shape {list(labels.shape)}; save "
                "one class id from 0 for each image."
            )
        ids, numbers = np.unique(labels, return_inverse=True)
        names = [str(c) for c in ids] if all_names is None else _select_names(path, ids, all_names)
        classes = (numbers, names, ids, all_names is not None)
    return ImageFiles(path.name, lambda indices: images[indices], images.shape[1], images.shape[3], *classes)


def _check_archive(path: Path) -> None:
    """Check that a file is a zip archive, before numpy guesses what else it may be."""
    if zipfile.is_zipfile(path):
        return
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); make it readable.") from None
    if head.startswith(b"PK"):
        raise UserError(f"{path} is damaged or cut off, its end is missing; copy or write it again.")
    start = f"it begins with {head.decode('latin-1')!a}" if head else "it is empty"
    raise UserError(f"{path} is no .npz ({start}); give a file that numpy.savez wrote.")


def _select_names(path: Path, ids: np.ndarray, all_names: np.ndarray) -> list[str]:
    if not isinstance(all_names, np.ndarray) or all_names.dtype.kind != "U" or all_names.ndim != 1:
        raise UserError(f"The {_CLASS_NAMES} of {path} are no list of strings; save numpy.array(names, str).")
    if len(all_names) <= ids.max():
        raise UserError(
            f"{path} has {len(all_names)} {_CLASS_NAMES}, but class id {ids.max()}; save the name of every class from id 0 on."
        )
    return [str(all_names[c]) for c in ids]


def _check_square(name: str, height: int, width: int) -> None:
    if height != width:
        raise UserError(
            f"The images of {name} are {width}x{height} pixels, but evaluation takes squares; crop them, or sample with "
            "--square if they are of a run here."
        )
