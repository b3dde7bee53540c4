"""Fréchet distance between two Gaussians fitted to feature sets (Heusel et al. 2017, equation 6).

    FD = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2),    S with n - 1 in the denominator.

For any factors S_i = L_i L_i^T the last trace equals the nuclear norm (sum of singular values) of L_1^T L_2. This form
needs no matrix square root and stays accurate when a covariance is singular, as it is for every class with fewer
images than feature dimensions: no square root of an eigenvalue at rounding level is ever taken.

Cost of 50,000 images at d = 2048, in seconds of one core (AVX-512): 5 for the sums over each set, 1.5 for each factor,
3 for the singular values; the memory beyond the features is a few matrices of 34 MB.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import scipy.linalg

from noisytwins_jax.utils.errors import UserError

_BLOCK_ELEMENTS = 1 << 22  # rows are converted to float64 32 MiB at a time
_QR_ELEMENTS = 1 << 24  # sets of up to so many values (128 MiB in float64) go through QR whatever their shape


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """Mean and covariance factor of a feature set, float64.

    Attributes:
        mean: [d].
        factor: L, [d, r], with covariance S = L L^T. r = n for 1 < n <= d (the centred rows themselves, over
            sqrt(n - 1)), r = d for larger sets, less where the covariance of a very large one is singular, and r = 0
            for a single image (S = 0).
        count: n, the number of images.
    """

    mean: np.ndarray
    factor: np.ndarray
    count: int


def feature_statistics(features: np.ndarray) -> FeatureStatistics:
    """Compute mean and covariance factor of features [n, d] (any float dtype, computed in float64).

    For small sets, and those with few more images than dimensions, the covariance is never formed: the result is accurate
    to rounding even when it is singular. Large sets are summed in blocks and never held in float64 as a whole.

    Raises:
        UserError: if the set is empty or has a value that is not finite.
        ValueError: if ``features`` is not two-dimensional.
    """
    x = np.asarray(features)
    if x.ndim != 2:
        raise ValueError(f"features must have shape [n, d], got {x.shape}.")
    count, dim = x.shape
    if count == 0:
        raise UserError("The feature set is empty: the Fréchet distance needs at least one image on each side.")
    _check_finite(x)
    if count > 4 * dim and x.size > _QR_ELEMENTS:
        mean, covariance = _mean_and_covariance(x)
        return FeatureStatistics(mean, _factor(covariance), count)
    x = x.astype(np.float64)
    mean = x.mean(axis=0)
    if count == 1:
        return FeatureStatistics(mean, np.zeros((dim, 0)), count)
    x -= mean
    x /= np.sqrt(count - 1)
    # The triangular QR factor is a covariance factor as well, without squaring the condition number as S itself does.
    factor = x.T if count <= dim else np.asarray(np.linalg.qr(x, mode="r")).T
    return FeatureStatistics(mean, factor, count)


def frechet_distance(real: np.ndarray | FeatureStatistics, fake: np.ndarray | FeatureStatistics) -> float:
    """Compute the Fréchet distance between two feature sets, each given as features [n, d] or as their statistics.

    A set of one image has zero covariance. The result is >= 0 and in squared feature units.

    Raises:
        UserError: if a set is empty, has a value that is not finite, or the dimensions differ.
    """
    first = real if isinstance(real, FeatureStatistics) else feature_statistics(real)
    second = fake if isinstance(fake, FeatureStatistics) else feature_statistics(fake)
    if first.mean.shape != second.mean.shape:
        raise UserError(
            f"The two feature sets have {first.mean.size} and {second.mean.size} dimensions: "
            "compute both with the same extractor."
        )
    cross = first.factor.T @ second.factor
    nuclear_norm = scipy.linalg.svdvals(cross).sum() if cross.size else 0.0
    mean_term = np.sum((first.mean - second.mean) ** 2)
    traces = np.sum(first.factor**2) + np.sum(second.factor**2)
    return max(float(mean_term + traces - 2.0 * nuclear_norm), 0.0)  # rounding may leave -1e-13 for equal sets


def _mean_and_covariance(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean [d] and covariance [d, d] of many rows from float64 sums over blocks.

    Both are summed relative to the first block's mean, which lies near the mean of all: sums of raw squares would lose
    the digits that a common offset takes.
    """
    count, dim = x.shape
    total, squares, shift = np.zeros(dim), np.zeros((dim, dim)), None
    for block in _blocks(x):
        block = block.astype(np.float64)
        shift = block.mean(axis=0) if shift is None else shift
        block -= shift
        total += block.sum(axis=0)
        squares += block.T @ block
    offset = total / count
    return shift + offset, (squares - np.outer(total, offset)) / (count - 1)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """Compute L [d, r] with L L^T = covariance, r <= d.

    Eigenvalues at rounding level are dropped: they are noise, whose square root would not be small.
    """
    eigenvalues, vectors = scipy.linalg.eigh(covariance, driver="evd")
    keep = eigenvalues > len(covariance) * np.finfo(np.float64).eps * eigenvalues[-1]
    return vectors[:, keep] * np.sqrt(eigenvalues[keep])


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    """Yield successive blocks of rows of x [n, d], a few thousand each."""
    step = max(1, _BLOCK_ELEMENTS // max(1, x.shape[1]))
    return (x[start : start + step] for start in range(0, len(x), step))


def _check_finite(x: np.ndarray) -> None:
    """Check for NaN and infinity before any factorisation: LAPACK can take minutes over a matrix of NaN."""
    bad = sum(int((~np.isfinite(block)).any(axis=1).sum()) for block in _blocks(x))
    if bad:
        raise UserError(
            f"The features hold NaN or infinity in {bad} of {len(x)} rows: the generator or the extractor has "
            "diverged, so evaluate an earlier checkpoint."
        )
