"""Public TFDS data sets as sources: ``--source=tfds:cifar10``, ``tfds:imagenet_lt``, ``tfds:imagenet2012``.

A data set that TFDS has prepared as array_record files is read without TensorFlow. To download and prepare one, TFDS
needs TensorFlow: the extra ``prepare``.
"""

import contextlib
import functools
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from noisytwins_jax.data.prepare.cifar import CIFAR10, cifar_listing
from noisytwins_jax.data.prepare.image_lists import find_items, read_list
from noisytwins_jax.data.prepare.imagenet import (
    LISTS,
    check_classes,
    imagenet_listing,
    imagenet_lt_listing,
    note_missing_reference,
)
from noisytwins_jax.data.prepare.listing import Item, Listing, Problems
from noisytwins_jax.utils.errors import UserError, first_line

PREFIX = "tfds:"
_OPEN_FILES = 4096


class TfdsLocation(NamedTuple):
    """Where an image is: a TFDS data set (a name or a directory), a split of it, and the index there."""

    name: str
    split: str
    index: int


def cifar10_lt(source: str, imbalance_factor: float = 0.01, seed: int = 0, order: str = "label") -> Listing:
    """List CIFAR10-LT from TFDS's ``cifar10``: the same images as from the public archives, see `cifar.cifar10_lt`.

    Args:
      source: ``"tfds:cifar10"``, or ``tfds:`` and the directory of a prepared version.
      imbalance_factor, seed, order: see `cifar.cifar10_lt`.

    Raises:
      UserError: the data set is missing or another one, or an argument is out of range.
    """
    name = source.removeprefix(PREFIX)
    train, test = (_entries(name, split, "id") for split in ("train", "test"))
    # TFDS has shuffled the images; an id such as train_00042 is the position in the public batches.
    train.sort(key=lambda entry: entry[0])
    test.sort(key=lambda entry: entry[0])
    return cifar_listing(
        CIFAR10,
        [(location, label) for _, location, label in train],
        [(location, label) for _, location, label in test],
        _class_names(name),
        read_tfds,
        imbalance_factor,
        seed,
        order,
    )


def imagenet(source: str) -> Listing:
    """List ImageNet from TFDS's ``imagenet2012``: the same items as from the public archives, see `imagenet.imagenet`.

    TFDS has repaired a few damaged or wrongly coloured files; all others are identical.

    Args:
      source: ``"tfds:imagenet2012"``, or ``tfds:`` and the directory of a prepared version; without its split
        ``validation``, there is no reference split, and a note is printed.

    Raises:
      UserError: the data set is missing or does not have 1000 classes.
    """
    name = source.removeprefix(PREFIX)
    class_names = _class_names(name)
    check_classes(class_names, source)
    # TFDS has shuffled the images; a listing sorts them by name.
    train = _entries(name, "train", "file_name")
    splits = {"train": [Item(f"train/{class_names[label]}/{file}", label, location) for file, location, label in train]}
    if "validation" in _builder(name).info.splits:
        reference = _entries(name, "validation", "file_name")
        splits["reference"] = [Item(f"val/{file}", label, location) for file, location, label in reference]
    else:
        note_missing_reference(f"TFDS's {name} has no split validation")
    return imagenet_listing(class_names, splits, read_tfds, Problems())


def imagenet_lt(source: str, lists: Path | None = None) -> Listing:
    """List ImageNet-LT from TFDS's ``imagenet_lt``, or from ``imagenet2012`` and the public lists.

    Args:
      source: ``"tfds:imagenet_lt"`` or ``"tfds:imagenet2012"``, or ``tfds:`` and the directory of a prepared version.
      lists: folder of the lists; required for imagenet2012 only.

    Raises:
      UserError: the data set is missing or another one, or the lists are missing.
    """
    name, problems = source.removeprefix(PREFIX), Problems()
    if lists is None and "imagenet2012" in name:
        raise UserError(f"{source} needs --lists=<folder of {' and '.join(LISTS)}>.")
    train = _entries(name, "train", "file_name")
    if lists is None:
        splits = {"train": train, "reference": _entries(name, "validation", "file_name")}
        items = {
            split: [Item(file, label, location) for file, location, label in found] for split, found in splits.items()
        }
    else:
        locations = {file: location for file, location, _ in train}
        items = {}
        for split, file in zip(("train", "reference"), LISTS, strict=True):
            path = Path(lists) / file
            items[split] = find_items(
                read_list(path, problems),
                lambda entry: locations.get(entry.rsplit("/", 1)[-1]),
                problems,
                listed_in=path,
                source=Path(source),
            )
    return imagenet_lt_listing(_class_names(name), items, read_tfds, problems)


def read_tfds(item: Item) -> bytes:
    """Read the bytes of the image file at ``item.location``, a `TfdsLocation`."""
    return _data_source(item.location.name, item.location.split)[item.location.index]["image"]


def _entries(name: str, split: str, key: str) -> list[tuple[str, TfdsLocation, int]]:
    """Return key, location and class id of every image of a split."""
    source = _data_source(name, split)
    entries = []
    # Whole images are read: 140 GB for ImageNet.
    for index in tqdm(range(len(source)), desc=f"Listing {split} of {name}", unit=" images", disable=None, delay=1):
        record = source[index]
        if key not in record:
            raise UserError(
                f"TFDS's {name} has no feature {key!r} in its split {split}; give another data set of TFDS."
            )
        entries.append((record[key].decode(), TfdsLocation(name, split, index), int(record["label"])))
    return entries


def _class_names(name: str) -> Sequence[str]:
    return _builder(name).info.features["label"].names


@functools.lru_cache(maxsize=8)
def _data_source(name: str, split: str) -> Any:
    import tensorflow_datasets as tfds

    _allow_open_files()
    builder = _builder(name)
    if split not in builder.info.splits:
        raise UserError(f"TFDS's {name} has no split {split}; give another data set of TFDS.")
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def _allow_open_files() -> None:
    """Raise this process's limit of open files, often 1024: the 1024 shards of imagenet2012 all stay open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        with contextlib.suppress(OSError, ValueError):  # opening files may then fail with an error of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


@functools.lru_cache(maxsize=2)
def _builder(name: str) -> Any:
    """Return the builder of a TFDS data set in array_record files; TFDS prepares it if necessary."""
    import tensorflow_datasets as tfds

    try:
        if Path(name).is_dir():
            return tfds.builder_from_directory(name)
        builder = tfds.builder(name, file_format="array_record")
        builder.download_and_prepare()
        return builder
    except ImportError as error:
        raise UserError(
            f"TFDS has not prepared {name} yet, and needs TensorFlow to do it ({first_line(error)}): pip install "
            "'noisytwins_jax[prepare]'."
        ) from None
    except Exception as error:  # many types, some with long messages
        raise UserError(f"TFDS cannot give {name} ({first_line(error)}).") from None


def is_tfds(source: Any) -> bool:
    """Return whether a ``--source`` names a TFDS data set."""
    return str(source).startswith(PREFIX)
