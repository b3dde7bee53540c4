"""Features of generated images of every class, and the scores of each class, extracted in resumable parts."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from noisytwins_jax.data.source import ImageSource
from noisytwins_jax.evaluation.scores import class_scores
from noisytwins_jax.metrics.factors.reader import FactorReader
from noisytwins_jax.metrics.features import Embedder, Fakes
from noisytwins_jax.metrics.protocols import CLASSIFIER
from noisytwins_jax.metrics.resumable_chunks import resumable_chunks
from noisytwins_jax.metrics.settings import Counts, Settings
from noisytwins_jax.utils.multihost import distributed_map, raise_on_all_processes
from noisytwins_jax.utils.progress_bar import images_bar

_PART = 4096  # generated images of a part
_MAX_UNDIVIDED = 16384  # images of a class; only larger classes are divided among parts


@dataclasses.dataclass
class GeneratedFeatures:
    """Scores by class, and features of the pooled generated images; on the primary process only."""

    rows: list[dict[str, Any]]  # scores of each class, from all of its images
    labels: np.ndarray
    features: dict[str, np.ndarray]
    logits: np.ndarray  # the headline extractor's
    w: np.ndarray
    factors: list[np.ndarray]  # outputs of the factor reader


class Piece(NamedTuple):
    """Some of the images of one class."""

    label: int
    start: int  # number of the first, within the class
    stop: int
    whole: bool  # whether these are all images of the class


def extract_generated_features(
    fakes: Fakes,
    embedder: Embedder,
    size: tuple[int, int, int],
    reference: ImageSource,
    real: Mapping[str, np.ndarray],
    counts: Counts,
    settings: Settings,
    kinds: Sequence[str],
    reader: FactorReader | None = None,
    folder: Path | None = None,
    classwise: bool = True,
    between: Callable[[], None] | None = None,
) -> GeneratedFeatures:
    """Generate all images and extract their features, part by part; finished parts are stored in `folder`.

    Args:
      fakes: source of the generated images.
      embedder: with the extractors, the headline's first.
      size: of the images: height, width and channels.
      reference: the real images, of the same classes.
      real: features of the real images by kind, on the primary process.
      counts: numbers of images of each class.
      settings: of the evaluation.
      kinds: extractors whose features are compared, the headline's first.
      reader: also applied to the images, where true factors are known.
      folder: for finished parts; None to store none.
      classwise: whether to compute scores of each class, from all images; otherwise only pooled images are generated.
      between: called by all processes after each part.
    """
    primary = jax.process_index() == 0
    each = counts.each if classwise else counts.pooled
    parts = split_into_parts(each)
    rows_of_class = [np.flatnonzero(np.asarray(reference.labels) == c) for c in range(reference.num_classes)]

    def score_class(label: int, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Compute the scores of a class from the arrays of all of its images."""
        fake = {kind: arrays[f"features/{kind}"] for kind in kinds}
        real_of_class = {kind: x[rows_of_class[label]] for kind, x in real.items()}
        scores = class_scores(real_of_class, fake, kinds[0], settings.k, settings.protocol.inclusive)
        predictions = arrays.get("predictions")
        accuracy = None if predictions is None or not len(predictions) else float((predictions == label).mean())
        return scores | {"n_fake": len(fake[kinds[0]]), "class_accuracy": accuracy}

    def extract(labels: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Extract all arrays of some images, on every process."""
        names: list[str] = []

        def embed(rows: np.ndarray) -> tuple[np.ndarray, ...]:
            embedded, w, images = embedder.embed_fakes(fakes, labels[rows], indices[rows], size, reader is not None)
            arrays = {f"features/{kind}": embedded[kind].features for kind in kinds}
            arrays |= {"logits": embedded[kinds[0]].logits, "w": w}
            if CLASSIFIER in embedded:
                arrays["predictions"] = embedded[CLASSIFIER].logits.argmax(axis=1)
            if reader is not None:
                arrays |= {f"read/{number}": x for number, x in enumerate(reader(images))}
            names[:] = arrays
            return tuple(arrays.values())

        arrays = distributed_map(embed, len(labels))
        return dict(zip(names, arrays, strict=True)) | {"labels": labels}

    def compute(number: int) -> dict[str, np.ndarray]:
        pieces = parts[number]
        labels = np.concatenate([np.full(piece.stop - piece.start, piece.label, np.int32) for piece in pieces])
        within = np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces])
        arrays = extract(labels, counts.start[labels] + within)
        bar.update(len(labels))
        if not primary:
            return {}
        pooled = within < counts.pooled[labels]
        if not pieces[0].whole:  # the scores of a divided class need the images of all of its parts
            return arrays | {"pooled": pooled}
        rows = []
        for piece in pieces if classwise else ():
            of_class = labels == piece.label
            rows.append(score_class(piece.label, {name: x[of_class] for name, x in arrays.items()}))
        return {name: x[pooled] for name, x in arrays.items()} | {"rows": np.array(json.dumps(rows))}

    def compute_on_all(number: int) -> dict[str, np.ndarray]:
        with raise_on_all_processes():
            return compute(number)

    with images_bar("Generated images", int(each.sum())) as bar:
        arrays_of_parts = []
        for number, part in enumerate(resumable_chunks(folder, len(parts), compute_on_all, between)):
            done = sum(piece.stop - piece.start for pieces in parts[: number + 1] for piece in pieces)
            bar.update(max(0, done - bar.n))  # for parts that were read
            arrays_of_parts.append(part)
    with raise_on_all_processes():
        return (
            _join(arrays_of_parts, parts, each, kinds, score_class if classwise else None)
            if primary
            else _empty_features(kinds)
        )


def split_into_parts(each: np.ndarray) -> list[list[Piece]]:
    """Split the images of all classes into parts of about `_PART` images; only very large classes are divided."""
    parts: list[list[Piece]] = []
    filled = _PART  # images of the last part
    for label, count in enumerate(map(int, each)):
        if not count:
            continue
        if count > _MAX_UNDIVIDED:
            parts += [[Piece(label, i, min(i + _PART, count), False)] for i in range(0, count, _PART)]
            filled = _PART
            continue
        if filled >= _PART:
            parts.append([])
            filled = 0
        parts[-1].append(Piece(label, 0, count, True))
        filled += count
    return parts


def _join(
    arrays_of_parts: list[dict[str, np.ndarray]],
    parts: list[list[Piece]],
    each: np.ndarray,
    kinds: Sequence[str],
    score_class: Callable[[int, Mapping[str, np.ndarray]], dict[str, Any]] | None,
) -> GeneratedFeatures:
    rows: dict[int, dict[str, Any]] = {}
    pooled_parts: list[dict[str, np.ndarray]] = []
    divided_class: list[dict[str, np.ndarray]] = []
    for part, pieces in zip(arrays_of_parts, parts, strict=True):
        if pieces[0].whole:
            stored = json.loads(str(part["rows"]))  # empty unless classwise
            rows |= dict(zip((piece.label for piece in pieces), stored, strict=False))
            pooled_parts.append(part)
            continue
        pooled = part["pooled"]
        pooled_parts.append({name: x[pooled] for name, x in part.items()})
        divided_class.append(part)
        if pieces[0].stop == each[pieces[0].label]:
            if score_class is not None:
                names = [name for name in part if name != "pooled"]
                arrays = {name: np.concatenate([one[name] for one in divided_class]) for name in names}
                rows[pieces[0].label] = score_class(pieces[0].label, arrays)
            divided_class = []
    names = [name for name in pooled_parts[0] if name not in ("rows", "pooled")]
    joined = {name: np.concatenate([part[name] for part in pooled_parts]) for name in names}
    if score_class is not None:
        empty = {name: x[:0] for name, x in joined.items()}
        rows |= {int(label): score_class(int(label), empty) for label in np.flatnonzero(each == 0)}
    return GeneratedFeatures(
        rows=[rows[label] for label in sorted(rows)],
        labels=joined["labels"],
        features={kind: joined[f"features/{kind}"] for kind in kinds},
        logits=joined["logits"],
        w=joined["w"],
        factors=[joined[f"read/{number}"] for number in range(sum(name.startswith("read/") for name in joined))],
    )


def _empty_features(kinds: Sequence[str]) -> GeneratedFeatures:
    empty = np.zeros((0, 0), np.float32)
    return GeneratedFeatures([], np.zeros(0, np.int32), dict.fromkeys(kinds, empty), empty, empty, [])
