"""Listings that need no download: rendered flowers with known factors, and the embedded digits."""

import functools

import numpy as np

from noisytwins_jax.data.digits import digits_splits
from noisytwins_jax.data.long_tail import long_tail_counts
from noisytwins_jax.data.petals import FACTORS, draw, species
from noisytwins_jax.data.prepare.listing import Item, Listing, RenderedImage
from noisytwins_jax.data.source import ArraySource, DataSplits, check_resolution
from noisytwins_jax.utils.errors import UserError

# Index of a class's first reference image and first classifier image; the training images start at 0.
REFERENCE_START, CLASSIFIER_START = 2**31, 2**32

_DIGITS_HOMEPAGE = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"
_DIGITS_CITATION = """@misc{alpaydin1998digits,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  publisher = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49}
}"""


def petals(
    resolution: int,
    num_classes: int = 20,
    largest: int = 500,
    imbalance_factor: float = 0.02,
    reference_per_class: int = 50,
    classifier_per_class: int = 200,
    seed: int = 0,
) -> Listing:
    """List long-tailed classes of rendered flowers with known factors; see `noisytwins_jax.data.petals`.

    For one seed, the classes and images of a smaller set (fewer classes, a smaller ``largest``, ``imbalance_factor`` or
    ``reference_per_class``) are among those of a larger one, and no two splits share an image.

    Args:
      resolution: pixels, a power of two of at least 8.
      num_classes: number of species, at least 1.
      largest: training images of class 0, the most frequent class.
      imbalance_factor: rarest over most frequent class, in (0, 1]; see ``long_tail_counts``.
      reference_per_class: reference images per class, at least 1.
      classifier_per_class: images per class for training the metrics' networks, at least 1.
      seed: seed of species and images.

    Returns:
      The splits "train" (long-tailed), "reference" and "classifier" (balanced), class by class, rendered when read:
      uint8 ``[resolution, resolution, 3]`` with the factors `FACTORS`. Items are named ``<split>/<class>/<index>``.

    Raises:
      UserError: an argument is out of range.
    """
    check_resolution(resolution)
    counts = long_tail_counts(largest, num_classes, imbalance_factor)
    for name, count in (("reference_per_class", reference_per_class), ("classifier_per_class", classifier_per_class)):
        if count < 1:
            raise UserError(f"{name} must be at least 1, but it is {count}.")
    species(0, seed)  # raises for a negative seed now, not when images are rendered
    digits = len(str(num_classes - 1))
    names = [f"{label:0{digits}}" for label in range(num_classes)]

    def items(split: str, label: int, start: int, count: int) -> list[Item]:
        return [Item(f"{split}/{names[label]}/{i}", label, (label, start + i)) for i in range(count)]

    splits: dict[str, list[Item]] = {"train": [], "reference": [], "classifier": []}
    for label, count in enumerate(counts.tolist()):
        splits["train"] += items("train", label, 0, count)
        splits["reference"] += items("reference", label, REFERENCE_START, reference_per_class)
        splits["classifier"] += items("classifier", label, CLASSIFIER_START, classifier_per_class)
    return Listing(
        class_names=[f"species {name}" for name in names],
        splits=splits,
        read=functools.partial(_draw_item, resolution=resolution, seed=seed),
        description=(
            f"Petals: drawn flowers of {num_classes} species with a long tail; place, size, turn, tilt, hue and "
            "background vary within each class and are known for every image."
        ),
        factor_names=FACTORS,
    )


def petals_splits(resolution: int = 64, **options: int | float) -> DataSplits:
    """Render the splits of `petals` into memory: for small sets, without preparation."""
    listing = petals(resolution, **options)

    def render_split(split: str) -> ArraySource:
        rendered = [listing.read(item) for item in listing.splits[split]]
        factors = np.stack([factors for _, factors in rendered])
        return ArraySource(
            np.stack([image for image, _ in rendered]),
            np.array([item.label for item in listing.splits[split]]),
            listing.class_names,
            f"petals ({split})",
            dict(zip(FACTORS, factors.T, strict=True)),
        )

    return DataSplits(*(render_split(split) for split in ("train", "reference", "classifier")))


def digits_lt(resolution: int = 8, imbalance_factor: float = 0.05, largest: int = 174, seed: int = 0) -> Listing:
    """List the embedded long-tailed digits; arguments and errors are those of ``digits_splits``.

    Returns:
      The splits "train" (long-tailed) and "reference" (all 1797 images, so it contains the training images), read as
      grey uint8 ``[resolution, resolution]``. Items are named ``<split>/<position in the split>``.
    """
    options = (resolution, imbalance_factor, largest, seed)
    digits = _digits(*options)
    return Listing(
        class_names=digits.train.class_names,
        splits={
            split: [Item(f"{split}/{i}", label, (split, i)) for i, label in enumerate(source.labels.tolist())]
            for split, source in (("train", digits.train), ("reference", digits.reference))
        },
        read=functools.partial(_read_digit, options=options),
        description="Hand-written digits of 8x8 pixels, as scikit-learn bundles them, with a long tail.",
        homepage=_DIGITS_HOMEPAGE,
        citation=_DIGITS_CITATION,
        published_counts={"reference": 1797},
    )


def _draw_item(item: Item, resolution: int, seed: int) -> RenderedImage:
    label, index = item.location
    return RenderedImage(*draw(label, index, resolution, seed))


def _read_digit(item: Item, options: tuple[int, float, int, int]) -> np.ndarray:
    split, i = item.location
    return getattr(_digits(*options), split).images[i, :, :, 0]


@functools.lru_cache(maxsize=1)
def _digits(resolution: int, imbalance_factor: float, largest: int, seed: int) -> DataSplits:
    """Build ``digits_splits`` once per process."""
    return digits_splits(resolution, imbalance_factor, largest, seed)
