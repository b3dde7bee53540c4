"""Flowers-LT and AnimalFaces-LT, the long-tailed sets of UTLO (Khorram et al., CVPR 2024), from their public archives.

Classes are numbered by their numbers of images, from the most frequent one on (of equals the later one first); class i of C
keeps ``min(int(n ρ^(-i/(C-1))), available)`` images, with n images of class 0 and ρ the imbalance. The counts are the
published ones. Which images those are was left to chance there; here it follows from the seed.
"""

import dataclasses
import io
from pathlib import Path, PurePosixPath

import numpy as np
import scipy.io

from noisytwins_jax.data.long_tail import long_tail_counts
from noisytwins_jax.data.prepare.files import list_files, read_file, read_location
from noisytwins_jax.data.prepare.folders import animal_face
from noisytwins_jax.data.prepare.listing import Item, Listing
from noisytwins_jax.data.source import seeded_generator
from noisytwins_jax.utils.errors import UserError, first_line

_FLOWERS, _FLOWER_CLASSES = "102flowers.tgz", 102
_FLOWER_LABELS = "imagelabels.mat"
_FLOWERS_WANTED = (
    f"a folder with {_FLOWERS} and {_FLOWER_LABELS} from https://www.robots.ox.ac.uk/~vgg/data/flowers/102, or with the folder "
    "jpg of the archive and the labels"
)


def flowers_lt(source: Path, unpack_in: Path, imbalance_factor: float = 0.01, seed: int = 0) -> Listing:
    """List Flowers-LT: Oxford Flowers 102, all 8189 images of the public splits together, reduced to a long tail.

    There are no names of classes in the public files: a class is named after its public number, as "flower 51".

    Args:
      source: the folder of 102flowers.tgz and imagelabels.mat, or the archive itself, with the labels beside it.
      unpack_in: folder in which the archive is unpacked.
      imbalance_factor: rarest over most frequent class, in (0, 1]; 0.01 is published.
      seed: of the choice of images.

    Raises:
      UserError: a file is missing, is another one, or does not fit the other; or an argument is out of range.
    """
    source = Path(source)
    folder = source if source.is_dir() else source.parent
    images = folder / _FLOWERS if source.is_dir() and (folder / _FLOWERS).is_file() else source
    if not (folder / _FLOWER_LABELS).is_file():
        raise UserError(f"{folder} lacks {_FLOWER_LABELS}, the classes of the flowers; give {_FLOWERS_WANTED}.")
    files = list_files(images, unpack_in)
    pictures = {PurePosixPath(path).name: place for path, place in files.items() if path.lower().endswith(".jpg")}
    labels = read_flower_labels(folder / _FLOWER_LABELS)
    names = [f"image_{number:05d}.jpg" for number in range(1, len(labels) + 1)]
    if pictures.keys() != set(names):
        odd = min(pictures.keys() ^ set(names))
        raise UserError(
            f"{folder / _FLOWER_LABELS} has the classes of {len(labels)} images, {names[0]} to {names[-1]}, but {images} has "
            f"{len(pictures)} ({odd} is in one of them alone); give {_FLOWERS_WANTED}."
        )
    listing = Listing(
        class_names=[f"flower {number}" for number in range(1, _FLOWER_CLASSES + 1)],
        splits={"train": [Item(name, label - 1, pictures[name]) for name, label in zip(names, labels, strict=True)]},
        read=read_file,
        description="Flowers-LT: an exponentially long-tailed subset of Oxford Flowers 102.",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
        citation=(
            "@inproceedings{nilsback2008automated,\n"
            "  title={Automated Flower Classification over a Large Number of Classes},\n"
            "  author={Nilsback, Maria-Elena and Zisserman, Andrew},\n"
            "  booktitle={Indian Conference on Computer Vision, Graphics and Image Processing},\n"
            "  year={2008}\n"
            "}"
        ),
    )
    return _long_tailed(listing, imbalance_factor, seed, first_few=50)


def animal_faces_lt(source: Path, unpack_in: Path, imbalance_factor: float = 0.04, seed: int = 0) -> Listing:
    """List AnimalFaces-LT: AnimalFace, reduced to a long tail.

    Args:
      source, unpack_in: see `folders.animal_face`.
      imbalance_factor: rarest over most frequent class, in (0, 1]; 0.04 is published.
      seed: of the choice of images.

    Raises:
      UserError: the source has another layout or no image, or an argument is out of range.
    """
    listing = dataclasses.replace(
        animal_face(source, unpack_in),
        description="AnimalFaces-LT: an exponentially long-tailed subset of AnimalFace, without the natural scenes.",
    )
    return _long_tailed(listing, imbalance_factor, seed, first_few=10)


def read_flower_labels(file: Path) -> list[int]:
    """Read imagelabels.mat: the public class, from 1 on, of every image in the order of their numbers.

    Raises:
      UserError: it is another file.
    """
    try:
        labels = scipy.io.loadmat(io.BytesIO(read_location(str(file))), squeeze_me=True).get("labels")
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{file} is no MATLAB file ({first_line(error)}); give {_FLOWERS_WANTED}.") from None
    known = np.arange(1, _FLOWER_CLASSES + 1)
    if labels is None or np.ndim(labels) != 1 or not np.array_equal(np.unique(labels), known):
        raise UserError(f"{file} has no classes 1 to {_FLOWER_CLASSES} of images; give {_FLOWERS_WANTED}.")
    return [int(label) for label in labels]


def _long_tailed(listing: Listing, imbalance_factor: float, seed: int, first_few: int) -> Listing:
    """Number the classes by frequency, keep all images as the full split, and reduce the training split to a long tail.

    `first_few` is the first of the classes that UTLO's protocol calls few.
    """
    items: list[list[Item]] = [[] for _ in listing.class_names]
    for item in listing.splits["train"]:
        items[item.label].append(item)
    order = sorted(range(len(items)), key=lambda label: (-len(items[label]), -label))
    everything = [[dataclasses.replace(item, label=new) for item in items[old]] for new, old in enumerate(order)]
    counts = long_tail_counts(len(everything[0]), len(everything), imbalance_factor)
    generator, train = seeded_generator(seed), []
    for of_class, count in zip(everything, counts.tolist(), strict=True):
        chosen = np.sort(generator.permutation(len(of_class))[:count])
        train += [of_class[index] for index in chosen]
    return dataclasses.replace(
        listing,
        class_names=[listing.class_names[old] for old in order],
        splits={"train": train, "full": [item for of_class in everything for item in of_class]},
        few_classes=tuple(range(first_few, len(order))),
    )
