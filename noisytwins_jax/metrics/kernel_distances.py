"""Kernel distances (squared maximum mean discrepancies) between feature sets: KID and CMMD.

Neither assumes that features are Gaussian, and neither needs as many images as feature dimensions, which suits classes
with few images. Everything is float64 on the host.
"""

from collections.abc import Iterator

import numpy as np

from noisytwins_jax.utils.errors import UserError

_BLOCK_ROWS = 2048  # rows that are held in float64 at a time


def kid(
    *, real: np.ndarray, fake: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Compute the Kernel Inception Distance (Bińkowski et al. 2018): unbiased MMD^2 under the kernel (x.y / d + 1)^3.

    The mean over random subsets of both sets. Subsets are sampled without replacement, each from ``real`` and then from
    ``fake``, as in torch-fidelity with the real images as its first input. Where a set is smaller than ``subset_size``,
    subsets have its size (as in clean-fid; torch-fidelity refuses).

    Args:
        real: [n, d], any float dtype.
        fake: [m, d].
        subsets: number of subsets.
        subset_size: images of each set in a subset.
        seed: of ``numpy.random.RandomState``.

    Returns:
        Mean and population standard deviation over subsets. The mean may be slightly negative: the estimator is
        unbiased, and 0 is its value for equal distributions. Often reported times 1000.

    Raises:
        UserError: if a set has fewer than two images, a value is not finite, the dimensions differ, or ``subsets`` < 1
            or ``subset_size`` < 2.
    """
    real, fake = np.asarray(real), np.asarray(fake)
    _check(real, fake, least=2)
    if subsets < 1 or subset_size < 2:
        raise UserError(
            f"KID over {subsets} subsets of {subset_size} images is not defined: take at least one subset of two."
        )
    size = min(subset_size, len(real), len(fake))
    random = np.random.RandomState(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        x = real[random.choice(len(real), size, replace=False)].astype(np.float64)
        y = fake[random.choice(len(fake), size, replace=False)].astype(np.float64)
        within = _off_diagonal_mean(_cubic(x, x)) + _off_diagonal_mean(_cubic(y, y))
        values[i] = within - 2 * _cubic(x, y).mean()
    return float(values.mean()), float(values.std())


def cmmd(*, real: np.ndarray, fake: np.ndarray, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """Compute the CLIP maximum mean discrepancy (Jayasumana et al. 2024) of CLIP image embeddings.

    ``scale`` times the biased MMD^2 of L2-normalised features under the kernel exp(-|x - y|^2 / (2 sigma^2)); the
    paper's protocol uses embeddings of ViT-L/14 at 336 pixels. It grows with fewer images: report their number too.

    Args:
        real: [n, d], any float dtype, normalised here.
        fake: [m, d].
        sigma: bandwidth of the kernel.
        scale: factor that brings values into a readable range.

    Returns:
        A value >= 0 up to rounding; 0 for equal sets.

    Raises:
        UserError: if a set is empty, a value is not finite, a row is zero, the dimensions differ, or ``sigma`` is not
            positive.
    """
    real, fake = np.asarray(real), np.asarray(fake)
    _check(real, fake, least=1)
    if not sigma > 0:
        raise UserError(f"sigma = {sigma} is no width of a kernel: choose a positive one.")
    within = _mean_gaussian(real, real, sigma) + _mean_gaussian(fake, fake, sigma)
    return float(scale * (within - 2 * _mean_gaussian(real, fake, sigma)))


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1.0
    return base * base * base  # far faster than a power


def _off_diagonal_mean(kernel: np.ndarray) -> float:
    """Compute the mean of the entries off the diagonal."""
    return (kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1))


def _mean_gaussian(x: np.ndarray, y: np.ndarray, sigma: float) -> float:
    """Compute the mean of kernel - 1 over all pairs of rows; the ones cancel in the MMD, and would cost precision."""
    total = 0.0
    for start, block in _normalised_blocks(x):
        for other_start, other in _normalised_blocks(y):
            if x is y and other_start < start:
                continue  # the kernel is symmetric
            weight = 2.0 if x is y and other_start > start else 1.0
            # |x - y|^2 = 2 - 2 x.y for unit vectors; rounding must not make it negative.
            total += weight * np.expm1(np.minimum(block @ other.T - 1.0, 0.0) / sigma**2).sum()
    return total / (len(x) * len(y))


def _normalised_blocks(x: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index of the first row, L2-normalised rows in float64) of successive blocks."""
    for start in range(0, len(x), _BLOCK_ROWS):
        block = x[start : start + _BLOCK_ROWS].astype(np.float64)
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        if not norms.all():
            raise UserError(
                "CMMD is not defined for an embedding that is zero: compute the embeddings again, or leave that image out."
            )
        yield start, block / norms


def _check(real: np.ndarray, fake: np.ndarray, least: int) -> None:
    for name, x in (("real", real), ("generated", fake)):
        if x.ndim != 2:
            raise ValueError(f"{name} features must have shape [n, d], got {x.shape}.")
        if len(x) < least:
            raise UserError(f"A kernel distance needs at least {least} {name} images, got {len(x)}: add some.")
        if not all(np.isfinite(x[i : i + _BLOCK_ROWS]).all() for i in range(0, len(x), _BLOCK_ROWS)):
            raise UserError(f"The {name} features hold NaN or infinity: evaluate an earlier checkpoint.")
    if real.shape[1] != fake.shape[1]:
        raise UserError(
            f"Real and generated features have {real.shape[1]} and {fake.shape[1]} dimensions: "
            "compute both with the same extractor."
        )
