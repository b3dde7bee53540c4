import pytest

from noisytwins_jax.evaluation.report.memorisation_figure import memorisation_figure
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.plotting import figure_image


def distances(shift):
    quantiles = {str(share): shift + 10 * share for share in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)}
    return {"median": shift + 5.0, "quantiles": quantiles}


def part(**changed):
    return {
        "auth_pct": 62.5,
        "n_train": 9,
        "n_fake": 50,
        "fake_to_train": distances(3.0),
        "held_out_to_train": distances(4.0),
        "share_nearer_than_held_out": 0.125,
    } | changed


def test_bars_span_the_quantiles_and_the_nearest_hundredth_is_marked():
    figure = memorisation_figure({"overall": part(), "within_class": part(auth_pct=None)}, note="Protocol x")
    overall, within = figure.axes
    assert [tick.get_text() for tick in overall.get_yticklabels()] == ["held-out real", "generated"]
    spans = [bar.get_segments()[0] for bar in overall.collections]
    assert [(round(span[0, 0], 9), round(span[1, 0], 9), span[0, 1]) for span in spans] == [
        (4.1, 13.9, 0), (4.5, 13.5, 0), (6.5, 11.5, 0), (3.1, 12.9, 1), (3.5, 12.5, 1), (5.5, 10.5, 1)
    ]  # fmt: skip
    held_out, generated, dashed = overall.get_lines()
    assert held_out.get_xydata().tolist() == [[9, 0]] and generated.get_xydata().tolist() == [[8, 1]]
    assert list(dashed.get_xdata()) == [4.1, 4.1]
    assert "62.5%" in overall.get_title(loc="right") and "12.5%" in overall.get_title(loc="right")
    assert "AuthPct" not in within.get_title(loc="right")
    assert figure_image(figure).width > 600


def test_missing_parts_are_left_out():
    alone = part(held_out_to_train=None, share_nearer_than_held_out=None)
    (axes,) = memorisation_figure({"overall": alone, "within_class": None}).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["generated"]
    assert len(axes.get_lines()) == 1  # no dashed line
    coarse = part(fake_to_train={"quantiles": {"0.25": 1.0, "0.75": None}, "median": 2.0})
    (axes,) = memorisation_figure({"within_class": coarse}).axes
    assert len(axes.collections) == 3  # of the held-out images; the other has no whole interval
    for nothing in ({}, {"overall": None}, {"overall": part(fake_to_train=None)}):
        with pytest.raises(UserError, match="no distances"):
            memorisation_figure(nothing)
