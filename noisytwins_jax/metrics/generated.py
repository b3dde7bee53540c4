"""Generated images of every class, part by part: what the extractors see in them, and the scores of each class."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from noisytwins_jax.data.source import ImageSource
from noisytwins_jax.metrics.factor_reader import FactorReader
from noisytwins_jax.metrics.features import Embedder, Fakes
from noisytwins_jax.metrics.parts import in_parts
from noisytwins_jax.metrics.protocols import CLASSIFIER
from noisytwins_jax.metrics.scores import class_scores
from noisytwins_jax.metrics.settings import Counts, Settings
from noisytwins_jax.survival.agreement import failing_together
from noisytwins_jax.together import shared_rows

_PART = 4096  # generated images between two savings, or one class's if these are more


@dataclasses.dataclass
class Generated:
    """What was seen in generated images; arrays are of the pooled ones, on the first process only."""

    rows: list[dict[str, Any]]  # of each class: its scores, from all images of the class
    labels: np.ndarray
    features: dict[str, np.ndarray]
    logits: np.ndarray  # the headline extractor's
    w: np.ndarray
    read: list[np.ndarray]  # by the reader of factors


def generate(
    fakes: Fakes,
    embedder: Embedder,
    reference: ImageSource,
    real: Mapping[str, np.ndarray],
    counts: Counts,
    settings: Settings,
    measured: Sequence[str],
    reader: FactorReader | None = None,
    folder: Path | None = None,
    classwise: bool = True,
) -> Generated:
    """Generates all images and sees what there is to see in them, part by part; finished parts are kept in `folder`.

    Args:
      fakes: makes the images.
      embedder: of the extractors, the headline's first.
      reference: the real images; generated ones are of the same size and classes.
      real: features of the real images by kind, on the first process.
      counts: how many of each class.
      settings: the protocol.
      measured: kinds of extractors whose features are compared.
      reader: looks at the pooled images too.
      folder: for finished parts.
      classwise: whether every class is compared by itself, which takes all images; otherwise only the pooled are made.
    """
    headline, first = measured[0], jax.process_index() == 0
    each = counts.each if classwise else counts.pooled
    size = getattr(fakes, "size", (reference.resolution, reference.resolution, reference.channels))
    parts = _divide(each)
    total = int(each.sum())

    with tqdm(
        total=total,
        desc="Generated images",
        unit="img",
        delay=2,
        mininterval=0.1 if sys.stderr.isatty() else 30.0,
        disable=not first,
    ) as bar:

        def compute(number: int) -> dict[str, np.ndarray]:
            classes = parts[number]
            labels = np.repeat(classes, each[classes]).astype(np.int32)
            within = np.concatenate([np.arange(each[c]) for c in classes])
            indices = counts.start[labels] + within

            def look(rows: np.ndarray) -> tuple[np.ndarray, ...]:
                seen, w, images = embedder.of_fakes(fakes, labels[rows], indices[rows], size, keep=reader is not None)
                guesses = (seen[CLASSIFIER].logits.argmax(axis=1),) if CLASSIFIER in seen else ()
                read = reader(images) if reader is not None else ()
                return (*(seen[kind].features for kind in measured), seen[headline].logits, w, *guesses, *read)

            arrays = list(shared_rows(look, len(labels)))
            bar.update(len(labels))
            with failing_together():
                return _part(arrays, classes, labels, within < counts.pooled[labels]) if first else {}

        def _part(
            arrays: list[np.ndarray], classes: np.ndarray, labels: np.ndarray, kept: np.ndarray
        ) -> dict[str, np.ndarray]:
            features = dict(zip(measured, arrays, strict=False))
            logits, w, *rest = arrays[len(measured) :]
            guesses = rest.pop(0) if CLASSIFIER in embedder.extractors else None
            rows = []
            for c in classes if classwise else ():
                mine, real_of_class = labels == c, np.asarray(reference.labels) == c
                scores = class_scores(
                    {kind: x[real_of_class] for kind, x in real.items()},
                    {kind: x[mine] for kind, x in features.items()},
                    headline,
                    settings.k,
                    settings.protocol.inclusive,
                )
                accuracy = float((guesses[mine] == c).mean()) if guesses is not None and mine.any() else None
                rows.append(scores | {"n_fake": int(mine.sum()), "class_accuracy": accuracy})
            part = {f"features/{kind}": x[kept] for kind, x in features.items()}
            part |= {f"read/{number}": x[kept] for number, x in enumerate(rest)}
            part |= {"logits": logits[kept], "w": w[kept], "labels": labels[kept]}
            return part | {"rows": np.array(json.dumps(rows))}

        found = []
        for number, part in enumerate(in_parts(folder, len(parts), compute)):
            bar.update(max(0, int(each[: parts[number][-1] + 1].sum()) - bar.n))  # parts that were read
            found.append(part)
    if not first:
        empty = np.zeros((0, 0), np.float32)
        return Generated([], np.zeros(0, np.int32), dict.fromkeys(measured, empty), empty, empty, [])
    joined = {name: np.concatenate([part[name] for part in found]) for name in found[0] if name != "rows"}
    return Generated(
        rows=[row for part in found for row in json.loads(str(part["rows"]))],
        labels=joined["labels"],
        features={kind: joined[f"features/{kind}"] for kind in measured},
        logits=joined["logits"],
        w=joined["w"],
        read=[joined[f"read/{number}"] for number in range(sum(name.startswith("read/") for name in joined))],
    )


def _divide(each: np.ndarray) -> list[np.ndarray]:
    """Classes one after another in parts of about `_PART` images."""
    ends = np.cumsum(each)
    part = (ends - each) // _PART
    return [np.flatnonzero(part == number) for number in np.unique(part)]
