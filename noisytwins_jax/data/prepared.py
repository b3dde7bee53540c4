"""Data sets that ``noisytwins_jax.data.prepare`` has made: array_record shards, read at random.

A prepared data set is a directory ``<data_dir>/<name>/<resolution>px/<version>``. To TFDS it is a data set
(``tfds.builder_from_directory``); here it is read through `INFO_FILE`, which says what every image went through, and the
labels, which are a file of their own. `INFO_FILE` is written last: a directory without it is not whole.
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
from noisytwins_jax.data.long_tail import count_classes
from noisytwins_jax.data.preprocessing import Preprocessing
from noisytwins_jax.data.remote import local_directory
from noisytwins_jax.data.source import DataSplits, LabelledImages
from noisytwins_jax.utils.errors import UserError

INFO_FILE = "preparation.json"
# Data sets that the command knows by name: their classes, for --mode=compile before they are prepared (images are RGB).
KNOWN_CLASSES = {
    "cifar10_lt": 10,
    "imagenet": 1000,
    "imagenet_lt": 1000,
    "inat19": 1010,
    "animal_face": 20,
    "imagenet_carnivore": 20,
    "petals": 20,
}
VERSION = "1.0.0"  # of the format and of the order of images; TFDS's version of every data set


class PreparedSource:
    """An ``ImageSource`` on disk: one split of a prepared data set.

    Args:
      directory: the data set.
      info: its `INFO_FILE`.
      split: ``"train"`` or ``"reference"``.

    Attributes:
      factors: float32 ``[len(source), len(factor_names)]``, the true factors of drawn images; None for photographs.
      factor_names: their names.

    Raises:
      UserError: a file is missing or is not the one that was written.
    """

    def __init__(self, directory: Path, info: Mapping[str, Any], split: str) -> None:
        facts = info["splits"][split]
        self.name = f"{info['name']} ({split})"
        self.class_names = tuple(info["class_names"])
        self.num_classes = len(self.class_names)
        self.resolution, self.channels = info["resolution"], info["channels"]
        self.preprocessing: str = info["preprocessing"]
        self.fingerprint: str = facts["fingerprint"]
        self._shape = (self.resolution, self.resolution, self.channels)
        self.factor_names = tuple(info["factor_names"])
        self.labels = _load_array(directory / f"labels-{split}.npy", facts["images"])
        self.factors = _load_array(directory / f"factors-{split}.npy", facts["images"]) if self.factor_names else None
        if split == "train":
            self.class_counts = count_classes(self.labels, self.num_classes)
        else:  # there may be no real images of a class to compare with
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
        self._local = threading.local()  # readers keep a position in their files

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> LabelledImages:
        """Image ``index``: ``{"image": uint8 [H, W, C], "label": int32 scalar}``."""
        batch = self.take(np.array([index]))
        return {"image": batch["image"][0], "label": batch["label"][0]}

    def take(self, indices: np.ndarray) -> LabelledImages:
        """Images ``indices``, integers ``[B]``: ``{"image": uint8 [B, H, W, C], "label": int32 [B]}``.

        Raises:
          OSError: the file cannot be read, or holds something else.
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
    """The splits of a prepared data set; without a reference split of its own, the training images are the reference.

    Args:
      name: of the data set, as it was prepared.
      resolution: pixels.
      directory: holds prepared data sets; a path, or the address of a bucket (gs://, s3://, …).
      cache: where shards of a bucket are kept on this machine.
      preprocessing: what the images must have gone through; empty for whatever they went through.

    Raises:
      UserError: it is not there, not whole, or was prepared otherwise.
    """
    info, place = load_info(name, resolution=resolution, directory=directory, cache=cache)
    if preprocessing and Preprocessing.parse(preprocessing).name != info["preprocessing"]:
        raise UserError(
            f"The images in {place} were prepared with {info['preprocessing']}, not with {preprocessing}, as "
            "config.data.preprocessing asks: numbers of the two cannot be compared; prepare them again, or change the field."
        )
    splits = {split: PreparedSource(place, info, split) for split in info["splits"]}
    train = splits["train"]
    reference = splits.get("reference", train)
    balanced = reference if reference.class_counts.min() > 0 else train  # reference sets are, if they have every class
    return DataSplits(train=train, reference=reference, classifier=splits.get("classifier", balanced))


def load_info(name: str, *, resolution: int, directory: str, cache: str = "") -> tuple[dict[str, Any], Path]:
    """What `INFO_FILE` of a data set says, and where its files are on this machine.

    Raises:
      UserError: it is not there or not whole; what to run is said.
    """
    config = f"{resolution}px"
    place = local_directory(f"{directory.rstrip('/')}/{name}/{config}/{VERSION}", INFO_FILE, cache)
    try:
        return json.loads((place / INFO_FILE).read_text()), place
    except FileNotFoundError:
        others = sorted(path.parents[1].name for path in place.parents[1].glob(f"*/{VERSION}/{INFO_FILE}"))
        there = f" (there: {', '.join(others)})" if others else ""
        raise UserError(
            f"There is no prepared data set {name} of {resolution} px in {directory}{there}; "
            f"{how_to_prepare(name, resolution, directory)}"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{place / INFO_FILE} cannot be read ({error}); prepare the data again.") from None


def how_to_prepare(name: str, resolution: int, directory: str) -> str:
    """The end of a message: the command that makes a data set of this name."""
    kind = name if name in KNOWN_CLASSES else f"image_folder --name={name}"
    source = "" if name == "petals" else " --source=..."
    command = f"python -m noisytwins_jax.data.prepare {kind}{source} --data_dir={directory} --resolution={resolution}"
    return f"prepare it with: {command}"


def split_fingerprint(shape: Sequence[int], labels: np.ndarray, hashes: Sequence[str]) -> str:
    """Hexadecimal SHA-256 of a split: its shape, every image's hash and the labels, whatever the shards."""
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
