"""Inception Score (Salimans et al. 2016): exp of the mean KL divergence between p(y | x) and p(y)."""

import itertools

import numpy as np
import scipy.special

from noisytwins_jax.utils.errors import UserError


def inception_score(logits: np.ndarray, splits: int = 1, shuffle_seed: int | None = None) -> tuple[float, float | None]:
    """Compute the Inception Score of generated images, in float64.

    Scores of different protocols must not be compared:

    * NoisyTwins and StudioGAN: logits with the bias of the last layer, ``splits=1``, in the order of generation.
    * torch-fidelity: logits without that bias ("unbiased"), ``splits=10``, ``shuffle_seed=2020``.

    Args:
        logits: [n, k], any float dtype.
        splits: number of parts of successive images whose scores are averaged; part i ends before image
            (i + 1) n // splits.
        shuffle_seed: of ``numpy.random.RandomState``, which permutes the images first; None keeps their order.

    Returns:
        Mean over parts, between 1 and k, and population standard deviation, None for a single part.

    Raises:
        UserError: if there are fewer images than splits, ``splits`` < 1, or a value is not finite.
        ValueError: if ``logits`` is not [n, k] with k >= 1.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(f"logits must have shape [n, k] with k >= 1, got {logits.shape}.")
    if not 1 <= splits <= len(logits):
        raise UserError(
            f"The Inception Score of {len(logits)} images cannot be taken in {splits} splits: give at least one split, "
            "and an image for each."
        )
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad:
        raise UserError(
            f"The logits hold NaN or infinity for {bad} of {len(logits)} images: the generator or the extractor has "
            "diverged, so evaluate an earlier checkpoint."
        )
    order = np.arange(len(logits))
    if shuffle_seed is not None:
        order = np.random.RandomState(shuffle_seed).permutation(len(logits))
    bounds = [i * len(logits) // splits for i in range(splits + 1)]
    scores = [_score(logits[order[start:stop]].astype(np.float64)) for start, stop in itertools.pairwise(bounds)]
    return float(np.mean(scores)), float(np.std(scores)) if splits > 1 else None


def _score(logits: np.ndarray) -> float:
    # The logarithm of a softmax would be -infinity where the softmax underflows, and its product with 0 is NaN.
    log_p = scipy.special.log_softmax(logits, axis=1)
    log_mean = scipy.special.logsumexp(log_p, axis=0, keepdims=True) - np.log(len(logits))
    return np.exp((np.exp(log_p) * (log_p - log_mean)).sum(axis=1).mean())
