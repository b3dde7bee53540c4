"""Features of real images, computed once for each extractor and cached beside the runs."""

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

_PART = 4096  # images of a cached part
_READ_BATCH = 256
_EXTRACTORS = ("base", "classifier", "clip", "dinov2", "file_extractor", "inception", "resize", "vit")
_CODE = ("features.py", "real_features.py", *(f"extractors/{name}.py" for name in _EXTRACTORS))  # sets the features


class RealFeatures(NamedTuple):
    """Features, logits and digests of the images of a source."""

    features: np.ndarray  # float32 [n, d]
    logits: np.ndarray  # float32 [n, k], k = 0 where there are none
    digests: np.ndarray  # uint8 [n, 16]; equal for equal images


def real_features(
    source: ImageSource,
    extractor: FeatureExtractor,
    cache: Path | None = None,
    per_device_batch: int = 64,
    prefetch: int = 2,
    logits: bool = True,
) -> RealFeatures:
    """Compute features, logits and digests of all images of `source`; the primary process has them, the others have none.

    Cached parts are named after the content of the images, the weights, the preprocessing, `per_device_batch`, the kind
    of device and the code; a killed computation resumes with the next part.

    Args:
      source: the images.
      extractor: the network.
      cache: folder beside the runs; None to store nothing.
      per_device_batch: images per device and call, see `Embedder`.
      prefetch: batches in flight at once.
      logits: whether to return them; otherwise k = 0.
    """
    parts = [np.arange(start, min(start + _PART, len(source))) for start in range(0, len(source), _PART)]
    folder = None if cache is None else cache / "features" / _name(source, extractor, per_device_batch, logits)
    embedders: list[Embedder] = []  # one, as soon as a part is missing
    primary = jax.process_index() == 0
    with images_bar(f"Real images, {extractor.name}", len(source)) as bar:

        def embed(chosen: np.ndarray) -> tuple[np.ndarray, ...]:
            batches = []
            for images in _read_batches(source, chosen):
                features, scores = embedders[0].embed_images(images)[""]
                digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
                digests = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
                batches.append((features, scores if logits else scores[:, :0], digests))
                bar.update(len(images) * jax.process_count())
            return tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True))

        def compute(number: int) -> dict[str, np.ndarray]:
            if not embedders:
                embedders.append(Embedder({"": extractor}, per_device_batch, prefetch))
            part = parts[number]
            arrays = distributed_map(lambda chosen: embed(part[chosen]), len(part))
            return dict(zip(RealFeatures._fields, arrays, strict=True)) if primary else {}

        chunks = list(resumable_chunks(folder, len(parts), compute))
    if not primary:
        return RealFeatures(np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32), np.zeros((0, 16), np.uint8))
    return RealFeatures(*(np.concatenate([part[name] for part in chunks]) for name in RealFeatures._fields))


def _read_batches(source: ImageSource, indices: np.ndarray) -> Iterator[np.ndarray]:
    """Yield batches of images in order; the next ones are read while the caller uses them."""
    batches = [indices[start : start + _READ_BATCH] for start in range(0, len(indices), _READ_BATCH)]
    images = grain.MapDataset.source(batches).map(lambda batch: read_images(source, batch)["image"])
    return iter(images.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))


def _name(source: ImageSource, extractor: FeatureExtractor, per_device_batch: int, logits: bool) -> str:
    facts = [source.fingerprint, extractor.sha256, extractor.description, per_device_batch, logits]
    facts += [jax.devices()[0].device_kind, jax.__version__]
    facts += [Path(__file__).parent.joinpath(file).read_text() for file in _CODE]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return f"{extractor.name}-{digest[:16]}"
