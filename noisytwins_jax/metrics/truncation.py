"""A sweep over truncation, and the three points of it that BigGAN reports (Brock et al. 2019, section 4.2, table 1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from noisytwins_jax.metrics.generated import Generated
from noisytwins_jax.metrics.inception_score import inception_score
from noisytwins_jax.metrics.protocols import Protocol
from noisytwins_jax.metrics.scores import pooled_scores
from noisytwins_jax.metrics.settings import Settings


def truncation_point(
    psi: float, generated: Generated, real: Mapping[str, np.ndarray], headline: str, settings: Settings
) -> dict[str, Any]:
    """All pooled numbers at one truncation."""
    scores = pooled_scores(real, generated.features, generated.logits, headline, settings.k, settings.protocol)
    return {"psi": float(psi), "n_fake": len(generated.labels), **scores}


def truncation_sweep(
    points: Sequence[Mapping[str, Any]], real_logits: np.ndarray, headline_fid: str, protocol: Protocol
) -> dict[str, Any]:
    """The points of a sweep, from no truncation to the strongest, and BigGAN's three operating points.

    Args:
      points: of `truncation_point`.
      real_logits: the headline extractor's, of the real images ``[n, c]``; c = 0 where it has none.
      headline_fid: name of the headline's distance.
      protocol: of the Inception Score.

    Returns:
      ``{"kind", "real_inception_score", "points", "operating_points": {"best_fid": a point, "real_inception_score": the
      point whose Inception Score is nearest that of the real images, None if the sweep does not reach it,
      "max_inception_score": a point}}``; without logits, only the best FID is a point.
    """
    ordered = sorted((dict(point) for point in points), key=lambda point: -point["psi"])
    best: dict[str, Any] = {"best_fid": min(ordered, key=lambda point: point[headline_fid])}
    score = None
    if real_logits.shape[1]:
        score, _ = inception_score(real_logits, splits=protocol.splits, shuffle_seed=protocol.shuffle_seed)
        scores = [point["inception_score"] for point in ordered]
        reached = min(scores) <= score <= max(scores)
        nearest = min(ordered, key=lambda point: abs(point["inception_score"] - score))
        best["real_inception_score"] = nearest if reached else None
        best["max_inception_score"] = max(ordered, key=lambda point: point["inception_score"])
    return {"kind": "psi in W", "real_inception_score": score, "points": ordered, "operating_points": best}
