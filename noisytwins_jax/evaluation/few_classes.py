"""What the protocol ``utlo`` measures beside the others (Khorram et al., CVPR 2024; its released code).

Its real images are all that there were before the long tail was cut off. Pooled generated images have the frequencies of
those, and the few classes (the rarest ones of the training set) are evaluated once more alone, by as many images, the same
number of each: ``few_fid`` and ``few_kid``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from noisytwins_jax.data.source import DataSplits, ImageSource
from noisytwins_jax.evaluation.generated_features import GeneratedFeatures
from noisytwins_jax.metrics.frechet import frechet_distance
from noisytwins_jax.metrics.kernel_distances import kid
from noisytwins_jax.metrics.protocols import Protocol
from noisytwins_jax.metrics.resumable_chunks import ResumableCache
from noisytwins_jax.metrics.settings import Counts, Settings
from noisytwins_jax.utils.errors import UserError


def choose_reference(splits: DataSplits, protocol: Protocol) -> tuple[ImageSource, str]:
    """Return the real images that a protocol compares with, and the name of their split."""
    if protocol.few and splits.full is not None:
        return splits.full, "full"
    return splits.reference, "train" if splits.reference is splits.train else "reference"


def choose_few_classes(splits: DataSplits, protocol: Protocol, tail: Sequence[int] | np.ndarray) -> tuple[int, ...]:
    """Return the few classes of a protocol: those that were recorded with the data, else the tail; none for other protocols.

    Raises:
      UserError: there are none.
    """
    if not protocol.few:
        return ()
    few = splits.few_classes or tuple(int(c) for c in tail)
    if not few:
        raise UserError(
            f"The protocol {protocol.name} evaluates the few classes alone, and no class of the data is in the tail; raise "
            "config.data.tail_below, or choose another config.evaluation.protocol."
        )
    return few


def natural_counts(settings: Settings, frequencies: np.ndarray, start: int) -> Counts:
    """Return counts of ``pooled_images`` images with these class frequencies ``[C]``; their indices begin at `start`."""
    shares = settings.pooled_images * frequencies / frequencies.sum()
    counts = np.floor(shares).astype(np.int64)
    largest = np.argsort(-(shares - counts), kind="stable")[: settings.pooled_images - counts.sum()]
    counts[largest] += 1
    return Counts(counts, counts, start + np.cumsum(counts) - counts)


def extract_all_and_few(
    extract: Callable[..., GeneratedFeatures],
    settings: Settings,
    frequencies: np.ndarray,
    few: Sequence[int],
    start: int,
    resume_cache: ResumableCache,
) -> tuple[GeneratedFeatures, Counts, dict[str, np.ndarray]]:
    """Extract the features of images of all classes at their natural frequencies, and of as many of the few classes.

    Args:
      extract: (counts, folder) → features of generated images.
      settings: of the evaluation.
      frequencies: real images of each class, ``[C]``.
      few: the few classes, of each of which there is the same number of images or one more.
      start: the first index that is free.
      resume_cache: of the evaluation.

    Returns:
      Features of all classes, how many images they are of, and features of the few classes by kind of extractor.
    """
    natural = natural_counts(settings, frequencies, start)
    in_all = extract(counts=natural, folder=resume_cache.folder("natural"))
    alone = natural_counts(settings, np.isin(np.arange(len(frequencies)), few), start + natural.each.sum())
    return in_all, natural, extract(counts=alone, folder=resume_cache.folder("few")).features


def few_scores(
    real: np.ndarray, labels: np.ndarray, fake: np.ndarray, few: Sequence[int], protocol: Protocol
) -> dict[str, Any]:
    """Compute FID and KID of the few classes from features of all real images, and of generated ones of these classes."""
    real = real[np.isin(labels, few)]
    distance, deviation = kid(real=real, fake=fake, subsets=protocol.kid_subsets, subset_size=protocol.kid_subset_size)
    return {"few_fid": frechet_distance(real, fake), "few_kid": distance, "few_kid_std": deviation}
