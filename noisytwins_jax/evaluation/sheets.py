"""What an evaluation draws of a generator: sheets of its images, and its w.

In a run of several processes all of them call these functions: they share the generating, and the first one draws.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.source import DataSplits, ImageSource, read_images
from noisytwins_jax.evaluation.report.latent_sheets import Band, interpolation_sheet, truncation_sheet
from noisytwins_jax.evaluation.report.neighbour_sheet import neighbour_sheet
from noisytwins_jax.generation.sampler import build_sampler
from noisytwins_jax.generation.sheets import head_to_tail, sample_sheet
from noisytwins_jax.models.latents import TRUNCATION_SYMBOLS, Truncation, check_truncation
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.multihost import broadcast_from_primary, distributed_map

SHEET_FILE, NEAREST_FILE = "samples.png", "nearest.png"
INTERPOLATIONS_FILE, TRUNCATION_FILE = "interpolations.png", "truncation.png"
SHEET_CLASSES, SHEET_REAL, SHEET_FAKE = 30, 8, 16  # rows of the sample sheet, and images a row
BAND_ROWS, STEPS = 4, 10  # of the interpolation sheet: rows of each kind, and images a row with both ends
CUT_CLASSES, CUT_IMAGES = 5, 3  # of the truncation sheet: classes side by side, and images of each in a row
CUTS = {  # its strengths below no truncation, unless the configuration has some; thresholds are those of BigGAN's Fig. 2
    "psi": (0.7, 0.4, 0.1),
    "threshold": (2.0, 1.0, 0.5, 0.04),
    "scaled": (1.0, 0.5, 0.1),
    "std": (0.7, 0.4, 0.1),
}


def make_sheet(config: RunConfig, variables: dict, splits: DataSplits, path: Path) -> Image.Image:
    """Training images beside generated ones, a row a class, at most 30 from head to tail; also written to `path`."""
    classes = np.sort(_spread(splits.train.class_counts, min(splits.train.num_classes, SHEET_CLASSES)))
    sampler = build_sampler(config, variables, splits, seed=config.evaluation.seed)
    labels = np.repeat(classes, SHEET_FAKE)
    images, _ = distributed_map(lambda rows: sampler(labels[rows], rows), len(labels))

    def draw() -> Image.Image:
        fake = {c: images[labels == c] for c in classes}
        real = {c: _first_of_class(splits.train, c, SHEET_REAL) for c in classes}
        return sample_sheet(real, fake, splits.train.class_names, splits.train.class_counts, path)

    return broadcast_from_primary(draw)


def make_nearest_sheet(
    config: RunConfig, variables: dict, splits: DataSplits, result: dict[str, Any], path: Path
) -> Image.Image | None:
    """Generated images beside the training images that are nearest to them, as `result` names them; also to `path`."""
    examples = (result.get("memorisation") or {}).get("examples")
    if not examples:
        return None
    sampler = build_sampler(config, variables, splits, seed=config.evaluation.seed)
    labels, indices = (np.array([example[key] for example in examples]) for key in ("class", "index"))
    images, _ = distributed_map(lambda rows: sampler(labels[rows], indices[rows]), len(labels))
    return broadcast_from_primary(lambda: draw_nearest(examples, images, splits.train, path))


def draw_nearest(
    examples: list[dict[str, Any]], images: np.ndarray, train: ImageSource, path: Path | None = None
) -> Image.Image:
    """Images beside the training images that are nearest to them in features, and in pixels where that was measured.

    Args:
      examples: at least one, as the ``memorisation`` of `metrics.evaluation` has them.
      images: uint8 ``[len(examples), H, W, C]``, of the size of the training images: what the examples are of.
      train: the training images.
      path: where to save the picture (PNG), or None.
    """

    def near(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and distances of the neighbours."""
        rows, distances = (
            np.array([example[prefix + key] for example in examples]) for key in ("nearest", "distances")
        )
        return read_images(train, rows.ravel())["image"].reshape(*rows.shape, *images.shape[1:]), distances

    labels = [example["class"] for example in examples]
    in_pixels = near("pixel_") if "pixel_nearest" in examples[0] else None
    return neighbour_sheet(images, *near(""), labels, train.class_names, train.class_counts, path, in_pixels=in_pixels)


def make_latent_sheets(
    config: RunConfig, variables: dict, splits: DataSplits, workdir: Path
) -> tuple[Image.Image, Image.Image]:
    """Interpolations, and rows of truncation; also ``interpolations.png`` and ``truncation.png`` in the workdir."""
    return (
        _interpolations(config, variables, splits, workdir / INTERPOLATIONS_FILE),
        _truncations(config, variables, splits, workdir / TRUNCATION_FILE),
    )


def _interpolations(config: RunConfig, variables: dict, splits: DataSplits, path: Path) -> Image.Image:
    """Row j of every kind begins with class and z number j; the other class is the next one of the sheet."""
    train = splits.train
    classes = _spread(train.class_counts, min(BAND_ROWS, train.num_classes))
    first, second, rows = (
        np.resize(classes, BAND_ROWS),
        np.resize(np.roll(classes, -1), BAND_ROWS),
        np.arange(BAND_ROWS),
    )
    z, one, both = (rows, rows + BAND_ROWS), (rows, rows), (first, second)
    kinds = {"Between two z of a class": ((first, first), z)}
    if len(classes) > 1:
        kinds |= {"Between two classes at one z": (both, one), "Between two classes and two z": (both, z)}
    labels, indices = (np.stack([np.stack(kind[i], axis=1) for kind in kinds.values()]) for i in (0, 1))
    shape = (*labels.shape[:2], STEPS)  # kinds, rows, steps
    flat_labels, flat_indices = (np.repeat(x.reshape(-1, 2), STEPS, axis=0) for x in (labels, indices))
    t = np.tile(np.linspace(0.0, 1.0, STEPS), shape[0] * shape[1])
    sampler = build_sampler(config, variables, splits, seed=config.evaluation.seed)
    (images,) = distributed_map(lambda some: (sampler.between(flat_labels[some], flat_indices[some], t[some]),), len(t))
    images = images.reshape(*shape, *images.shape[1:])
    bands = [Band(heading, *band) for heading, *band in zip(kinds, images, labels, strict=True)]
    return broadcast_from_primary(lambda: interpolation_sheet(bands, train.class_names, path))


def _truncations(config: RunConfig, variables: dict, splits: DataSplits, path: Path) -> Image.Image:
    train, cuts = splits.train, sheet_truncations(config)
    classes = _spread(train.class_counts, min(CUT_CLASSES, train.num_classes))
    labels, indices = np.repeat(classes, CUT_IMAGES), np.arange(len(classes) * CUT_IMAGES)
    rows = []
    for cut in cuts:
        sampler = build_sampler(config, variables, splits, truncation=cut, seed=config.evaluation.seed)
        rows.append(distributed_map(lambda some, sampler=sampler: sampler(labels[some], indices[some]), len(labels))[0])
    names = ["no truncation" if cut is None else f"{TRUNCATION_SYMBOLS[cut.kind]} {cut.strength:g}" for cut in cuts]
    images = {c: np.stack([row[labels == c] for row in rows]) for c in classes}
    return broadcast_from_primary(lambda: truncation_sheet(images, names, train.class_names, train.class_counts, path))


def sheet_truncations(config: RunConfig) -> list[Truncation | None]:
    """No truncation, and those of the configuration's sweep, or of `CUTS`, from the weakest to the strongest."""
    kind, has_w = config.truncation_kind, config.has_mapping_network
    try:  # only a sweep needs a kind that fits
        check_truncation(kind, CUTS[kind][0], config.latents.kind, has_w)
    except UserError:
        kind = "psi" if has_w else "std"
    strengths = sorted(config.evaluation.sweep or CUTS[kind], reverse=True)
    return [None, *(Truncation(kind, strength) for strength in strengths if (kind, strength) != ("psi", 1.0))]


def sample_w(
    config: RunConfig, variables: dict, splits: DataSplits, per_class: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """W vectors ``[num_classes · per_class, w_dim]`` of the first latents of each class, and their labels."""
    labels = np.repeat(np.arange(splits.train.num_classes), per_class)
    sampler = build_sampler(config, variables, splits, seed=config.evaluation.seed)
    return distributed_map(lambda rows: sampler(labels[rows], rows)[1:], len(labels))[0], labels


def _spread(class_counts: np.ndarray, count: int) -> np.ndarray:
    """Ids of `count` classes at even distances from head to tail."""
    order = np.array(head_to_tail(class_counts))
    return order[np.linspace(0, len(order) - 1, count).round().astype(int)]


def _first_of_class(source: ImageSource, label: int, count: int) -> np.ndarray:
    return read_images(source, np.flatnonzero(source.labels == label)[:count])["image"]
