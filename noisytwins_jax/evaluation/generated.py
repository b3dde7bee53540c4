"""Generated images of every class, part by part: what the extractors see in them, and the scores of each class."""

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

_PART = 4096  # generated images between two savings
_WHOLE = 16384  # images of a class that are never divided among parts


@dataclasses.dataclass
class Generated:
    """What was seen in generated images; arrays are of the pooled ones, on the first process only."""

    rows: list[dict[str, Any]]  # of each class: its scores, from all images of the class
    labels: np.ndarray
    features: dict[str, np.ndarray]
    logits: np.ndarray  # the headline extractor's
    w: np.ndarray
    read: list[np.ndarray]  # by the reader of factors


class Piece(NamedTuple):
    """Some of the images of one class."""

    label: int
    start: int  # number of the first, within the class
    stop: int
    whole: bool  # whether these are all


def generate(
    fakes: Fakes,
    embedder: Embedder,
    reference: ImageSource,
    real: Mapping[str, np.ndarray],
    counts: Counts,
    settings: Settings,
    kinds: Sequence[str],
    reader: FactorReader | None = None,
    folder: Path | None = None,
    classwise: bool = True,
    between: Callable[[], None] | None = None,
) -> Generated:
    """Generates all images and sees what there is to see in them, part by part; finished parts are kept in `folder`.

    Args:
      fakes: makes the images.
      embedder: of the extractors, the headline's first.
      reference: the real images, of the same classes.
      real: features of the real images by kind, on the first process.
      counts: how many of each class.
      settings: the protocol.
      kinds: kinds of extractors whose features are compared.
      reader: looks at the pooled images too.
      folder: for finished parts.
      classwise: whether every class is compared by itself, which takes all images; otherwise only the pooled are made.
      between: called by all processes after each part.
    """
    first = jax.process_index() == 0
    each = counts.each if classwise else counts.pooled
    size = fakes.image_size or (reference.resolution, reference.resolution, reference.channels)
    parts = divide(each)
    of_class = [np.flatnonzero(np.asarray(reference.labels) == c) for c in range(reference.num_classes)]

    def scores(label: int, seen: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Of a class, from all of its images."""
        fake = {kind: seen[f"features/{kind}"] for kind in kinds}
        mine = {kind: x[of_class[label]] for kind, x in real.items()}
        found = class_scores(mine, fake, kinds[0], settings.k, settings.protocol.inclusive)
        guesses = seen.get("guesses")
        known = guesses is not None and len(guesses)
        return found | {
            "n_fake": len(fake[kinds[0]]),
            "class_accuracy": float((guesses == label).mean()) if known else None,
        }

    def look(labels: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Everything that is seen in some images, on every process."""
        names: list[str] = []

        def see(rows: np.ndarray) -> tuple[np.ndarray, ...]:
            seen, w, images = embedder.embed_fakes(fakes, labels[rows], indices[rows], size, reader is not None)
            arrays = {f"features/{kind}": seen[kind].features for kind in kinds}
            arrays |= {"logits": seen[kinds[0]].logits, "w": w}
            if CLASSIFIER in seen:
                arrays["guesses"] = seen[CLASSIFIER].logits.argmax(axis=1)
            if reader is not None:
                arrays |= {f"read/{number}": x for number, x in enumerate(reader(images))}
            names[:] = arrays
            return tuple(arrays.values())

        arrays = distributed_map(see, len(labels))
        return dict(zip(names, arrays, strict=True)) | {"labels": labels}

    def compute(number: int) -> dict[str, np.ndarray]:
        pieces = parts[number]
        labels = np.concatenate([np.full(piece.stop - piece.start, piece.label, np.int32) for piece in pieces])
        within = np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces])
        seen = look(labels, counts.start[labels] + within)
        bar.update(len(labels))
        if not first:
            return {}
        kept = within < counts.pooled[labels]
        if not pieces[0].whole:  # of a class that goes on in other parts: its scores need everything
            return seen | {"pooled": kept}
        rows = []
        for piece in pieces if classwise else ():
            mine = labels == piece.label
            rows.append(scores(piece.label, {name: x[mine] for name, x in seen.items()}))
        return {name: x[kept] for name, x in seen.items()} | {"rows": np.array(json.dumps(rows))}

    def compute_together(number: int) -> dict[str, np.ndarray]:
        with raise_on_all_processes():
            return compute(number)

    with images_bar("Generated images", int(each.sum())) as bar:
        found = []
        for number, part in enumerate(resumable_chunks(folder, len(parts), compute_together, between)):
            done = sum(piece.stop - piece.start for pieces in parts[: number + 1] for piece in pieces)
            bar.update(max(0, done - bar.n))  # parts that were read
            found.append(part)
    with raise_on_all_processes():
        return _join(found, parts, each, kinds, scores if classwise else None) if first else _nothing(kinds)


def divide(each: np.ndarray) -> list[list[Piece]]:
    """Classes one after another in parts of about `_PART` images; only very large ones are divided."""
    parts: list[list[Piece]] = []
    filled = _PART
    for label, count in enumerate(map(int, each)):
        if not count:
            continue
        if count > _WHOLE:
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
    found: list[dict[str, np.ndarray]],
    parts: list[list[Piece]],
    each: np.ndarray,
    kinds: Sequence[str],
    scores: Callable[[int, Mapping[str, np.ndarray]], dict[str, Any]] | None,
) -> Generated:
    rows: dict[int, dict[str, Any]] = {}
    kept: list[dict[str, np.ndarray]] = []
    open_class: list[dict[str, np.ndarray]] = []
    for part, pieces in zip(found, parts, strict=True):
        if pieces[0].whole:
            known = json.loads(str(part["rows"]))
            rows |= dict(zip((piece.label for piece in pieces), known, strict=False))  # none, if not asked for
            kept.append(part)
            continue
        pooled = part["pooled"]
        kept.append({name: x[pooled] for name, x in part.items()})
        open_class.append(part)
        if pieces[0].stop == each[pieces[0].label]:
            if scores is not None:
                names = [name for name in part if name != "pooled"]
                seen = {name: np.concatenate([one[name] for one in open_class]) for name in names}
                rows[pieces[0].label] = scores(pieces[0].label, seen)
            open_class = []
    joined = {name: np.concatenate([part[name] for part in kept]) for name in kept[0] if name not in ("rows", "pooled")}
    if scores is not None:
        none = {name: x[:0] for name, x in joined.items()}
        rows |= {int(label): scores(int(label), none) for label in np.flatnonzero(each == 0)}
    return Generated(
        rows=[rows[label] for label in sorted(rows)],
        labels=joined["labels"],
        features={kind: joined[f"features/{kind}"] for kind in kinds},
        logits=joined["logits"],
        w=joined["w"],
        read=[joined[f"read/{number}"] for number in range(sum(name.startswith("read/") for name in joined))],
    )


def _nothing(kinds: Sequence[str]) -> Generated:
    empty = np.zeros((0, 0), np.float32)
    return Generated([], np.zeros(0, np.int32), dict.fromkeys(kinds, empty), empty, empty, [])
