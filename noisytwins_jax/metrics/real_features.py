"""Features of real images, computed once for each extractor and kept beside the runs."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import numpy as np

from noisytwins_jax.data.source import ImageSource, read_images
from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.metrics.features import Embedder
from noisytwins_jax.metrics.resumable_chunks import resumable_chunks
from noisytwins_jax.utils.multihost import distributed_map
from noisytwins_jax.utils.progress_bar import images_bar

_PART = 4096  # images between two savings
_AT_ONCE = 256  # images that are read together
_EXTRACTORS = ("base", "classifier", "clip", "dinov2", "inception", "resize", "vit")
_CODE = ("features.py", "real_features.py", *(f"extractors/{name}.py" for name in _EXTRACTORS))  # sets the features


class RealFeatures(NamedTuple):
    """What an extractor says of the images of a source."""

    features: np.ndarray  # float32 [n, d]
    logits: np.ndarray  # float32 [n, k], k = 0 where there are none
    digests: np.ndarray  # uint8 [n, 16]: equal images have equal ones


def real_features(
    source: ImageSource,
    extractor: FeatureExtractor,
    cache: Path | None = None,
    per_device_batch: int = 64,
    prefetch: int = 2,
    logits: bool = True,
) -> RealFeatures:
    """Features, logits and digests of all images of `source`, on the first process; empty ones on the others.

    What is kept is named after the content of the images, the weights, the preprocessing, `per_device_batch`, the kind of device and
    the code; a killed computation goes on with the next part.

    Args:
      source: the images.
      extractor: the network.
      cache: folder beside the runs; None to keep nothing.
      per_device_batch: images per device and call, see `Embedder`.
      prefetch: batches in flight at once.
      logits: whether they are wanted too.
    """
    parts = [np.arange(start, min(start + _PART, len(source))) for start in range(0, len(source), _PART)]
    folder = None if cache is None else cache / "features" / _name(source, extractor, per_device_batch, logits)
    embedders: list[Embedder] = []  # one, once there is something to do
    first = jax.process_index() == 0
    with images_bar(f"Real images, {extractor.name}", len(source)) as bar:

        def embed(chosen: np.ndarray) -> tuple[np.ndarray, ...]:
            seen = []
            for images in _read_ahead(source, chosen):
                features, scores = embedders[0].of_images(images)[""]
                digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
                digests = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
                seen.append((features, scores if logits else scores[:, :0], digests))
                bar.update(len(images) * jax.process_count())
            return tuple(np.concatenate(arrays) for arrays in zip(*seen, strict=True))

        def compute(number: int) -> dict[str, np.ndarray]:
            if not embedders:
                embedders.append(Embedder({"": extractor}, per_device_batch, prefetch))
            part = parts[number]
            arrays = distributed_map(lambda chosen: embed(part[chosen]), len(part))
            return dict(zip(RealFeatures._fields, arrays, strict=True)) if first else {}

        found = list(resumable_chunks(folder, len(parts), compute))
    if not first:
        return RealFeatures(np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32), np.zeros((0, 16), np.uint8))
    return RealFeatures(*(np.concatenate([part[name] for part in found]) for name in RealFeatures._fields))


def _read_ahead(source: ImageSource, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Images in order, some at a time; the next are read while these are looked at."""
    some = [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
    images = grain.MapDataset.source(some).map(lambda part: read_images(source, part)["image"])
    return iter(images.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))


def _name(source: ImageSource, extractor: FeatureExtractor, per_device_batch: int, logits: bool) -> str:
    facts = [source.fingerprint, extractor.sha256, extractor.description, per_device_batch, logits]
    facts += [jax.devices()[0].device_kind, jax.__version__]
    facts += [Path(__file__).parent.joinpath(file).read_text() for file in _CODE]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return f"{extractor.name}-{digest[:16]}"
