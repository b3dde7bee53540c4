"""CIFAR10-LT and CIFAR100-LT: long-tailed subsets of CIFAR-10 and CIFAR-100, from either of their public archives."""

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

_PIXELS = 3 * 32 * 32  # bytes of an image: the red, green and blue planes, each row by row
ORDERS = ("label", "reversed")


class CifarSet(NamedTuple):
    """What is known of one of the two sets.

    Attributes:
      title: the set's name.
      classes: their number.
      train, test: files of images, without the suffix of the binary version.
      names: files of the class names, of the binary and of the Python version.
      folders: of the binary and of the Python version.
      keys: of the labels and of the class names in the Python version.
      labels: bytes before an image in the binary version, of which the last is the label.
    """

    title: str
    classes: int
    train: tuple[str, ...]
    test: str
    names: tuple[str, str]
    folders: tuple[str, str]
    keys: tuple[bytes, bytes]
    labels: int

    @property
    def archives(self) -> tuple[str, str]:
        """Return the names of the public archives, of the binary and of the Python version."""
        stem = self.title.lower()
        return f"{stem}-binary.tar.gz", f"{stem}-python.tar.gz"

    @property
    def wanted(self) -> str:
        """Return what a person should give."""
        return f"{' or '.join(self.archives)} from https://www.cs.toronto.edu/~kriz/cifar.html, or the folder that is in it"


CIFAR10 = CifarSet(
    title="CIFAR-10",
    classes=10,
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test="test_batch",
    names=("batches.meta.txt", "batches.meta"),
    folders=("cifar-10-batches-bin", "cifar-10-batches-py"),
    keys=(b"labels", b"label_names"),
    labels=1,
)
CIFAR100 = CifarSet(
    title="CIFAR-100",
    classes=100,
    train=("train",),
    test="test",
    names=("fine_label_names.txt", "meta"),
    folders=("cifar-100-binary", "cifar-100-python"),
    keys=(b"fine_labels", b"fine_label_names"),
    labels=2,  # the coarse label, then the fine one
)
_SETS = {known.title: known for known in (CIFAR10, CIFAR100)}


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
      title: of the `CifarSet`.
    """

    file: Location
    binary: bool
    index: int
    title: str


def cifar10_lt(
    source: Path, unpack_in: Path, imbalance_factor: float = 0.01, seed: int = 0, order: str = "label"
) -> Listing:
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
      order: "label", or "reversed" for UTLO's (see `cifar_listing`): truck is the most frequent class.

    Returns:
      The listing; its reader returns uint8 ``[32, 32, 3]``. Names are ``train/<i>`` and ``test/<i>``, i the index in
      the 50,000 training images (the batches 1 to 5 in order) or in the 10,000 test images.

    Raises:
      UserError: the files are missing or not from CIFAR-10, or an argument is out of range.
    """
    return _list_set(CIFAR10, source, unpack_in, imbalance_factor, seed, order)


def cifar100_lt(
    source: Path, unpack_in: Path, imbalance_factor: float = 0.01, seed: int = 0, order: str = "reversed"
) -> Listing:
    """List CIFAR100-LT of UTLO (CVPR 2024): 10,847 training images, 500 of fine label 99 down to 5 of fine label 0.

    The counts are the published ones; which images they are was left to chance there.

    Args:
      source: cifar-100-binary.tar.gz or cifar-100-python.tar.gz, the folder in it, or a folder that holds one of these.
      unpack_in, imbalance_factor, seed: see `cifar10_lt`.
      order: "reversed", as published, or "label".

    Raises:
      UserError: the files are missing or not from CIFAR-100, or an argument is out of range.
    """
    return _list_set(CIFAR100, source, unpack_in, imbalance_factor, seed, order)


def _list_set(
    known: CifarSet, source: Path, unpack_in: Path, imbalance_factor: float, seed: int, order: str
) -> Listing:
    files, binary = _find_files(known, Path(source), unpack_in)
    suffix = ".bin" if binary else ""
    train = _locate_images(known, [files[f"{name}{suffix}"] for name in known.train], binary)
    test = _locate_images(known, [files[f"{known.test}{suffix}"]], binary)
    names = _class_names(known, files[known.names[0 if binary else 1]], binary)
    return cifar_listing(known, train, test, names, read_record, imbalance_factor, seed, order)


def cifar_listing(
    known: CifarSet,
    train: Sequence[tuple[Any, int]],
    test: Sequence[tuple[Any, int]],
    class_names: Sequence[str],
    read: Reader,
    imbalance_factor: float,
    seed: int,
    order: str = "label",
) -> Listing:
    """Build the long-tailed set from the locations and labels of all images in their public order; see `cifar10_lt`.

    In the order "reversed", class c is the public label C - 1 - c, and there are a split of all training images and the
    few classes, as UTLO's protocol needs them.
    """
    if order not in ORDERS:
        raise UserError(f"There is no order {order!r}; give --order={' or '.join(ORDERS)}.")
    if order == "reversed":
        train, test = ([(place, known.classes - 1 - label) for place, label in images] for images in (train, test))
        class_names = class_names[::-1]
    train_labels = np.array([label for _, label in train])
    selected = long_tailed_indices(known, train_labels, imbalance_factor, seed).tolist()
    everything = [Item(f"train/{i}", label, place) for i, (place, label) in enumerate(train)]
    published = {"train": 12406 if known is CIFAR10 else 10847} if imbalance_factor == 0.01 else {}
    return Listing(
        class_names=class_names,
        splits={
            "train": [everything[i] for i in selected],
            "reference": [Item(f"test/{i}", label, place) for i, (place, label) in enumerate(test)],
        }
        | ({"full": everything} if order == "reversed" else {}),
        read=read,
        description=(
            f"{known.title.replace('-', '')}-LT: an exponentially long-tailed subset of the training images of {known.title}, "
            f"rarest over most frequent class {imbalance_factor:g}; the reference is the test set of {known.title}."
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
        published_counts=published | {"reference": 10000},
        few_classes=tuple(range(6, 10) if known is CIFAR10 else range(70, 100)) if order == "reversed" else (),
    )


def long_tailed_indices(known: CifarSet, labels: np.ndarray, imbalance_factor: float, seed: int) -> np.ndarray:
    """Choose a long-tailed subset as the published code of CIFAR10-LT does.

    One generator, numpy's legacy ``RandomState(seed)`` (the same numbers as after ``np.random.seed(seed)``), shuffles
    the indices of one class after the other; the first ones of each class are selected.

    Args:
      known: the set.
      labels: integers ``[num_images]``, class ids.
      imbalance_factor: rarest over most frequent class, in (0, 1].
      seed: seed of the generator, from 0 to 2**32 - 1.

    Returns:
      int64 ``[num_selected]``: class by class, each in shuffled order. The counts are ``long_tail_counts(n, C,
      imbalance_factor)`` with n the number of images of the smallest class.

    Raises:
      UserError: a class has no image, or too few for the imbalance; or an argument is out of range.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"The seed must be from 0 to 2**32 - 1, but it is {seed}.")
    available = np.bincount(labels, minlength=known.classes)
    if not available.all():
        raise UserError(
            f"There is no training image of class {np.flatnonzero(available == 0)[0]} of {known.title}; "
            f"give the unchanged files: {known.wanted}."
        )
    generator = np.random.RandomState(seed)
    selected = []
    for c, count in enumerate(long_tail_counts(int(available.min()), known.classes, imbalance_factor)):
        indices = np.where(labels == c)[0]
        generator.shuffle(indices)
        selected.append(indices[:count])
    return np.concatenate(selected)


def read_record(item: Item) -> np.ndarray:
    """Read the image at ``item.location``, a `CifarLocation`, as uint8 ``[32, 32, 3]``."""
    file, binary, index, title = item.location
    return np.ascontiguousarray(_load(title, file, binary)[0][index].reshape(3, 32, 32).transpose(1, 2, 0))


def _find_files(known: CifarSet, source: Path, unpack_in: Path) -> tuple[dict[str, Location], bool]:
    """Find the files of a set by name, and whether they are the binary version."""
    first = known.train[0]
    if source.is_dir():
        inside = [name for pair in zip(known.folders, known.archives, strict=True) for name in pair]
        candidates = [source, *(source / name for name in inside)]
        present = [p for p in candidates if p.is_file() or (p / first).is_file() or (p / f"{first}.bin").is_file()]
        if not present:
            raise UserError(f"{source} does not hold {known.title}; give {known.wanted}.")
        source = present[0]
    files = list_files(source, unpack_in)
    by_name = {path.rsplit("/", 1)[-1]: location for path, location in files.items()}
    binary = f"{first}.bin" in by_name
    needed = [f"{name}.bin" if binary else name for name in (*known.train, known.test)]
    for name in [*needed, known.names[0 if binary else 1]]:
        if name not in by_name:
            raise UserError(f"{source} lacks the file {name} of {known.title}; give {known.wanted}.")
    return by_name, binary


def _locate_images(known: CifarSet, files: list[Location], binary: bool) -> list[tuple[CifarLocation, int]]:
    """Return the locations and labels of all images of some files, in order."""
    return [
        (CifarLocation(file, binary, index, known.title), int(label))
        for file in files
        for index, label in enumerate(_load(known.title, file, binary)[1])
    ]


@functools.lru_cache(maxsize=6)  # all files of CIFAR-10, loaded once per process
def _load(title: str, file: Location, binary: bool) -> tuple[np.ndarray, np.ndarray]:
    """Load a file's pixels, uint8 ``[N, 3072]``, memory-mapped where possible, and labels ``[N]``."""
    known = _SETS[title]
    if binary:
        records, size = _map_bytes(file), known.labels + _PIXELS
        if len(records) == 0 or len(records) % size:
            raise UserError(
                f"{_name(file)} has {len(records)} bytes, no multiple of the {size} of an image of {title}: it is "
                "damaged or cut off, so get it again."
            )
        records = records.reshape(-1, size)
        pixels, labels = records[:, known.labels :], records[:, known.labels - 1]
    else:
        batch = _unpickle(known, file)
        pixels, labels = _entry(known, file, batch, b"data"), np.asarray(_entry(known, file, batch, known.keys[0]))
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
            raise UserError(
                f"The pixels in {_name(file)} are not uint8 of shape ({len(labels)}, {_PIXELS}), so it is not of "
                f"{title}; give {known.wanted}."
            )
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not np.isin(labels, np.arange(known.classes)).all():
        raise UserError(
            f"The labels in {_name(file)} are not integers from 0 to {known.classes - 1} ({title}); give {known.wanted}."
        )
    return pixels, labels


def _map_bytes(file: Location) -> np.ndarray:
    """Return the bytes of a file, uint8; a file in a zip is read, any other is memory-mapped."""
    if isinstance(file, str) and Path(file).stat().st_size:
        return np.memmap(file, np.uint8, mode="r")
    if isinstance(file, ByteRange) and file.size:
        return np.memmap(file.path, np.uint8, mode="r", offset=file.offset, shape=(file.size,))
    return np.frombuffer(read_location(file), np.uint8)


def _class_names(known: CifarSet, file: Location, binary: bool) -> list[str]:
    """Read the names of the classes from a file."""
    if binary:
        names = read_location(file).decode("utf-8", errors="replace").split()
    else:
        names = _entry(known, file, _unpickle(known, file), known.keys[1])
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    if len(names) != known.classes:
        raise UserError(
            f"{_name(file)} holds {len(names)} class names instead of {known.classes} ({known.title}); give {known.wanted}."
        )
    return names


class _ArraysOnly(pickle.Unpickler):
    """An unpickler for numpy arrays and built-in containers only: any other pickle could run arbitrary code."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _unpickle(known: CifarSet, file: Location) -> Any:
    """Load a pickle of the Python version; its strings are bytes."""
    try:
        return _ArraysOnly(io.BytesIO(read_location(file)), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{_name(file)} is not a pickle of {known.title} ({first_line(error)}); give the unchanged files: {known.wanted}."
        ) from error


def _entry(known: CifarSet, file: Location, batch: Any, key: bytes) -> Any:
    """Return an entry of an unpickled batch."""
    if not isinstance(batch, Mapping) or key not in batch:
        raise UserError(
            f"{_name(file)} has no entry {key.decode()!r}, so it is not of {known.title}; give {known.wanted}."
        )
    return batch[key]


def _name(file: Location) -> str:
    """Return the file's name for messages."""
    return file if isinstance(file, str) else str(file.path)
