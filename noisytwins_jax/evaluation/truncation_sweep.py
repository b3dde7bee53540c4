"""Summary of a sweep over truncation with the three operating points of BigGAN (Brock et al. 2019, section 4.2, table 1)."""

from collections.abc import Mapping, Sequence
from typing import Any


def truncation_sweep(
    points: Sequence[Mapping[str, Any]], real_score: float | None, distance: str, kind: str = "psi"
) -> dict[str, Any]:
    """Sort the points of a sweep from no truncation to the strongest, and select BigGAN's three operating points.

    Args:
      points: ``{"strength", "n_fake", …}`` with the pooled metrics at each strength.
      real_score: the Inception Score of the real images; None where the headline extractor has no logits.
      distance: key of the headline's Fréchet distance.
      kind: of the truncation, one of `models.latents.TRUNCATIONS`.

    Returns:
      ``{"kind", "real_inception_score", "points", "operating_points": {"best_fid": a point, "real_inception_score": the
      point whose Inception Score is nearest that of the real images, None if the sweep does not reach it,
      "max_inception_score": a point}}``; without logits, only the best FID is a point.
    """
    ordered = sorted((dict(point) for point in points), key=lambda point: -point["strength"])
    best: dict[str, Any] = {"best_fid": min(ordered, key=lambda point: point[distance])}
    if real_score is not None:
        scores = [point["inception_score"] for point in ordered]
        nearest = min(ordered, key=lambda point: abs(point["inception_score"] - real_score))
        best["real_inception_score"] = nearest if min(scores) <= real_score <= max(scores) else None
        best["max_inception_score"] = max(ordered, key=lambda point: point["inception_score"])
    return {"kind": kind, "real_inception_score": real_score, "points": ordered, "operating_points": best}
