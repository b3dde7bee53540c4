"""``--mode=evaluate --images``: the numbers and the report of images that come from files, whoever made them.

In a run of several processes all of them call these functions, and all of them read the files.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from noisytwins_jax.config import RunConfig, flatten
from noisytwins_jax.data.long_tail import class_groups
from noisytwins_jax.data.source import DataSplits, ImageSource, read_images
from noisytwins_jax.diagnostics.neighbour_sheet import neighbour_sheet
from noisytwins_jax.diagnostics.report import write_report
from noisytwins_jax.diagnostics.sheets import image_grid
from noisytwins_jax.errors import UserError
from noisytwins_jax.evaluate import (
    EVALUATION_FILE,
    NEAREST_CAPTION,
    REPORT_FILE,
    SCRATCH,
    check_evaluation,
    load_extractors,
    load_together,
)
from noisytwins_jax.metrics.evaluation import evaluate_generator
from noisytwins_jax.metrics.extractor import FeatureExtractor
from noisytwins_jax.metrics.image_files import FileFakes, ImageFiles, OneClass, match_classes, read_image_files
from noisytwins_jax.metrics.protocols import CLASSIFIER, chosen_extractors
from noisytwins_jax.metrics.table import format_table
from noisytwins_jax.survival.agreement import check_agreement, code_fingerprint, failing_together
from noisytwins_jax.together import on_first_process, say
from noisytwins_jax.workdir import CONFIG_FILE, cache_dir, needing_space, open_workdir, write_atomically

SHEET_COLUMNS, SHEET_ROWS = 16, 8


def evaluate_images(
    config: RunConfig, images: str | os.PathLike, reference: str | os.PathLike | None, workdir: str | Path
) -> Path:
    """Compares images of files with a data set or with other files; writes ``evaluation.json`` and ``report.html``.

    Classes are matched as `image_files.match_classes` says. Killed, it goes on where it was when it is called with the
    same arguments.

    Args:
      config: its ``evaluation`` says how to measure; its ``data`` are the reference, unless one is given.
      images: a folder or an ``.npz``, see `image_files`.
      reference: the same for the images to compare with, which are not resized; None for the data of `config`.
      workdir: of this evaluation alone; features of the reference are kept in ``cache/`` beside it.

    Returns:
      The report's path.

    Raises:
      UserError: images or weights are missing or unreadable, or do not fit together; the workdir is a run's.
    """
    with failing_together():
        chosen = _check_arguments(config, reference, Path(workdir))
    check_evaluation(config)
    with failing_together():
        fakes = read_image_files(images)
        real = None if reference is None else read_image_files(reference)
    splits = load_together(config) if real is None else None
    if real is None:
        real = splits.reference
    with failing_together():
        if CLASSIFIER in chosen:
            fakes = _as_the_classifier_takes_them(fakes, real)
    _check_alike(config, fakes, real)
    with needing_space(Path(workdir)):
        with failing_together():
            workdir = open_workdir(workdir, config)
        sides = _sides(config, fakes, real, splits)
        if config.evaluation.sweep:
            sides.notes.append(
                "Files have the truncation that they were made with: config.evaluation.truncations is left out."
            )
        against = config.data.name if reference is None else real.name
        say(f"Evaluating {len(fakes)} images of {fakes.name} against {len(real)} of {against}.")
        for note in sides.notes:
            say(note)
        result = _measure(config, sides, load_extractors(config, splits, cache_dir(workdir)), workdir)
        result["protocol"] |= {
            "images": fakes.name,
            "images_fingerprint": fakes.fingerprint,
            "images_resolution": fakes.resolution,
            "reference": against,
            "truncation_psi": None,  # known to whoever made the files
            "class_noise": None,
            "warnings": [*sides.notes, *result["protocol"]["warnings"]],
        }
        say(format_table({fakes.name: result}))
        return on_first_process(lambda: _write(config, result, sides, against, workdir))


def _check_arguments(config: RunConfig, reference: str | os.PathLike | None, workdir: Path) -> dict[str, str]:
    chosen = chosen_extractors(config.evaluation.settings.protocol, config.evaluation.extractors)
    if reference is not None and CLASSIFIER in chosen:
        raise UserError(
            "The classifier is trained on the data set of the configuration, which --reference replaces; give "
            "--config.evaluation.protocol=clean (or noisytwins, tf1, fidelity) without classifier among the extractors."
        )
    if (workdir / CONFIG_FILE).exists():
        raise UserError(
            f"{workdir} is the workdir of a training run, whose evaluation would be lost; give another --workdir."
        )
    return chosen


def _as_the_classifier_takes_them(fakes: ImageFiles, real: ImageSource) -> ImageFiles:
    if fakes.resolution != real.resolution:
        raise UserError(
            f"The images of {fakes.name} are of {fakes.resolution} px and the data set of {real.resolution} px, which "
            "is all that its classifier sees; give images or --config.data.resolution of the same size, or another "
            "protocol (--config.evaluation.protocol=clean)."
        )
    return fakes.converted(real.channels)


def _check_alike(config: RunConfig, fakes: ImageFiles, real: ImageSource) -> None:
    """Looks whether all processes measure the same images in the same way."""
    if jax.process_count() == 1:
        return
    facts = {f"config.{name}": repr(value) for name, value in flatten(config).items()}
    facts |= {"the code of noisytwins_jax": code_fingerprint(), "the version of JAX": jax.__version__}
    with failing_together():
        facts |= {"the images": fakes.fingerprint, "the reference images": real.fingerprint}
    check_agreement(facts)


@dataclasses.dataclass
class _Sides:
    """What is compared, with one numbering of the classes."""

    fakes: ImageFiles
    labels: np.ndarray  # of the fakes
    reference: ImageSource
    groups: dict[str, np.ndarray]
    train: ImageSource | None  # where the reference is a data set
    split: str  # what the reference is of the data set
    notes: list[str]
    classes: bool  # whether there are any


def _sides(config: RunConfig, fakes: ImageFiles, real: ImageSource, splits: DataSplits | None) -> _Sides:
    labels, note = match_classes(fakes, real.class_names)
    notes = [note] if note else []
    train = None if splits is None else splits.train
    split = "files" if splits is None else "train" if splits.reference is splits.train else "reference"
    if labels is None:
        labels, train = np.zeros(len(fakes), np.int32), None if train is None else OneClass(train)
        return _Sides(fakes, labels, OneClass(real), {}, train, split, notes, classes=False)
    if train is None:
        groups = class_groups(real.class_counts)
    else:
        groups = class_groups(train.class_counts, config.data.group_thresholds)
    return _Sides(fakes, labels, real, groups, train, split, notes, classes=True)


def _measure(
    config: RunConfig, sides: _Sides, extractors: dict[str, FeatureExtractor], workdir: Path
) -> dict[str, Any]:
    options, fakes = config.evaluation, sides.fakes
    if not sides.classes and next(iter(extractors)) != CLASSIFIER:  # it would only be there for the class accuracy
        extractors = {kind: x for kind, x in extractors.items() if kind != CLASSIFIER}
    result = evaluate_generator(
        FileFakes(fakes, sides.labels, options.batch_size),
        reference=sides.reference,
        extractors=extractors,
        class_groups=sides.groups,
        settings=dataclasses.replace(options.settings, reference_split=sides.split, weights="files"),
        train=sides.train if options.memorisation else None,
        train_counts=None if sides.train is None else sides.train.class_counts,
        available=np.bincount(sides.labels, minlength=sides.reference.num_classes),
        cache=cache_dir(workdir),
        scratch=workdir / SCRATCH,
        identity=f"{fakes.fingerprint} {hashlib.sha256(sides.labels.tobytes()).hexdigest()}",
    )
    if not sides.classes:  # nobody asked for the classifier's first class
        for values in (result["metrics"], *result["per_class"]):
            values["class_accuracy"] = None
    return result


def _write(config: RunConfig, result: dict[str, Any], sides: _Sides, against: str, workdir: Path) -> Path:
    """On the first process."""
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    write_atomically(workdir / EVALUATION_FILE, text)
    fakes, real = sides.fakes, sides.reference
    where = f" of {real.num_classes} classes" if sides.classes else ""
    spaced = "At even distances in the order of classes; none is selected."
    return write_report(
        workdir / REPORT_FILE,
        title=f"{fakes.name} against {against}",
        lede=f"{len(fakes)} generated images from files and {len(real)} real ones{where}.",
        config_text=json.dumps(flatten(config), indent=2),
        evaluation=result,
        figures=[
            (f"Generated images. {spaced}", _sheet(fakes, sides.labels)),
            (f"Real images. {spaced}", _sheet(real, real.labels)),
            *_nearest(sides, result),
        ],
    )


def _nearest(sides: _Sides, result: dict[str, Any]) -> list[tuple[str, Image.Image]]:
    """Caption and picture of the nearest training images that `result` names, where they are of the same size."""
    examples, train = (result.get("memorisation") or {}).get("examples"), sides.train
    if not examples or sides.fakes.resolution != train.resolution:
        return []
    labels, indices = (np.array([example[key] for example in examples]) for key in ("class", "index"))
    rows, distances = (np.array([example[key] for example in examples]) for key in ("nearest", "distances"))
    images = read_images(sides.fakes.converted(train.channels), np.argsort(sides.labels, kind="stable")[indices])[
        "image"
    ]
    nearest = read_images(train, rows.ravel())["image"].reshape(*rows.shape, *images.shape[1:])
    sheet = neighbour_sheet(images, nearest, distances, labels, train.class_names, train.class_counts)
    return [(NEAREST_CAPTION, sheet)]


def _sheet(source: ImageSource, labels: np.ndarray) -> Image.Image:
    order = np.argsort(labels, kind="stable")
    rows = np.linspace(0, len(order) - 1, min(len(order), SHEET_COLUMNS * SHEET_ROWS)).round().astype(int)
    return image_grid(read_images(source, order[rows])["image"], columns=SHEET_COLUMNS)
