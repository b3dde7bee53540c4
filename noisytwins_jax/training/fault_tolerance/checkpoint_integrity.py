"""Checks that a checkpoint's files are as they were written, and its tensors those of this configuration."""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import jax

from noisytwins_jax.training.fault_tolerance.nan_guard import leaf_name
from noisytwins_jax.utils.errors import UserError, first_line
from noisytwins_jax.utils.retry import retry

PyTree = Any
FILES = "files.json"  # in every checkpoint: size and CRC-32 of each of its files


def write_digests(checkpoint: Path) -> None:
    """Write size and CRC-32 of a checkpoint's files, for `find_corruption` to compare.

    Raises:
      OSError: storage failed, also when tried again.
    """
    path = checkpoint / FILES
    retry(lambda: path.write_text(json.dumps(_digests(checkpoint))), f"Writing {path}")


def find_corruption(checkpoint: Path) -> str | None:
    """Describe the first file that is missing or has changed; None if there is none, or no `FILES` to compare with."""
    try:
        written = json.loads((checkpoint / FILES).read_text())
    except (OSError, ValueError):
        return None  # Orbax's own checks must do
    try:
        present = retry(lambda: _digests(checkpoint), f"Reading {checkpoint}")
    except OSError as error:
        return f"it cannot be read: {first_line(error)}"
    for name, digest in written.items():
        if present.get(name) != digest:
            return f"{name} {'has changed since it was written' if name in present else 'is missing'}"
    return None


def check_architecture(saved: PyTree, wanted: PyTree, path: Path) -> None:
    """Check that two states have the same parameters, by name and shape.

    Args:
      saved: tree of the checkpoint; leaves have a shape.
      wanted: tree of this configuration's state.
      path: the checkpoint.

    Raises:
      UserError: they differ; names the first parameter that does.
    """

    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        leaves = {leaf_name(key): leaf for key, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
        return {
            name: tuple(leaf.shape) for name, leaf in leaves.items() if "params/" in name and hasattr(leaf, "shape")
        }

    ours, theirs = shapes(wanted), shapes(saved)
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"The checkpoint {path} is of another architecture: {name} has shape {theirs.get(name, 'absent')} there "
            f"and {ours.get(name, 'absent')} in this configuration ({len(different)} such tensors); give the "
            "configuration it was trained with, or another --workdir."
        )

    known = {field.name for field in dataclasses.fields(wanted)} if dataclasses.is_dataclass(wanted) else saved.keys()
    if unknown := sorted(saved.keys() - known):
        raise UserError(
            f"The checkpoint {path} is of an earlier version, whose state has {', '.join(unknown)}: it can be sampled, "
            "evaluated and converted to JAX, but not trained on; give another --workdir to train."
        )


def _digests(checkpoint: Path) -> dict[str, list[int]]:
    """Compute size and CRC-32 of every file of a checkpoint's items (state, meta), by relative path."""
    digests = {}
    for path in sorted(p for p in checkpoint.glob("*/**/*") if p.is_file()):
        crc, size = 0, 0
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                crc, size = zlib.crc32(chunk, crc), size + len(chunk)
        digests[path.relative_to(checkpoint).as_posix()] = [size, crc]
    return digests
