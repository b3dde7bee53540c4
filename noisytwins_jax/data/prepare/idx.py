"""Fashion-MNIST-LT and MNIST-LT: long-tailed subsets of two sets of 28×28 grey images, from their public IDX files."""

import functools
import gzip
import hashlib
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from noisytwins_jax.data.long_tail import long_tail_counts
from noisytwins_jax.data.prepare.listing import Item, Listing
from noisytwins_jax.data.source import seeded_generator
from noisytwins_jax.utils.errors import UserError

_SIZE, _MARGIN = 28, 2  # pixels of an image, and black ones that are added on every side
_CLASSES, _LARGEST = 10, 6000
# The training images of each class in GAMO (Mullick et al., ICCV 2019) and DeepSMOTE (Dablain et al., 2022).
_GAMO = np.array([4000, 2000, 1000, 750, 500, 350, 200, 100, 60, 40])
PROFILES = ("exponential", "gamo")
_IMAGES_MAGIC, _LABELS_MAGIC = 2051, 2049  # of uint8 arrays with three axes and one


class IdxSet(NamedTuple):
    """What is known of one of the two sets.

    Attributes:
      title: the set's name.
      class_names: of the ten classes.
      how_to_get: where a person gets the files.
      sha256: of the unpacked files, by their name without ``.gz``; empty where it is not known.
      train_counts: training images of each class.
      homepage: web page.
      citation: BibTeX.
    """

    title: str
    class_names: Sequence[str]
    how_to_get: str
    sha256: dict[str, str]
    train_counts: Sequence[int]
    homepage: str
    citation: str


FASHION_MNIST = IdxSet(
    title="Fashion-MNIST",
    class_names=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    how_to_get="from https://github.com/zalandoresearch/fashion-mnist, or Debian's package dataset-fashion-mnist",
    sha256={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    train_counts=[6000] * _CLASSES,
    homepage="https://github.com/zalandoresearch/fashion-mnist",
    citation=(
        "@article{xiao2017fashion,\n"
        "  title={Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},\n"
        "  author={Xiao, Han and Rasul, Kashif and Vollgraf, Roland},\n"
        "  journal={arXiv:1708.07747},\n"
        "  year={2017}\n"
        "}"
    ),
)
MNIST = IdxSet(
    title="MNIST",
    class_names=[str(digit) for digit in range(_CLASSES)],
    how_to_get="from https://ossci-datasets.s3.amazonaws.com/mnist",
    sha256={},
    train_counts=[5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    homepage="http://yann.lecun.com/exdb/mnist",
    citation=(
        "@article{lecun1998gradient,\n"
        "  title={Gradient-based learning applied to document recognition},\n"
        "  author={LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},\n"
        "  journal={Proceedings of the IEEE},\n"
        "  year={1998}\n"
        "}"
    ),
)


def fashion_mnist_lt(
    source: Path, imbalance_factor: float = 0.01, profile: str = "exponential", seed: int = 0
) -> Listing:
    """List Fashion-MNIST-LT, with 6000 training images of class 0 down to 60 of class 9.

    Images are padded with black from 28 to 32 pixels. The reference split is the whole test set, 10,000 images. The
    classifier split is the whole training set, 60,000 images: the classifier knows what was cut off the tail.

    Args:
      source: the folder of the four IDX files, each with or without ``.gz``, or one of them.
      imbalance_factor: rarest over most frequent class, in (0, 1], of the profile "exponential" (`long_tail_counts`).
      profile: "exponential", or "gamo" for 4000 2000 1000 750 500 350 200 100 60 40 images.
      seed: seed of the choice of images. For one seed, those of a smaller class are among those of a larger one.

    Returns:
      The listing; its reader returns uint8 ``[32, 32]``. Names are ``<split>/<index in the public file>``.

    Raises:
      UserError: the files are missing, damaged or those of another set, or an argument is out of range.
    """
    return _list_set(FASHION_MNIST, source, imbalance_factor, profile, seed)


def mnist_lt(source: Path, imbalance_factor: float = 0.01, profile: str = "exponential", seed: int = 0) -> Listing:
    """List MNIST-LT: as `fashion_mnist_lt`, with at most as many images of a digit as there are (5923 of 0)."""
    return _list_set(MNIST, source, imbalance_factor, profile, seed)


def _list_set(known: IdxSet, source: Path, imbalance_factor: float, profile: str, seed: int) -> Listing:
    files = _find_files(known, source)
    labels = {split: _read_labels(files[f"{split}-labels-idx1-ubyte"]) for split in ("train", "t10k")}
    for split, of_split in labels.items():
        images = files[f"{split}-images-idx3-ubyte"]
        if len(read_images(images)) != len(of_split):
            raise UserError(
                f"{images} has {len(read_images(images))} images, but there are {len(of_split)} labels; {_get(known)}"
            )
    _check_contents(known, files, labels["train"])
    counts = _train_counts(known, imbalance_factor, profile)
    rng = seeded_generator(seed)
    chosen = [np.sort(rng.permutation(np.flatnonzero(labels["train"] == c))[:count]) for c, count in enumerate(counts)]

    def items(split: str, public: str, indices: np.ndarray) -> list[Item]:
        file = str(files[f"{public}-images-idx3-ubyte"])
        return [Item(f"{split}/{i}", int(labels[public][i]), (file, i)) for i in indices.tolist()]

    tail = f"rarest over most frequent class {imbalance_factor:g}" if profile == "exponential" else "the counts of GAMO"
    return Listing(
        class_names=known.class_names,
        splits={
            "train": items("train", "train", np.concatenate(chosen)),
            "reference": items("test", "t10k", np.arange(len(labels["t10k"]))),
            "classifier": items("train", "train", np.arange(len(labels["train"]))),
        },
        read=read_padded,
        description=(
            f"{known.title}-LT: a long-tailed subset of the training images of {known.title}, {tail}, padded to 32 "
            f"pixels; the reference is the test set of {known.title}."
        ),
        homepage=known.homepage,
        citation=known.citation,
        published_counts={"reference": 10_000, "classifier": 60_000},
    )


def read_padded(item: Item) -> np.ndarray:
    """Read the image at ``item.location``, a file and an index in it, as uint8 ``[32, 32]``."""
    file, index = item.location
    return np.pad(read_images(Path(file))[index], _MARGIN)


@functools.lru_cache(maxsize=2)  # once in every process
def read_images(file: Path) -> np.ndarray:
    """Read an IDX file of images: uint8 ``[N, 28, 28]``, 0 is black.

    Raises:
      UserError: the file is missing, damaged or has other contents.
    """
    return _read_idx(file, _IMAGES_MAGIC, (_SIZE, _SIZE), "images of 28x28 pixels")


def _read_labels(file: Path) -> np.ndarray:
    labels = _read_idx(file, _LABELS_MAGIC, (), "labels")
    if labels.size and labels.max() >= _CLASSES:
        raise UserError(f"{file} has label {labels.max()}; the classes are 0 to 9, so it is of another data set.")
    return labels


def _read_idx(file: Path, magic: int, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Read an IDX file: big-endian uint32 numbers (magic, length of every axis), then uint8 values."""
    data = _unpacked(file)
    header = struct.calcsize(">I") * (2 + len(shape))
    found = struct.unpack(f">{2 + len(shape)}I", data[:header]) if len(data) >= header else ()
    if not found or found[0] != magic or found[2:] != shape:
        raise UserError(f"{file} is no IDX file of {what}: it begins with {found or 'less than a header'}.")
    count, values = found[1], np.frombuffer(data, np.uint8, offset=header)
    if values.size != count * int(np.prod(shape)):
        raise UserError(
            f"{file} is damaged or cut off, so get it again: its header says {count} {what}, but it has {len(data)} bytes."
        )
    return values.reshape(count, *shape)


def _unpacked(file: Path) -> bytes:
    try:
        data = file.read_bytes()
        return gzip.decompress(data) if file.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be read ({error}); get it again.") from None


def _find_files(known: IdxSet, source: Path) -> dict[str, Path]:
    """Find the four files of a set, by their names without ``.gz``."""
    folder = Path(source)
    if folder.is_file():  # one of the four
        folder = folder.parent
    files = {}
    for name in (
        f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ):
        present = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if not present:
            raise UserError(f"{folder} lacks {name}.gz; {_get(known)}")
        files[name] = present[0]
    return files


def _check_contents(known: IdxSet, files: dict[str, Path], train_labels: np.ndarray) -> None:
    """Refuse other sets in files of these names, and files that were changed."""
    counts = np.bincount(train_labels, minlength=_CLASSES).tolist()
    if counts != list(known.train_counts):
        others = [other.title for other in (FASHION_MNIST, MNIST) if list(other.train_counts) == counts]
        told = f"these are of {others[0]}" if others else f"{counts} training images of the classes 0 to 9"
        raise UserError(f"{files['train-labels-idx1-ubyte']} is not of {known.title} ({told}); {_get(known)}")
    for name, sha256 in known.sha256.items():
        if hashlib.sha256(_unpacked(files[name])).hexdigest() != sha256:
            raise UserError(f"{files[name]} is not the public file of {known.title} (another SHA-256); {_get(known)}")


def _train_counts(known: IdxSet, imbalance_factor: float, profile: str) -> np.ndarray:
    """Return the images of each class in the long-tailed training set."""
    if profile not in PROFILES:
        raise UserError(f"There is no profile {profile!r}; give {' or '.join(PROFILES)}.")
    if profile == "gamo":
        if imbalance_factor != 0.01:
            raise UserError("--imbalance_factor is of --profile=exponential; the counts of gamo are fixed.")
        return _GAMO
    return np.minimum(long_tail_counts(_LARGEST, _CLASSES, imbalance_factor), known.train_counts)


def _get(known: IdxSet) -> str:
    return f"get the files {known.how_to_get}."
