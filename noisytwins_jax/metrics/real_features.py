"""Features of real images, computed once for each extractor and kept beside the runs."""

import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from noisytwins_jax.data.source import ImageSource, read_images
from noisytwins_jax.metrics.extractor import FeatureExtractor
from noisytwins_jax.metrics.features import Embedder, Features
from noisytwins_jax.metrics.parts import in_parts
from noisytwins_jax.together import shared_rows

_VERSION = 1  # of what is kept
_PART = 4096  # images
_AT_ONCE = 1024  # images in the host's memory


def real_features(
    source: ImageSource,
    extractor: FeatureExtractor,
    cache: Path | None = None,
    batch_size: int = 64,
    logits: bool = True,
) -> Features:
    """Features and logits of all images of `source`, on the first process; empty ones on the others.

    What is kept is named after the content of the images, the weights, the preprocessing, the kind of device and this
    function's version; a killed computation goes on with the next part.

    Args:
      source: the images.
      extractor: the network.
      cache: folder beside the runs; None to keep nothing.
      batch_size: images that each device takes at once.
      logits: whether they are wanted too.
    """
    embedder = Embedder({"": extractor}, batch_size)
    parts = [np.arange(start, min(start + _PART, len(source))) for start in range(0, len(source), _PART)]
    folder = None if cache is None else cache / "features" / _name(source, extractor, logits)
    with tqdm(
        total=len(source), desc=f"Real images, {extractor.name}", unit="img", delay=2, **_often(), disable=_silent()
    ) as bar:

        def embed(rows: np.ndarray) -> tuple[np.ndarray, ...]:
            seen = []
            for start in range(0, len(rows), _AT_ONCE):
                images = read_images(source, rows[start : start + _AT_ONCE])["image"]
                seen.append(embedder.of_images(images)[""][: 2 if logits else 1])
                bar.update(len(images) * jax.process_count())
            return tuple(np.concatenate(arrays) for arrays in zip(*seen, strict=True))

        def compute(number: int) -> dict[str, np.ndarray]:
            part = parts[number]
            arrays = shared_rows(lambda rows: embed(part[rows]), len(part))
            return dict(zip(("features", "logits"), arrays, strict=False))

        found = list(in_parts(folder, len(parts), compute))
    if jax.process_index() > 0:
        return Features(np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32))
    arrays = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    return Features(arrays["features"], arrays.get("logits", np.zeros((len(source), 0), np.float32)))


def _name(source: ImageSource, extractor: FeatureExtractor, logits: bool) -> str:
    facts = [source.fingerprint, extractor.sha256, extractor.description, jax.default_backend(), logits, _VERSION]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return f"{extractor.name}-{digest[:16]}"


def _silent() -> bool:
    return jax.process_index() > 0


def _often() -> dict[str, float]:
    """Where output is not a terminal, a bar is a line now and then."""
    return {"mininterval": 0.1, "dynamic_ncols": True} if sys.stderr.isatty() else {"mininterval": 30.0}
