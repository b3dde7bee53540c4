"""From shards to a data set: duplicates, names, TFDS's metadata, statistics; and the directory that makes it whole."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from noisytwins_jax.data.long_tail import class_groups, count_classes
from noisytwins_jax.data.prepare.listing import Listing, Problems
from noisytwins_jax.data.prepare.shards import Format, Shard, ShardMetadata, read_metadata
from noisytwins_jax.data.prepared import INFO_FILE, VERSION, split_fingerprint
from noisytwins_jax.utils.errors import UserError

FILE_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def collect_problems(listing: Listing, shards: Sequence[Shard]) -> Problems:
    """Everything that was wrong or converted, in the listing and in the shards."""
    problems = Problems()
    problems.merge(listing.problems)
    for shard in shards:
        notes = _notes(shard)
        for kind, things in notes.wrong.items():
            for thing in things:
                problems.add(kind, thing)
        for kind, count in notes.converted.items():
            problems.convert(kind, count)
    return problems


def find_duplicates(shards: Sequence[Shard]) -> dict[str, str]:
    """Training images with the very pixels of a reference image: the name of the one by the name of the other."""
    reference, train = {}, {}
    for shard in shards:
        notes = _notes(shard)
        if shard.split == "reference":
            reference |= dict(zip(notes.hashes, notes.names, strict=True))
        elif shard.split == "train":
            train |= dict(zip(notes.names, notes.hashes, strict=True))
    return {name: reference[pixels] for name, pixels in train.items() if pixels in reference}


def collect_splits(listing: Listing, shards: Sequence[Shard], format: Format) -> dict[str, Any]:
    """What the shards of every split hold together: that part of `INFO_FILE`.

    Raises:
      UserError: there are classes without training images, or no images in a split.
    """
    splits: dict[str, Any] = {}
    for split in listing.splits:
        notes = [(shard, _notes(shard)) for shard in shards if shard.split == split]
        labels = np.array([label for _, entry in notes for label in entry.labels], np.int32)
        if not len(labels):
            raise UserError(f"There is no usable {split} image at all; mend the images, or give a source without them.")
        counts = np.bincount(labels, minlength=len(listing.class_names))
        if split == "train":
            counts = count_classes(labels, len(listing.class_names))
        hashes = [pixels for _, entry in notes for pixels in entry.hashes]
        splits[split] = {
            "images": len(labels),
            "fingerprint": split_fingerprint(format.shape, labels, hashes),
            "class_counts": [int(count) for count in counts],
            "shards": [
                {"file": shard.path.name, "images": len(entry.labels), "bytes": entry.size, "sha256": entry.sha256}
                for shard, entry in notes
            ],
        }
    return splits


def write_data_set(
    directory: Path,
    listing: Listing,
    shards: Sequence[Shard],
    splits: Mapping[str, Any],
    problems: Problems,
    format: Format,
    name: str,
    options: Mapping[str, Any],
    thresholds: tuple[int, int],
) -> dict[str, Any]:
    """Writes everything but the shards into `directory`, `INFO_FILE` last; returns what that says."""
    files = []
    for split in splits:
        notes = [_notes(shard) for shard in shards if shard.split == split]
        np.save(directory / f"labels-{split}.npy", np.array([n for e in notes for n in e.labels], np.int32))
        files.append(f"labels-{split}.npy")
        if listing.factor_names:
            factors = np.array([row for entry in notes for row in entry.factors], np.float32)
            np.save(directory / f"factors-{split}.npy", factors)
            files.append(f"factors-{split}.npy")
    _write_tfds_metadata(directory, listing, splits, format, name)
    counts = splits["train"]["class_counts"]
    groups = {group: [int(c) for c in ids] for group, ids in class_groups(counts, thresholds).items()}
    info = {
        "name": name,
        "version": VERSION,
        "description": listing.description,
        "resolution": format.resolution,
        "channels": format.channels,
        "preprocessing": format.preprocessing.name,
        "pillow": PIL.__version__,
        "options": dict(options),
        "class_names": list(listing.class_names),
        "factor_names": list(listing.factor_names),
        "imbalance_factor": min(counts) / max(counts),
        "group_thresholds": list(thresholds),
        "group_sizes": {group: len(ids) for group, ids in groups.items()},
        "converted": dict(problems.converted),
        "left_out": {kind: len(things) for kind, things in problems.wrong.items()},
        "files": [{"file": file, "bytes": (directory / file).stat().st_size} for file in files],
        "splits": dict(splits),
    }
    (directory / INFO_FILE).write_text(json.dumps(info, indent=1) + "\n")
    return info


def _notes(shard: Shard) -> ShardMetadata:
    notes = read_metadata(shard)
    if notes is None:
        raise UserError(f"{shard.path} is gone or has changed; run the same command to go on.")
    return notes


def _write_tfds_metadata(
    directory: Path, listing: Listing, splits: Mapping[str, Any], format: Format, name: str
) -> None:
    """``dataset_info.json``, ``features.json`` and the class names, as TFDS writes them."""
    import tensorflow_datasets as tfds  # only here: it takes a second, and needs no TensorFlow

    features: dict[str, Any] = {
        "image": tfds.features.Tensor(shape=format.shape, dtype=np.uint8, encoding="bytes"),
        "label": tfds.features.ClassLabel(names=_unique(listing.class_names)),
        "id": tfds.features.Text(),
    }
    if listing.factor_names:
        features["factors"] = tfds.features.Tensor(shape=(len(listing.factor_names),), dtype=np.float32)
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard["images"] for shard in facts["shards"]],
            num_bytes=sum(shard["bytes"] for shard in facts["shards"]),
            filename_template=tfds.core.ShardedFileTemplate(
                dataset_name=name,
                data_dir=directory,
                split=split,
                filetype_suffix="array_record",
                template=FILE_TEMPLATE,
            ),
        )
        for split, facts in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=tfds.features.FeaturesDict(features),
        split_infos=infos,
        version=VERSION,
        description=listing.description,
        homepage=listing.homepage,
        citation=listing.citation,
        supervised_keys=("image", "label"),
        filename_template=FILE_TEMPLATE,
        check_data=False,  # that reads a record with TensorFlow
    )


def _unique(names: Sequence[str]) -> list[str]:
    """Class names as TFDS takes them: no two the same."""
    seen: set[str] = set()
    unique = []
    for label, name in enumerate(names):
        while name in seen:
            name = f"{name} ({label})"
        unique.append(name)
        seen.add(name)
    return unique
