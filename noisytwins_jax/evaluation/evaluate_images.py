"""``--mode=evaluate --images``: evaluation of images from files, with its report.

With several processes, all of them call these functions and read the files.
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
from noisytwins_jax.data.aspect import Aspect, restore_aspect
from noisytwins_jax.data.long_tail import class_groups
from noisytwins_jax.data.source import DataSplits, ImageSource, read_images
from noisytwins_jax.evaluation.class_matching import Matched, match_classes
from noisytwins_jax.evaluation.evaluate_generator import evaluate_generator
from noisytwins_jax.evaluation.few_classes import choose_few_classes, choose_reference
from noisytwins_jax.evaluation.image_files import FileFakes, ImageFiles, OneClass
from noisytwins_jax.evaluation.image_reading import read_image_files
from noisytwins_jax.evaluation.report.report import write_report
from noisytwins_jax.evaluation.results import EVALUATION_FILE, NEAREST_CAPTION, REPORT_FILE
from noisytwins_jax.evaluation.run_evaluation import RESUME_FOLDER, check_evaluation, get_settings, load_extractors
from noisytwins_jax.evaluation.sheets import draw_nearest
from noisytwins_jax.evaluation.table import format_table
from noisytwins_jax.generation.sheets import image_grid
from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.metrics.protocols import CLASSIFIER, parse_extractors
from noisytwins_jax.metrics.resumable_chunks import ResumableCache
from noisytwins_jax.training.fault_tolerance.consistency import check_consistency, code_fingerprint
from noisytwins_jax.training.restore import load_run_data
from noisytwins_jax.training.workdir import CONFIG_FILE, cache_dir, open_workdir
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.files import handle_disk_full, write_atomically
from noisytwins_jax.utils.multihost import broadcast_from_primary, print_on_primary, raise_on_all_processes

SHEET_COLUMNS, SHEET_ROWS = 16, 8
_ALTERNATIVE = (
    "--config.evaluation.protocol=tf1 --config.evaluation.extractors=inception (or another protocol of "
    "noisytwins_jax/metrics/protocols.py than embedded)"
)


def evaluate_images(
    config: RunConfig, images: str | os.PathLike, reference: str | os.PathLike | None, workdir: str | Path
) -> Path:
    """Compare images of files with a data set or with other files, and write ``evaluation.json`` and ``report.html``.

    Classes are matched by `match_classes`. Where a side has none, everything is compared as one class, and the result has
    ``protocol["classes"]`` False, no rows in ``per_class`` and None for class-wise metrics. The classifier of the data set
    is left out, with a note, where it cannot be used and is not the headline's extractor. A killed evaluation resumes when
    it is called with the same arguments.

    Args:
      config: its ``evaluation`` has the protocol; its ``data`` is the reference, unless one is given.
      images: a folder, a ``.zip`` or an ``.npz``, see `image_reading`.
      reference: the same of the real images, which are not resized; None for the data of `config`.
      workdir: of this evaluation alone; features of the reference are cached in ``cache/`` beside it.

    Returns:
      The report's path.

    Raises:
      UserError: images or weights are missing, unreadable or do not fit together; the workdir is a run's, or holds an
        evaluation of other images, against another reference or by another protocol.
    """
    with raise_on_all_processes():
        chosen, notes = _check_arguments(config, reference, Path(workdir)), []
    if reference is not None and CLASSIFIER in chosen:
        config, notes = _without_classifier(config, "is trained on the data set, which --reference replaces")
    check_evaluation(config, on_its_data=reference is None)
    with raise_on_all_processes():
        fakes = read_image_files(images)
        real = None if reference is None else read_image_files(reference)
    splits = load_run_data(config) if real is None else None
    if real is None:
        real, _ = choose_reference(splits, config.evaluation.settings.protocol)
    with raise_on_all_processes():
        matched = match_classes(fakes, real)
        if reference is None and CLASSIFIER in chosen:
            fakes, config, notes = _prepare_for_classifier(fakes, real, config, chosen, matched)
    _check_processes_agree(config, fakes, real)
    with raise_on_all_processes():
        _check_earlier(Path(workdir) / EVALUATION_FILE, config, fakes, real)
    with handle_disk_full(Path(workdir)):
        with raise_on_all_processes():
            workdir = open_workdir(workdir, config)
        sides = _build_sides(config, fakes, real, splits, matched)
        sides.notes.extend(notes)
        if config.evaluation.sweep:
            sides.notes.append(
                "Files have the truncation that they were made with: config.evaluation.truncations is left out."
            )
        against = config.data.name if reference is None else real.name
        print_on_primary(f"Evaluating {len(fakes)} images of {fakes.name} against {len(real)} of {against}.")
        for note in sides.notes:
            print_on_primary(note)
        result = _measure(config, sides, load_extractors(config, splits, cache_dir(workdir)), workdir)
        result["protocol"] |= {
            "images": fakes.name,
            "images_fingerprint": fakes.fingerprint,
            "images_resolution": fakes.resolution,
            "reference": against,
            "truncation_psi": None,  # unknown for files
            "class_noise": None,
            "classes": sides.classes,
            "warnings": [*sides.notes, *result["protocol"]["warnings"]],
        }
        print_on_primary(format_table({fakes.name: result}))
        report = broadcast_from_primary(lambda: _write_results(config, result, sides, against, workdir))
        ResumableCache(workdir / RESUME_FOLDER).remove_finished()
        return report


def _check_arguments(config: RunConfig, reference: str | os.PathLike | None, workdir: Path) -> dict[str, str]:
    chosen = parse_extractors(config.evaluation.settings.protocol, config.evaluation.extractors)
    if reference is not None and next(iter(chosen)) == CLASSIFIER:
        raise UserError(
            "The classifier, which this configuration measures with, is trained on the data set that --reference replaces; "
            f"give {_ALTERNATIVE}."
        )
    if (workdir / CONFIG_FILE).exists():
        raise UserError(
            f"{workdir} is the workdir of a training run, whose evaluation would be lost; give another --workdir."
        )
    return chosen


def _prepare_for_classifier(
    fakes: ImageFiles, real: ImageSource, config: RunConfig, chosen: dict[str, str], matched: Matched
) -> tuple[ImageFiles, RunConfig, list[str]]:
    """Convert the images to the data set's channels, or remove the classifier from the configuration, with a note."""
    headline = next(iter(chosen)) == CLASSIFIER
    if fakes.resolution != real.resolution:
        if headline:
            raise UserError(
                f"The images of {fakes.name} are of {fakes.resolution} px and the data set of {real.resolution} px, which "
                "is all that its classifier sees; give images or --config.data.resolution of the same size, or "
                f"{_ALTERNATIVE}."
            )
        why = f"sees images of {real.resolution} px only, and these are of {fakes.resolution} px"
        return fakes, *_without_classifier(config, why)
    if matched.labels is None and not headline:
        return fakes, *_without_classifier(config, "has no classes to look for")
    return fakes.convert(real.channels), config, []


def _without_classifier(config: RunConfig, why: str) -> tuple[RunConfig, list[str]]:
    names = [name.strip() for name in config.evaluation.extractors.split(",")]
    others = ",".join(name for name in names if name != CLASSIFIER)
    evaluation = dataclasses.replace(config.evaluation, extractors=others)
    note = f"There is no class accuracy: the classifier {why}."
    return dataclasses.replace(config, evaluation=evaluation), [note]


def _check_earlier(path: Path, config: RunConfig, fakes: ImageFiles, real: ImageSource) -> None:
    """Check that an existing evaluation, which would be replaced, is of the same images by the same protocol."""
    try:
        earlier = json.loads(path.read_text(encoding="utf-8")).get("protocol") or {}
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{path} is there and not readable; remove it, or give another --workdir.") from None
    now, before = config.evaluation.protocol, earlier.get("name")
    other = None
    if earlier.get("images_fingerprint") != fakes.fingerprint:
        other = f"of other images or classes (called {earlier.get('images')})"
    elif earlier.get("reference_fingerprint") != real.fingerprint:
        other = f"against another reference (called {earlier.get('reference')})"
    elif before != now:
        other = f"by the protocol {before}, not {now}"
    if other is not None:
        raise UserError(f"{path} holds an evaluation {other}, which would be lost; give another --workdir.")


def _check_processes_agree(config: RunConfig, fakes: ImageFiles, real: ImageSource) -> None:
    """Check that all processes evaluate the same images with the same configuration and code."""
    if jax.process_count() == 1:
        return
    facts = {f"config.{name}": repr(value) for name, value in flatten(config).items()}
    facts |= {"the code of noisytwins_jax": code_fingerprint(), "the version of JAX": jax.__version__}
    with raise_on_all_processes():
        facts |= {"the images": fakes.fingerprint, "the reference images": real.fingerprint}
    check_consistency(facts)


@dataclasses.dataclass
class _Sides:
    """Generated and real images, with one numbering of the classes."""

    fakes: ImageFiles
    labels: np.ndarray  # of the fakes
    reference: ImageSource
    groups: dict[str, np.ndarray]
    train: ImageSource | None  # None where the reference is files
    split: str  # of the reference: "train", "reference" or "files"
    notes: list[str]
    classes: bool  # whether both have classes
    few: tuple[int, ...] = ()  # the few classes of the protocol


def _build_sides(
    config: RunConfig, fakes: ImageFiles, real: ImageSource, splits: DataSplits | None, matched: Matched
) -> _Sides:
    labels, note = matched
    notes = [note] if note else []
    train = None if splits is None else splits.train
    protocol = config.evaluation.settings.protocol
    split = "files" if splits is None else choose_reference(splits, protocol)[1]
    if labels is None:
        labels, train = np.zeros(len(fakes), np.int32), None if train is None else OneClass(train)
        return _Sides(fakes, labels, OneClass(real), {}, train, split, notes, classes=False)
    if train is None:
        groups = class_groups(real.class_counts)
    else:
        groups = class_groups(train.class_counts, config.data.group_thresholds)
    few = () if splits is None else choose_few_classes(splits, protocol, groups["tail"])
    return _Sides(fakes, labels, real, groups, train, split, notes, classes=True, few=few)


def _measure(
    config: RunConfig, sides: _Sides, extractors: dict[str, FeatureExtractor], workdir: Path
) -> dict[str, Any]:
    fakes, settings = sides.fakes, get_settings(config, reference_split=sides.split, weights="files")
    result = evaluate_generator(
        FileFakes(fakes, sides.labels, settings.per_device_batch, settings.prefetch),
        reference=sides.reference,
        extractors=extractors,
        class_groups=sides.groups,
        settings=settings,
        train=sides.train if config.evaluation.memorisation else None,
        train_counts=None if sides.train is None else sides.train.class_counts,
        available=np.bincount(sides.labels, minlength=sides.reference.num_classes),
        few=sides.few,
        cache=cache_dir(workdir),
        resume_cache=ResumableCache(workdir / RESUME_FOLDER),
        identity=f"{fakes.fingerprint} {hashlib.sha256(sides.labels.tobytes()).hexdigest()}",
    )
    if not sides.classes:
        _leave_classes_out(result)
    return result


def _leave_classes_out(result: dict[str, Any]) -> None:
    """Remove the class-wise metrics of images without classes, such as an iFID that equals the FID."""
    for values in (result["metrics"], result["real_vs_real"]):
        values |= {key: None for key in values if key.startswith(("ifid", "ifd_", "class_"))}
    result["per_class"] = []
    result.get("memorisation", {}).pop("within_class", None)
    protocol = result["protocol"]
    warnings = [warning for warning in protocol["warnings"] if " of 1 classes " not in warning]
    if protocol["n_real"] <= protocol["feature_dim"]:
        warnings.append(
            f"There are no more real images than the {protocol['feature_dim']} feature dimensions; finite-sample bias raises "
            "distances."
        )
    protocol |= {
        "n_fake_per_class": None,
        "labels": "none",
        "headline": "all numbers are of all images together, without classes",
        "warnings": warnings,
    }


def _write_results(config: RunConfig, result: dict[str, Any], sides: _Sides, against: str, workdir: Path) -> Path:
    """Write ``evaluation.json`` and the report; called by the primary process."""
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    write_atomically(workdir / EVALUATION_FILE, text)
    fakes, real = sides.fakes, sides.reference
    classes = f" of {real.num_classes} classes" if sides.classes else ""
    selection = "At even distances in the order of classes; not selected."
    return write_report(
        workdir / REPORT_FILE,
        title=f"{fakes.name} against {against}",
        lede=f"{len(fakes)} generated images from files and {len(real)} real ones{classes}.",
        config_text=json.dumps(flatten(config), indent=2),
        evaluation=result,
        figures=[
            (f"Generated images. {selection}", _image_sheet(fakes, sides.labels, real.aspect)),
            (f"Real images. {selection}", _image_sheet(real, real.labels, real.aspect)),
            *_nearest_figure(sides, result),
        ],
    )


def _nearest_figure(sides: _Sides, result: dict[str, Any]) -> list[tuple[str, Image.Image]]:
    """Return caption and sheet of the nearest training images in `result`, where images have the same size."""
    examples, train = (result.get("memorisation") or {}).get("examples"), sides.train
    if not examples or sides.fakes.resolution != train.resolution:
        return []
    rows = np.argsort(sides.labels, kind="stable")[[example["index"] for example in examples]]
    images = read_images(sides.fakes.convert(train.channels), rows)["image"]
    return [(NEAREST_CAPTION, draw_nearest(examples, images, train))]


def _image_sheet(source: ImageSource, labels: np.ndarray, aspect: Aspect | None) -> Image.Image:
    order = np.argsort(labels, kind="stable")
    rows = np.linspace(0, len(order) - 1, min(len(order), SHEET_COLUMNS * SHEET_ROWS)).round().astype(int)
    images = restore_aspect(read_images(source, order[rows])["image"], aspect)
    return image_grid(images, columns=SHEET_COLUMNS)
