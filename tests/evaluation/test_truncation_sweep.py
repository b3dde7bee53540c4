"""BigGAN's three operating points of a sweep."""

import numpy as np

from noisytwins_jax.evaluation.truncation_sweep import truncation_sweep

POINTS = [
    {"strength": 0.5, "fid": 30.0, "inception_score": 9.0},
    {"strength": 1.0, "fid": 12.0, "inception_score": 4.0},
    {"strength": 0.8, "fid": 10.0, "inception_score": 6.0},
]


def test_operating_points():
    sweep = truncation_sweep(POINTS, 7.0, "fid")
    assert [point["strength"] for point in sweep["points"]] == [1.0, 0.8, 0.5]
    assert np.isclose(sweep["real_inception_score"], 7)
    chosen = {name: point["strength"] for name, point in sweep["operating_points"].items()}
    assert chosen == {"best_fid": 0.8, "real_inception_score": 0.8, "max_inception_score": 0.5}


def test_a_sweep_that_does_not_reach_real_images_says_so():
    sweep = truncation_sweep(POINTS, 10.0, "fid")
    assert sweep["operating_points"]["real_inception_score"] is None


def test_without_logits_there_is_only_the_best_distance():
    points = [{"strength": p["strength"], "fd_dinov2": p["fid"]} for p in POINTS]
    sweep = truncation_sweep(points, None, "fd_dinov2")
    assert sweep["real_inception_score"] is None and set(sweep["operating_points"]) == {"best_fid"}
    assert sweep["operating_points"]["best_fid"]["strength"] == 0.8
