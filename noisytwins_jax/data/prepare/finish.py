"""From complete shards to a data set: problems, duplicates, labels and metadata."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from noisytwins_jax.data.aspect import shared_aspect
from noisytwins_jax.data.long_tail import class_groups, count_classes
from noisytwins_jax.data.prepare.listing import Listing, Problems
from noisytwins_jax.data.prepare.shards import Format, Shard, ShardMetadata, read_metadata
from noisytwins_jax.data.prepared import INFO_FILE, VERSION, split_fingerprint
from noisytwins_jax.utils.errors import UserError

FILE_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def collect_problems(listing: Listing, shards: Sequence[Shard]) -> Problems:
    """Collect all errors and conversions of the listing and of its shards."""
    problems = Problems()
    problems.merge(listing.problems)
    for shard in shards:
        metadata = _metadata(shard)
        problems.merge(Problems(metadata.wrong, Counter(metadata.converted)))
    return problems


def find_duplicates(shards: Sequence[Shard]) -> dict[str, str]:
    """Find training images with the pixels of a reference image: ``{training name: reference name}``."""
    reference, train = {}, {}
    for shard in shards:
        metadata = _metadata(shard)
        if shard.split == "reference":
            reference |= dict(zip(metadata.hashes, metadata.names, strict=True))
        elif shard.split == "train":
            train |= dict(zip(metadata.names, metadata.hashes, strict=True))
    return {name: reference[pixels] for name, pixels in train.items() if pixels in reference}


def collect_splits(listing: Listing, shards: Sequence[Shard], format: Format) -> dict[str, Any]:
    """Collect the entry ``splits`` of `INFO_FILE` from the shards.

    Raises:
      UserError: a class has no training images, or a split no images.
    """
    splits: dict[str, Any] = {}
    for split in listing.splits:
        entries = [(shard, _metadata(shard)) for shard in shards if shard.split == split]
        labels = np.array([label for _, entry in entries for label in entry.labels], np.int32)
        if not len(labels):
            raise UserError(f"There is no usable {split} image at all; fix the images, or give a source without them.")
        counts = np.bincount(labels, minlength=len(listing.class_names))
        if split == "train":
            counts = count_classes(labels, len(listing.class_names))
        hashes = [pixels for _, entry in entries for pixels in entry.hashes]
        splits[split] = {
            "images": len(labels),
            "fingerprint": split_fingerprint(format.shape, labels, hashes),
            "class_counts": [int(count) for count in counts],
            "shards": [
                {"file": shard.path.name, "images": len(entry.labels), "bytes": entry.size, "sha256": entry.sha256}
                for shard, entry in entries
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
    """Write all files but the shards into `directory`, `INFO_FILE` last; return the content of `INFO_FILE`."""
    files = []
    for split in splits:
        entries = [_metadata(shard) for shard in shards if shard.split == split]
        np.save(directory / f"labels-{split}.npy", np.array([n for e in entries for n in e.labels], np.int32))
        files.append(f"labels-{split}.npy")
        if listing.factor_names:
            factors = np.array([row for entry in entries for row in entry.factors], np.float32)
            np.save(directory / f"factors-{split}.npy", factors)
            files.append(f"factors-{split}.npy")
    _write_tfds_metadata(directory, listing, splits, format, name)
    counts = splits["train"]["class_counts"]
    sizes = [size for shard in shards if shard.split == "train" for size in _metadata(shard).picture_sizes]
    aspect = shared_aspect(sizes, format.preprocessing.crop)
    groups = {group: [int(c) for c in ids] for group, ids in class_groups(counts, thresholds).items()}
    info = {
        "name": name,
        "version": VERSION,
        "description": listing.description,
        "resolution": format.resolution,
        "channels": format.channels,
        "preprocessing": format.preprocessing.name,
        "aspect": aspect and aspect._asdict(),
        "pillow": PIL.__version__,
        "options": dict(options),
        "class_names": list(listing.class_names),
        "factor_names": list(listing.factor_names),
        "few_classes": list(listing.few_classes),
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


def _metadata(shard: Shard) -> ShardMetadata:
    metadata = read_metadata(shard)
    if metadata is None:
        raise UserError(f"{shard.path} is gone or has changed; run the same command to resume.")
    return metadata


def _write_tfds_metadata(
    directory: Path, listing: Listing, splits: Mapping[str, Any], format: Format, name: str
) -> None:
    """Write ``dataset_info.json``, ``features.json`` and the class names with TFDS."""
    import tensorflow_datasets as tfds  # takes a second to import, and needs no TensorFlow

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
        check_data=False,  # the check reads a record with TensorFlow
    )


def _unique(names: Sequence[str]) -> list[str]:
    """Make class names unique, as TFDS requires."""
    seen: set[str] = set()
    unique = []
    for label, name in enumerate(names):
        while name in seen:
            name = f"{name} ({label})"
        unique.append(name)
        seen.add(name)
    return unique
