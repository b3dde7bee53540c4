"""Data sets written by ``noisytwins_jax.data.prepare``: array_record shards with random access.

A prepared data set is a directory ``<data_dir>/<name>/<resolution>px/<version>``. TFDS reads it with
``tfds.builder_from_directory``; this module reads `INFO_FILE`, which records how the images were prepared, and a file of
labels. `INFO_FILE` is written last: a directory without it is incomplete.
"""

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from grain.sources import ArrayRecordDataSource

from noisytwins_jax.data import records
from noisytwins_jax.data.aspect import Aspect
from noisytwins_jax.data.long_tail import count_classes
from noisytwins_jax.data.preprocessing import Preprocessing
from noisytwins_jax.data.remote import local_directory
from noisytwins_jax.data.source import DataSplits, LabelledImages
from noisytwins_jax.utils.errors import UserError

INFO_FILE = "preparation.json"
# Classes and channels of the public data sets, for --mode=compile before they are prepared.
KNOWN_SETS = {
    "cifar10_lt": (10, 3),
    "cifar100_lt": (100, 3),
    "flowers_lt": (102, 3),
    "animal_faces_lt": (20, 3),
    "fashion_mnist_lt": (10, 1),
    "mnist_lt": (10, 1),
    "imagenet": (1000, 3),
    "imagenet_lt": (1000, 3),
    "inat19": (1010, 3),
    "animal_face": (20, 3),
    "imagenet_carnivore": (20, 3),
    "petals": (20, 3),
}
# Forms of petals that `configs/petals.py` names, with their classes.
PETALS_SETS = {"petals_100": 100, "petals_1010": 1010}
# Those public data sets whose files ``data.prepare`` does not get by itself.
NOT_FREE = ("imagenet", "imagenet_lt", "inat19", "imagenet_carnivore")
VERSION = "1.0.0"  # of the format and of the order of images; also the TFDS version of every data set


class PreparedSource:
    """An ``ImageSource`` on disk: one split of a prepared data set.

    Args:
      directory: directory of the data set.
      info: content of its `INFO_FILE`.
      split: ``"train"``, ``"reference"``, ``"classifier"`` or ``"full"``.

    Raises:
      UserError: a file is missing or differs from the one that was written.
    """

    def __init__(self, directory: Path, info: Mapping[str, Any], split: str) -> None:
        facts = info["splits"][split]
        self.name = f"{info['name']} ({split})"
        self.class_names = tuple(info["class_names"])
        self.num_classes = len(self.class_names)
        self.resolution, self.channels = info["resolution"], info["channels"]
        self.preprocessing: str = info["preprocessing"]
        self.aspect = Aspect(**info["aspect"]) if info.get("aspect") else None
        self.fingerprint: str = facts["fingerprint"]
        self._shape = (self.resolution, self.resolution, self.channels)
        self.factor_names = tuple(info["factor_names"])
        self.labels = _load_array(directory / f"labels-{split}.npy", facts["images"])
        self.factors = _load_array(directory / f"factors-{split}.npy", facts["images"]) if self.factor_names else None
        if split == "train":
            self.class_counts = count_classes(self.labels, self.num_classes)
        else:  # a class may have no reference images
            self.class_counts = np.bincount(self.labels, minlength=self.num_classes).astype(np.int64)
        for array in (self.labels, self.class_counts):
            array.flags.writeable = False
        self._paths = [directory / shard["file"] for shard in facts["shards"]]
        for path, shard in zip(self._paths, facts["shards"], strict=True):
            if not path.exists() or path.stat().st_size != shard["bytes"]:
                raise UserError(
                    f"{path} is {'missing' if not path.exists() else 'not the file that was prepared'}; prepare the data "
                    "again, or copy all of it."
                )
        self._local = threading.local()  # a reader has a position in its files

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> LabelledImages:
        """Return image ``index``: ``{"image": uint8 [H, W, C], "label": int32 scalar}``."""
        batch = self.take(np.array([index]))
        return {"image": batch["image"][0], "label": batch["label"][0]}

    def take(self, indices: np.ndarray) -> LabelledImages:
        """Return images ``indices``, integers ``[B]``: ``{"image": uint8 [B, H, W, C], "label": int32 [B]}``.

        Raises:
          OSError: a file cannot be read or is damaged.
        """
        images = np.empty((len(indices), *self._shape), np.uint8)
        try:
            for image, data in zip(images, self._records.__getitems__([int(i) for i in indices]), strict=True):
                image[:] = records.decode_image(data).reshape(self._shape)
        except (ValueError, RuntimeError, IndexError) as error:
            raise OSError(f"{self.name} cannot be read in {self._paths[0].parent} ({error})") from error
        return {"image": images, "label": self.labels[indices]}

    @property
    def _records(self) -> ArrayRecordDataSource:
        if not hasattr(self._local, "source"):
            self._local.source = ArrayRecordDataSource([str(path) for path in self._paths])
        return self._local.source


def prepared_splits(
    name: str, *, resolution: int, directory: str, cache: str = "", preprocessing: str = ""
) -> DataSplits:
    """Load the splits of a prepared data set; without a reference split, the training images are the reference.

    Args:
      name: name of the prepared data set.
      resolution: pixels.
      directory: directory of prepared data sets; a path, or the address of a bucket (gs://, s3://, …).
      cache: local directory for the files of a bucket.
      preprocessing: the required preprocessing; empty for any.

    Raises:
      UserError: the data set is missing, incomplete or was prepared differently.
    """
    info, path = load_info(name, resolution=resolution, directory=directory, cache=cache)
    if preprocessing and Preprocessing.parse(preprocessing).name != info["preprocessing"]:
        raise UserError(
            f"The images in {path} were prepared with {info['preprocessing']}, not with {preprocessing}, as "
            "config.data.preprocessing asks: their metrics are not comparable; prepare them again, or change the field."
        )
    splits = {split: PreparedSource(path, info, split) for split in info["splits"]}
    train = splits["train"]
    reference = splits.get("reference", train)
    balanced = reference if reference.class_counts.min() > 0 else train  # complete reference sets are balanced
    return DataSplits(
        train=train,
        reference=reference,
        classifier=splits.get("classifier", balanced),
        full=splits.get("full"),
        few_classes=tuple(info.get("few_classes", ())),
    )


def load_info(name: str, *, resolution: int, directory: str, cache: str = "") -> tuple[dict[str, Any], Path]:
    """Load the `INFO_FILE` of a data set; return its content and the local directory of the data set.

    Raises:
      UserError: the data set is missing or incomplete; the message gives the command that prepares it.
    """
    path = local_directory(f"{directory.rstrip('/')}/{name}/{resolution}px/{VERSION}", INFO_FILE, cache)
    try:
        return json.loads((path / INFO_FILE).read_text()), path
    except FileNotFoundError:
        others = sorted(other.parents[1].name for other in path.parents[1].glob(f"*/{VERSION}/{INFO_FILE}"))
        available = f" (there: {', '.join(others)})" if others else ""
        raise UserError(
            f"There is no prepared data set {name} of {resolution} px in {directory}{available}; "
            f"{how_to_prepare(name, resolution, directory)}"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path / INFO_FILE} cannot be read ({error}); prepare the data again.") from None


def how_to_prepare(name: str, resolution: int, directory: str) -> str:
    """Return the end of an error message: the command that prepares a data set of this name."""
    if name in PETALS_SETS:
        kind = f"petals --name={name} --num_classes={PETALS_SETS[name]}"
    elif name in KNOWN_SETS:
        kind = name + (" --source=..." if name in NOT_FREE else "")
    else:
        kind = f"image_folder --name={name} --source=..."
    command = f"python -m noisytwins_jax.data.prepare {kind} --data_dir={directory} --resolution={resolution}"
    return f"prepare it with: {command}"


def split_fingerprint(shape: Sequence[int], labels: np.ndarray, hashes: Sequence[str]) -> str:
    """Return the hexadecimal SHA-256 of a split's shape, image hashes and labels; it is independent of the shards."""
    digest = hashlib.sha256(repr((len(hashes), *map(int, shape))).encode())
    for value in hashes:
        digest.update(bytes.fromhex(value))
    digest.update(labels.astype("<i4").data)
    return digest.hexdigest()


def _load_array(path: Path, length: int) -> np.ndarray:
    try:
        array = np.load(path)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); prepare the data again, or copy all of it.") from None
    if len(array) != length:
        raise UserError(f"{path} does not belong to these shards; prepare the data again, or copy all of it.")
    return array
