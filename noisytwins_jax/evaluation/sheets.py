"""Image sheets and W vectors of a generator, for the report of an evaluation.

With several processes, all of them call these functions and share the generation, and the primary draws. Images are shown
in the training pictures' aspect ratio.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from noisytwins_jax.config import RunConfig
from noisytwins_jax.data.aspect import restore_aspect
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
SHEET_CLASSES, SHEET_REAL, SHEET_FAKE = 30, 8, 16  # of the sample sheet: rows, and images a row
BAND_ROWS, STEPS = 4, 10  # of the interpolation sheet: rows of each kind, and images a row including both ends
TRUNCATION_CLASSES, TRUNCATION_IMAGES = 5, 3  # of the truncation sheet: classes side by side, images of each in a row
TRUNCATION_STRENGTHS = {  # defaults where the configuration has no sweep; thresholds are those of BigGAN's Fig. 2
    "psi": (0.7, 0.4, 0.1),
    "threshold": (2.0, 1.0, 0.5, 0.04),
    "scaled": (1.0, 0.5, 0.1),
    "std": (0.7, 0.4, 0.1),
}
W_PER_CLASS = 100


def make_sheet(config: RunConfig, variables: dict, splits: DataSplits, path: Path) -> Image.Image:
    """Draw training images beside generated ones, a row a class, at most 30 from head to tail; also write it to `path`."""
    classes = np.sort(_spread(splits.train.class_counts, min(splits.train.num_classes, SHEET_CLASSES)))
    sampler = build_sampler(config, variables, splits, seed=config.evaluation.seed)
    labels = np.repeat(classes, SHEET_FAKE)
    images, _ = distributed_map(lambda rows: sampler(labels[rows], rows), len(labels))

    def draw() -> Image.Image:
        shown = restore_aspect(images, splits.train.aspect)
        fake = {c: shown[labels == c] for c in classes}
        real = {c: _first_of_class(splits.train, c, SHEET_REAL) for c in classes}
        return sample_sheet(real, fake, splits.train.class_names, splits.train.class_counts, path)

    return broadcast_from_primary(draw)


def make_nearest_sheet(
    config: RunConfig, variables: dict, splits: DataSplits, result: dict[str, Any], path: Path
) -> Image.Image | None:
    """Draw generated images beside their nearest training images, as listed in `result`; also write it to `path`."""
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
    """Draw images beside their nearest training images in features, and in pixels where that was measured.

    Args:
      examples: at least one, from the ``memorisation`` of `evaluate_generator`.
      images: uint8 ``[len(examples), H, W, C]``, the images of the examples, of the size of the training images.
      train: the training images.
      path: where to save the picture (PNG), or None.
    """

    def load_neighbours(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        """Load images and distances of the neighbours."""
        rows, distances = (
            np.array([example[prefix + key] for example in examples]) for key in ("nearest", "distances")
        )
        nearest = restore_aspect(read_images(train, rows.ravel())["image"], train.aspect)
        return nearest.reshape(*rows.shape, *nearest.shape[1:]), distances

    labels = [example["class"] for example in examples]
    in_pixels = load_neighbours("pixel_") if "pixel_nearest" in examples[0] else None
    classes = labels, train.class_names, train.class_counts
    shown = restore_aspect(images, train.aspect)
    return neighbour_sheet(shown, *load_neighbours(""), *classes, path, in_pixels=in_pixels)


def make_latent_sheets(
    config: RunConfig, variables: dict, splits: DataSplits, workdir: Path
) -> tuple[Image.Image, Image.Image]:
    """Draw interpolations and rows of truncation; also write both to the workdir."""
    return (
        _interpolations(config, variables, splits, workdir / INTERPOLATIONS_FILE),
        _truncations(config, variables, splits, workdir / TRUNCATION_FILE),
    )


def _interpolations(config: RunConfig, variables: dict, splits: DataSplits, path: Path) -> Image.Image:
    """Draw the interpolation sheet: row j of every kind starts at class and z number j, and ends at the next class."""
    train = splits.train
    classes = _spread(train.class_counts, min(BAND_ROWS, train.num_classes))
    first, second, rows = (
        np.resize(classes, BAND_ROWS),
        np.resize(np.roll(classes, -1), BAND_ROWS),
        np.arange(BAND_ROWS),
    )
    two_z, one_z, two_classes = (rows, rows + BAND_ROWS), (rows, rows), (first, second)
    kinds = {"Between two z of a class": ((first, first), two_z)}
    if len(classes) > 1:
        kinds |= {
            "Between two classes at one z": (two_classes, one_z),
            "Between two classes and two z": (two_classes, two_z),
        }
    labels, indices = (np.stack([np.stack(kind[i], axis=1) for kind in kinds.values()]) for i in (0, 1))
    shape = (*labels.shape[:2], STEPS)  # kinds, rows, steps
    flat_labels, flat_indices = (np.repeat(x.reshape(-1, 2), STEPS, axis=0) for x in (labels, indices))
    t = np.tile(np.linspace(0.0, 1.0, STEPS), shape[0] * shape[1])
    sampler = build_sampler(config, variables, splits, seed=config.evaluation.seed)
    (images,) = distributed_map(lambda i: (sampler.interpolate(flat_labels[i], flat_indices[i], t[i]),), len(t))
    images = restore_aspect(images, train.aspect)
    images = images.reshape(*shape, *images.shape[1:])
    bands = [Band(heading, *band) for heading, *band in zip(kinds, images, labels, strict=True)]
    return broadcast_from_primary(lambda: interpolation_sheet(bands, train.class_names, path))


def _truncations(config: RunConfig, variables: dict, splits: DataSplits, path: Path) -> Image.Image:
    train, truncations = splits.train, sheet_truncations(config)
    classes = _spread(train.class_counts, min(TRUNCATION_CLASSES, train.num_classes))
    labels, indices = np.repeat(classes, TRUNCATION_IMAGES), np.arange(len(classes) * TRUNCATION_IMAGES)
    rows = []
    for truncation in truncations:
        sampler = build_sampler(config, variables, splits, truncation=truncation, seed=config.evaluation.seed)
        row, _ = distributed_map(lambda i, sampler=sampler: sampler(labels[i], indices[i]), len(labels))
        rows.append(restore_aspect(row, train.aspect))
    names = ["no truncation" if x is None else f"{TRUNCATION_SYMBOLS[x.kind]} {x.strength:g}" for x in truncations]
    images = {c: np.stack([row[labels == c] for row in rows]) for c in classes}
    return broadcast_from_primary(lambda: truncation_sheet(images, names, train.class_names, train.class_counts, path))


def sheet_truncations(config: RunConfig) -> list[Truncation | None]:
    """Return no truncation and those of the configuration's sweep, or the defaults, from the weakest to the strongest."""
    kind, has_w = config.truncation_kind, config.has_mapping_network
    try:  # without a sweep, the configured kind need not be valid for the model
        check_truncation(kind, TRUNCATION_STRENGTHS[kind][0], config.latents.kind, has_w)
    except UserError:
        kind = "psi" if has_w else "std"
    strengths = sorted(config.evaluation.sweep or TRUNCATION_STRENGTHS[kind], reverse=True)
    return [None, *(Truncation(kind, strength) for strength in strengths if (kind, strength) != ("psi", 1.0))]


def sample_w(config: RunConfig, variables: dict, splits: DataSplits) -> tuple[np.ndarray, np.ndarray]:
    """Compute W vectors ``[num_classes · W_PER_CLASS, w_dim]`` of the first latents of each class, and their labels."""
    labels = np.repeat(np.arange(splits.train.num_classes), W_PER_CLASS)
    sampler = build_sampler(config, variables, splits, seed=config.evaluation.seed)
    return distributed_map(lambda rows: sampler(labels[rows], rows)[1:], len(labels))[0], labels


def _spread(class_counts: np.ndarray, count: int) -> np.ndarray:
    """Return the ids of `count` classes at even distances from head to tail."""
    order = np.array(head_to_tail(class_counts))
    return order[np.linspace(0, len(order) - 1, count).round().astype(int)]


def _first_of_class(source: ImageSource, label: int, count: int) -> np.ndarray:
    images = read_images(source, np.flatnonzero(source.labels == label)[:count])["image"]
    return restore_aspect(images, source.aspect)
