import numpy as np
import pytest

from noisytwins_jax.evaluation.report.truncation_figure import truncation_figure, unreached_score
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.plotting import figure_image


def point(psi, **changed):
    numbers = {"fid": 10 + 40 * (1 - psi) ** 2, "inception_score": 20 + 30 * (1 - psi)}
    return {"strength": psi, "n_fake": 100, "precision": 0.9 - 0.3 * psi, "recall": 0.6 * psi} | numbers | changed


def sweep(psis=(1.0, 0.5, 0.75), **changed):
    points = [point(psi) for psi in psis]
    operating = {"best_fid": points[0], "real_inception_score": None, "max_inception_score": points[1]}
    return {"kind": "psi", "real_inception_score": 30.0, "points": points, "operating_points": operating} | changed


def test_curves_run_over_psi_and_operating_points_are_marked():
    figure = truncation_figure(sweep(), note="Protocol x")
    quality, variety = figure.axes
    curve, real, best, highest = quality.get_lines()
    np.testing.assert_allclose(curve.get_xydata(), [[35, 20], [27.5, 12.5], [20, 10]])  # ψ = 0.5, 0.75, 1
    assert list(real.get_xdata()) == [30, 30]
    np.testing.assert_allclose(best.get_xydata(), [[20, 10]])
    np.testing.assert_allclose(highest.get_xydata(), [[35, 20]])
    np.testing.assert_allclose(variety.get_lines()[0].get_xydata(), [[0.3, 0.75], [0.45, 0.675], [0.6, 0.6]])
    assert sorted(text.get_text() for text in quality.texts) == ["0.5", "0.75", "1"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["IS of real images (30)", "best FID (ψ = 1)", "highest IS (ψ = 0.5)"]
    assert figure_image(figure).width > 600


def test_operating_points_at_one_psi_all_show():
    same = point(1.0)
    figure = truncation_figure(
        sweep(operating_points=dict.fromkeys(("best_fid", "real_inception_score", "max_inception_score"), same))
    )
    best, real, highest = figure.axes[1].get_lines()[1:]
    assert best.get_xydata().tolist() == real.get_xydata().tolist() == highest.get_xydata().tolist()
    assert best.get_markerfacecolor() != "none"
    assert real.get_markerfacecolor() == highest.get_markerfacecolor() == "none"  # what is inside shows
    sizes = [line.get_markersize() for line in (best, real, highest)]
    assert sizes[0] <= sizes[1] < sizes[2]


def test_a_score_that_no_truncation_reaches_is_said():
    said = unreached_score(sweep(real_inception_score=60.0))
    assert "60" in said and "from 20 to 35" in said
    reached = sweep()
    reached["operating_points"]["real_inception_score"] = reached["points"][1]
    for nothing in (
        reached,
        sweep(real_inception_score=None),
        {},
        {"real_inception_score": 3.0, "points": [{"strength": 1}]},
    ):
        assert unreached_score(nothing) == ""
    far = truncation_figure(sweep(real_inception_score=500.0)).axes[0]  # would squeeze the sweep to a line
    assert far.get_xlim()[1] < 50


def test_written_values_of_psi_do_not_overlap():
    figure = truncation_figure(sweep(np.round(np.linspace(0.02, 1, 50), 2).tolist()))
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert 5 < len(boxes) < 50
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert {"0.02", "0.04", "1"} <= {text.get_text() for text in axes.texts}  # both ends, and the operating points


def test_panels_without_numbers_are_left_out():
    lacking = [point(0.5, inception_score=None), point(1.0, inception_score=float("nan"))]
    figure = truncation_figure({"points": lacking, "real_inception_score": None})
    assert [axes.get_xlabel().split(" (")[0] for axes in figure.axes] == ["Recall"]
    single = truncation_figure({"points": [point(0.5)]})
    assert [text.get_text() for text in single.axes[0].texts] == ["0.5"]
    for nothing in ({}, {"points": []}, {"points": [{"strength": 1.0, "fid": 3.0}]}):
        with pytest.raises(UserError, match="no numbers to draw"):
            truncation_figure(nothing)
