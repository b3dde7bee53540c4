"""Cache files for the weights of small networks that are trained on the data set itself."""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from noisytwins_jax.utils.errors import UserError

Params = dict[str, Any]  # {layer: {name: array}}


def weights_sha256(params: Params) -> str:
    """Compute the hexadecimal SHA-256 of names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    for name, value in _flatten(params).items():
        digest.update(f"{name} {value.shape} {value.dtype.str}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def save_weights(path: Path, params: Params, description: Mapping[str, Any], what: str) -> None:
    """Write weights and their description atomically as one .npz, creating the folder if need be.

    Raises:
      UserError: the file cannot be written; the message begins with `what`, such as "The feature classifier".
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    record = json.dumps({"description": dict(description), "sha256": weights_sha256(params)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, record=np.array(record), **_flatten(params))
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{what} cannot be stored in {path.parent} ({error.strerror}): choose a cache folder that you can write to."
        ) from error


def load_weights(path: Path, expected: Mapping[str, Any]) -> tuple[Params, dict[str, Any]] | None:
    """Load weights and description; None if the file is missing or damaged, or its description is not as `expected`."""
    params: Params = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            record = json.loads(str(file["record"]))
            for entry in file.files:
                if entry != "record":
                    layer, name = entry.split("/")
                    params.setdefault(layer, {})[name] = file[entry]
        description = record["description"]
        if weights_sha256(params) != record["sha256"] or any(description.get(k) != v for k, v in expected.items()):
            return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return params, description


def _flatten(params: Params) -> dict[str, np.ndarray]:
    """Return ``{"layer/name": array}`` in sorted order."""
    flat = {f"{layer}/{name}": np.asarray(value) for layer, leaves in params.items() for name, value in leaves.items()}
    return dict(sorted(flat.items()))
