"""Fréchet distance between two Gaussians fitted to feature sets (Heusel et al. 2017, equation 6).

    FD = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2),    S with n - 1 in the denominator.

For any factors S_i = L_i L_i^T the last trace equals the nuclear norm (sum of singular values) of L_1^T L_2. This form
needs no matrix square root and stays accurate when a covariance is singular, as it is for every class with fewer
images than feature dimensions: no eigenvalue at rounding level is ever put through a square root.
"""

import dataclasses

import numpy as np
import scipy.linalg

from noisytwins_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and covariance factor of a feature set, float64.

    Attributes:
        mean: [d].
        factor: L, [d, r], with covariance S = L L^T. r = n for n <= d (the centred rows themselves, over
            sqrt(n - 1)), r = d otherwise, r = 0 for a single image (S = 0).
        count: n, the number of images.
    """

    mean: np.ndarray
    factor: np.ndarray
    count: int


def moments(features: np.ndarray) -> Moments:
    """Fits mean and covariance factor to features [n, d] (any float dtype, computed in float64).

    Raises:
        UserError: if the set is empty or has a value that is not finite.
        ValueError: if ``features`` is not two-dimensional.
    """
    x = np.asarray(features, np.float64)
    if x.ndim != 2:
        raise ValueError(f"features must have shape [n, d], got {x.shape}.")
    count, dim = x.shape
    if count == 0:
        raise UserError("The feature set is empty: the Fréchet distance needs at least one image on each side.")
    _check_finite(x)
    mean = x.mean(axis=0)
    if count == 1:
        return Moments(mean, np.zeros((dim, 0)), count)
    centred = (x - mean) / np.sqrt(count - 1)
    # The triangular QR factor is a covariance factor as well, without squaring the condition number as S itself does.
    factor = centred.T if count <= dim else np.linalg.qr(centred, mode="r").T
    return Moments(mean, factor, count)


def moments_from_covariance(mean: np.ndarray, covariance: np.ndarray, count: int) -> Moments:
    """Moments from stored statistics: mean [d], covariance [d, d] (n - 1 denominator), number of images.

    Less accurate than :func:`moments` when the covariance is singular (about 1e-7 relative).

    Raises:
        UserError: if a value is not finite.
    """
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    _check_finite(mean[None])
    _check_finite(covariance)
    eigenvalues, vectors = scipy.linalg.eigh(covariance)
    return Moments(mean, vectors * np.sqrt(np.clip(eigenvalues, 0.0, None)), count)


def frechet_distance(real: np.ndarray | Moments, fake: np.ndarray | Moments) -> float:
    """Fréchet distance between two feature sets, each given as features [n, d] or as :class:`Moments`.

    A set of one image has zero covariance. The result is >= 0 and in squared feature units.

    Raises:
        UserError: if a set is empty, has a value that is not finite, or the dimensions differ.
    """
    first = real if isinstance(real, Moments) else moments(real)
    second = fake if isinstance(fake, Moments) else moments(fake)
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


def _check_finite(x: np.ndarray) -> None:
    """Before any factorisation: LAPACK can take minutes over a matrix of NaN before it gives up."""
    bad = int((~np.isfinite(x)).any(axis=1).sum())
    if bad:
        raise UserError(
            f"The features hold NaN or infinity in {bad} of {len(x)} rows: the generator or the extractor has "
            "diverged, so evaluate an earlier checkpoint."
        )
