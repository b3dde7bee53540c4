"""CIFAR10-LT: the published long-tailed subset of CIFAR-10, from either of its public archives."""

import functools
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from noisytwins_jax.data.long_tail import long_tail_counts
from noisytwins_jax.data.prepare.files import ByteRange, Location, list_files, read_location
from noisytwins_jax.data.prepare.listing import Item, Listing, Reader
from noisytwins_jax.utils.errors import UserError, first_line

_CLASSES = 10
_PIXELS = 3 * 32 * 32  # bytes of an image: the red, green and blue planes, each row by row
_RECORD = 1 + _PIXELS  # bytes of a label and an image in a binary file
_WANTED = (
    "cifar-10-binary.tar.gz or cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, or the folder "
    "that is in it"
)


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """Decode bytes that Python 3 wrote into a pickle for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it has bytes as {encoding}")
    return text.encode("latin1")


# The globals that pickled numpy arrays, old and new, refer to.
_RECONSTRUCT, _FROM_BUFFER = np.empty(0).__reduce__()[0], np.empty(0).__reduce_ex__(5)[0]
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1_bytes,
}


class CifarLocation(NamedTuple):
    """Where a CIFAR image is.

    Attributes:
      file: the file, with many images.
      binary: whether the file is of the binary version; otherwise it is a pickle.
      index: index of the image in the file, from 0.
    """

    file: Location
    binary: bool
    index: int


def cifar10_lt(source: Path, unpack_in: Path, imbalance_factor: float = 0.01, seed: int = 0) -> Listing:
    """List CIFAR10-LT of NoisyTwins (CVPR 2023): class c has ``int(5000 * imbalance_factor**(c / 9))`` images.

    The defaults give exactly the published 12,406 training images, class by class, each class in the order of its
    shuffled indices. The reference split is the whole test set of 10,000 images. 5000 is the number of images per class
    in CIFAR-10; with other files it is that of the smallest class.

    Args:
      source: cifar-10-binary.tar.gz or cifar-10-python.tar.gz, the folder cifar-10-batches-bin or
        cifar-10-batches-py, or a folder that holds one of these (the binary version is preferred).
      unpack_in: folder in which an archive is unpacked.
      imbalance_factor: rarest over most frequent class, in (0, 1]; 0.01 is published.
      seed: seed of the choice of images; 0 is published.

    Returns:
      The listing; its reader returns uint8 ``[32, 32, 3]``. Names are ``train/<i>`` and ``test/<i>``, i the index in
      the 50,000 training images (the batches 1 to 5 in order) or in the 10,000 test images.

    Raises:
      UserError: the files are missing or not from CIFAR-10, or an argument is out of range.
    """
    files, binary = _find_files(Path(source), unpack_in)
    suffix = ".bin" if binary else ""
    train = _locate_images([files[f"data_batch_{i}{suffix}"] for i in range(1, 6)], binary)
    test = _locate_images([files[f"test_batch{suffix}"]], binary)
    names = _class_names(files["batches.meta.txt" if binary else "batches.meta"], binary)
    return cifar10_listing(train, test, names, read_record, imbalance_factor, seed)


def cifar10_listing(
    train: Sequence[tuple[Any, int]],
    test: Sequence[tuple[Any, int]],
    class_names: Sequence[str],
    read: Reader,
    imbalance_factor: float,
    seed: int,
) -> Listing:
    """Build CIFAR10-LT from the locations and labels of all CIFAR-10 images in their public order; see `cifar10_lt`."""
    train_labels = np.array([label for _, label in train])
    selected = long_tailed_indices(train_labels, imbalance_factor, seed).tolist()
    return Listing(
        class_names=class_names,
        splits={
            "train": [Item(f"train/{i}", train[i][1], train[i][0]) for i in selected],
            "reference": [Item(f"test/{i}", label, record) for i, (record, label) in enumerate(test)],
        },
        read=read,
        description=(
            "CIFAR10-LT: an exponentially long-tailed subset of the training images of CIFAR-10, "
            f"rarest over most frequent class {imbalance_factor:g}; the reference is the test set of CIFAR-10."
        ),
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        citation=(
            "@techreport{krizhevsky2009learning,\n"
            "  title={Learning Multiple Layers of Features from Tiny Images},\n"
            "  author={Krizhevsky, Alex},\n"
            "  institution={University of Toronto},\n"
            "  year={2009}\n"
            "}"
        ),
        published_counts={"train": 12406, "reference": 10000} if imbalance_factor == 0.01 else {"reference": 10000},
    )


def long_tailed_indices(labels: np.ndarray, imbalance_factor: float, seed: int) -> np.ndarray:
    """Choose a long-tailed subset of CIFAR-10 as the published code does.

    One generator, numpy's legacy ``RandomState(seed)`` (the same numbers as after ``np.random.seed(seed)``), shuffles
    the indices of one class after the other; the first ones of each class are selected.

    Args:
      labels: integers ``[num_images]``, in 0..9.
      imbalance_factor: rarest over most frequent class, in (0, 1].
      seed: seed of the generator, from 0 to 2**32 - 1.

    Returns:
      int64 ``[num_selected]``: class by class, each in shuffled order. The counts are ``long_tail_counts(n, 10,
      imbalance_factor)`` with n the number of images of the smallest class.

    Raises:
      UserError: a class has no image, or too few for the imbalance; or an argument is out of range.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"The seed of CIFAR10-LT must be from 0 to 2**32 - 1, but it is {seed}.")
    available = np.bincount(labels, minlength=_CLASSES)
    if not available.all():
        raise UserError(
            f"There is no training image of class {np.flatnonzero(available == 0)[0]} of CIFAR-10; "
            f"give the unchanged files: {_WANTED}."
        )
    generator = np.random.RandomState(seed)
    selected = []
    for c, count in enumerate(long_tail_counts(int(available.min()), _CLASSES, imbalance_factor)):
        indices = np.where(labels == c)[0]
        generator.shuffle(indices)
        selected.append(indices[:count])
    return np.concatenate(selected)


def read_record(item: Item) -> np.ndarray:
    """Read the image at ``item.location``, a `CifarLocation`, as uint8 ``[32, 32, 3]``."""
    file, binary, index = item.location
    return np.ascontiguousarray(_load(file, binary)[0][index].reshape(3, 32, 32).transpose(1, 2, 0))


def _find_files(source: Path, unpack_in: Path) -> tuple[dict[str, Location], bool]:
    """Find the files of CIFAR-10 by name, and whether they are the binary version."""
    if source.is_dir():
        inside = ("cifar-10-batches-bin", "cifar-10-binary.tar.gz", "cifar-10-batches-py", "cifar-10-python.tar.gz")
        candidates = [source, *(source / name for name in inside)]
        present = [path for path in candidates if path.is_file() or any(path.glob("data_batch_1*"))]
        if not present:
            raise UserError(f"{source} does not hold CIFAR-10; give {_WANTED}.")
        source = present[0]
    files = list_files(source, unpack_in)
    by_name = {path.rsplit("/", 1)[-1]: location for path, location in files.items()}
    binary = "data_batch_1.bin" in by_name
    suffix = ".bin" if binary else ""
    needed = [*(f"data_batch_{i}{suffix}" for i in range(1, 6)), f"test_batch{suffix}"]
    for name in [*needed, "batches.meta.txt" if binary else "batches.meta"]:
        if name not in by_name:
            raise UserError(f"{source} lacks the file {name} of CIFAR-10; give {_WANTED}.")
    return by_name, binary


def _locate_images(files: list[Location], binary: bool) -> list[tuple[CifarLocation, int]]:
    """Return the locations and labels of all images of some files, in order."""
    return [
        (CifarLocation(file, binary, index), int(label))
        for file in files
        for index, label in enumerate(_load(file, binary)[1])
    ]


@functools.lru_cache(maxsize=6)  # all files of CIFAR-10, loaded once per process
def _load(file: Location, binary: bool) -> tuple[np.ndarray, np.ndarray]:
    """Load a file's pixels, uint8 ``[N, 3072]``, memory-mapped where possible, and labels ``[N]``."""
    if binary:
        records = _map_bytes(file)
        if len(records) == 0 or len(records) % _RECORD:
            raise UserError(
                f"{_name(file)} has {len(records)} bytes, no multiple of the {_RECORD} of an image of CIFAR-10: it is "
                "damaged or cut off, so get it again."
            )
        records = records.reshape(-1, _RECORD)
        pixels, labels = records[:, 1:], records[:, 0]
    else:
        batch = _unpickle(file)
        pixels, labels = _entry(file, batch, b"data"), np.asarray(_entry(file, batch, b"labels"))
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
            raise UserError(
                f"The pixels in {_name(file)} are not uint8 of shape ({len(labels)}, {_PIXELS}), so it is not of "
                f"CIFAR-10; give {_WANTED}."
            )
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not np.isin(labels, np.arange(_CLASSES)).all():
        raise UserError(f"The labels in {_name(file)} are not integers from 0 to 9 (CIFAR-10); give {_WANTED}.")
    return pixels, labels


def _map_bytes(file: Location) -> np.ndarray:
    """Return the bytes of a file, uint8; a file in a zip is read, any other is memory-mapped."""
    if isinstance(file, str) and Path(file).stat().st_size:
        return np.memmap(file, np.uint8, mode="r")
    if isinstance(file, ByteRange) and file.size:
        return np.memmap(file.path, np.uint8, mode="r", offset=file.offset, shape=(file.size,))
    return np.frombuffer(read_location(file), np.uint8)


def _class_names(file: Location, binary: bool) -> list[str]:
    """Read the names of the ten classes from a file."""
    if binary:
        names = read_location(file).decode("utf-8", errors="replace").split()
    else:
        names = _entry(file, _unpickle(file), b"label_names")
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    if len(names) != _CLASSES:
        raise UserError(f"{_name(file)} holds {len(names)} class names instead of 10 (CIFAR-10); give {_WANTED}.")
    return names


class _ArraysOnly(pickle.Unpickler):
    """An unpickler for numpy arrays and built-in containers only: any other pickle could run arbitrary code."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _unpickle(file: Location) -> Any:
    """Load a pickle of the Python version; its strings are bytes."""
    try:
        return _ArraysOnly(io.BytesIO(read_location(file)), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{_name(file)} is not a pickle of CIFAR-10 ({first_line(error)}); give the unchanged files: {_WANTED}."
        ) from error


def _entry(file: Location, batch: Any, key: bytes) -> Any:
    """Return an entry of an unpickled batch."""
    if not isinstance(batch, Mapping) or key not in batch:
        raise UserError(f"{_name(file)} has no entry {key.decode()!r}, so it is not of CIFAR-10; give {_WANTED}.")
    return batch[key]


def _name(file: Location) -> str:
    """Return the file's name for messages."""
    return file if isinstance(file, str) else str(file.path)
