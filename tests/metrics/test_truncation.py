"""BigGAN's three operating points of a sweep."""

import numpy as np

from noisytwins_jax.metrics.inception_score import inception_score
from noisytwins_jax.metrics.protocols import PROTOCOLS
from noisytwins_jax.metrics.truncation import truncation_sweep

EMBEDDED = PROTOCOLS["embedded"]
POINTS = [
    {"psi": 0.5, "fid": 30.0, "inception_score": 9.0},
    {"psi": 1.0, "fid": 12.0, "inception_score": 4.0},
    {"psi": 0.8, "fid": 10.0, "inception_score": 6.0},
]


def logits_of_score(score, classes=10):
    """Logits of as many sure classes as the score, which then is their number."""
    return 100.0 * np.eye(classes, dtype=np.float32)[np.arange(100 * score) % score]


def test_operating_points():
    logits = logits_of_score(7)
    assert np.isclose(inception_score(logits)[0], 7)
    sweep = truncation_sweep(POINTS, logits, "fid", EMBEDDED)
    assert [point["psi"] for point in sweep["points"]] == [1.0, 0.8, 0.5]
    assert np.isclose(sweep["real_inception_score"], 7)
    chosen = {name: point["psi"] for name, point in sweep["operating_points"].items()}
    assert chosen == {"best_fid": 0.8, "real_inception_score": 0.8, "max_inception_score": 0.5}


def test_a_sweep_that_does_not_reach_real_images_says_so():
    sweep = truncation_sweep(POINTS, logits_of_score(10), "fid", EMBEDDED)
    assert sweep["operating_points"]["real_inception_score"] is None


def test_without_logits_there_is_only_the_best_distance():
    points = [{"psi": p["psi"], "fd_dinov2": p["fid"]} for p in POINTS]
    sweep = truncation_sweep(points, np.zeros((5, 0), np.float32), "fd_dinov2", PROTOCOLS["tf1"])
    assert sweep["real_inception_score"] is None and set(sweep["operating_points"]) == {"best_fid"}
    assert sweep["operating_points"]["best_fid"]["psi"] == 0.8
