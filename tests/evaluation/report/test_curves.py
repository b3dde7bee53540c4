import math

import numpy as np
import pytest

from noisytwins_jax.evaluation.report.curves import (
    moving_average,
    per_class_figure,
    rows_head_to_tail,
    training_curves,
    w_ratio_figure,
)
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.plotting import figure_image


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]


def test_numbers_are_grouped_into_panels():
    records = [
        {
            "step": s,
            "kimg": s / 10,
            "loss/d/utlo": 2.0,
            "loss/d": 1.0,
            "loss/g": s,
            "logits/real": 0.5,
            "logits/fake": -0.5,
            "odd": 3.0,
        }
        for s in range(5)
    ]
    records[2]["w_ratio"] = 0.4
    figure = training_curves(records)
    assert titles(figure) == [
        "Discriminator logits",
        "W variance within classes / total",
        "Regularisers",
        "Losses",
        "odd",
    ]
    losses = figure.axes[3].get_lines()
    assert [line.get_label() for line in losses] == ["loss/d", "loss/g"]
    np.testing.assert_allclose(losses[1].get_xydata(), [[s / 10, s] for s in range(5)])
    np.testing.assert_allclose(figure.axes[1].get_lines()[0].get_xydata(), [[0.2, 0.4]])
    assert figure_image(figure).width > 600


def test_evaluations_have_panels_of_their_own():
    drawn = ("fid", "fid_clip", "fd_dinov2", "ifid", "ifid_clip", "tail_ifid", "precision", "recall", "tail_recall")
    others = ("ifid_std", "ifid_median", "ifid_classes_used", "kid", "kid_std", "density", "w_ratio", "head_ifid",
              "medium_recall", "tail_w_ratio", "inception_score", "class_recall", "cmmd")  # fmt: skip
    to_scalars = {f"evaluation/{name}": i for i, name in enumerate((*drawn, "class_accuracy", *others))}
    records = [{"step": 1, "kimg": 0.5, "w_ratio": 0.25, "loss/d": 1.0}, {"step": 2, "kimg": 1.0} | to_scalars]
    figure = training_curves(records)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == [
        "W variance within classes / total",
        "Losses",
        "Evaluation: FID and iFID",
        "Evaluation: FID_CLIP and iFID_CLIP",
        "Evaluation: FD_DINOv2",
        "Evaluation: precision and recall",
        "Evaluation: class accuracy",
    ]
    shown = {heading: [line.get_label() for line in axes.get_lines()] for heading, axes in panels.items()}
    assert shown["Evaluation: FID and iFID"] == ["FID", "iFID", "tail iFID"]
    assert shown["Evaluation: precision and recall"] == ["precision", "recall", "tail recall"]
    assert shown["W variance within classes / total"] == ["w_ratio"]
    values = [axes.get_lines()[0].get_xydata().tolist() for axes in list(panels.values())[2:]]
    assert values == [[[1.0, y]] for y in (0, 1, 2, 6, 9)]
    with pytest.raises(UserError, match="no training curves"):
        training_curves([{"step": 1, "evaluation/kid": 1.0}])


def test_legends_lie_below_the_axes_and_curves_differ():
    names = [f"loss/part_{i}" for i in range(9)]
    figure = training_curves([{"step": s, "logits/real": 1.0, **dict.fromkeys(names, 1.0)} for s in (0, 1)])
    figure.draw_without_rendering()
    logits, losses = figure.axes
    assert len({(line.get_color(), line.get_linestyle()) for line in losses.get_lines()}) == 9
    for axes in (logits, losses):
        legend, low = axes.get_legend().get_window_extent(), axes.xaxis.get_tightbbox().y0
        assert legend.y1 <= low and legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y0 >= 0


def test_steps_are_the_axis_where_kimg_is_missing_and_nulls_are_gaps():
    figure = training_curves([{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 2.0}])
    (line,) = figure.axes[0].get_lines()
    np.testing.assert_array_equal(line.get_xydata(), [[1, 1.0], [2, math.nan], [3, 2.0]])
    assert figure.axes[0].get_xlabel() == "step"


def test_long_curves_show_their_moving_average_too():
    figure = training_curves([{"step": s, "loss": float(s % 2)} for s in range(300)])
    raw, smooth = figure.axes[0].get_lines()
    assert np.ptp(raw.get_ydata()) == 1
    assert np.ptp(smooth.get_ydata()[20:-20]) < 0.2


def test_moving_average_skips_gaps():
    values = np.array([1.0, math.nan, 3.0, math.nan, math.nan, math.nan, 5.0])
    np.testing.assert_allclose(moving_average(values, 3), [1, 2, 3, 3, math.nan, 5, 5])


def test_nothing_to_draw():
    for records in ([], [{"step": 1, "kimg": 0.1}]):
        with pytest.raises(UserError, match="no training curves"):
            training_curves(records)
    for evaluation in ({}, {"per_class": [{"class": 0, "ifid": None}]}):
        with pytest.raises(UserError, match="per-class"):
            per_class_figure({"run": evaluation})


def evaluation(classes, scale=1.0, **real_vs_real):
    rows = [
        {"class": c, "name": f"c{c}", "n_train": 10 * (c + 1), "ifid": scale * (c + 1), "recall": 0.1 * (c % 10)}
        for c in range(classes)
    ]
    return {"per_class": rows, "real_vs_real": real_vs_real}


def test_bars_run_from_head_to_tail():
    figure = per_class_figure({"run": evaluation(4, ifid=0.5)})
    ifid, recall = figure.axes
    assert [bar.get_height() for bar in ifid.patches] == [4, 3, 2, 1]
    np.testing.assert_allclose([bar.get_height() for bar in recall.patches], [0.3, 0.2, 0.1, 0])
    assert [label.get_text() for label in ifid.get_xticklabels()] == ["c3\n40", "c2\n30", "c1\n20", "c0\n10"]
    assert [line.get_ydata()[0] for line in ifid.get_lines()] == [0.5]
    assert not recall.get_lines()  # nothing for recall was given


def test_runs_are_side_by_side_and_a_missing_class_is_a_gap():
    other = evaluation(4, 2.0)
    del other["per_class"][3]
    figure = per_class_figure({"a": evaluation(4), "b": other})
    first, second = figure.axes[0].containers
    assert [bar.get_height() for bar in first] == [4, 3, 2, 1]
    np.testing.assert_array_equal([bar.get_height() for bar in second], [math.nan, 6, 4, 2])
    assert all(a.get_x() + a.get_width() <= b.get_x() for a, b in zip(first, second, strict=True))
    assert figure_image(figure).width > 600


def test_many_classes_are_points_with_means_and_rules_between_groups():
    result = evaluation(1010)
    for row in result["per_class"]:
        row["group"] = "tail" if row["class"] < 500 else "head"
    result["per_class"][7]["ifid"] = None
    figure = per_class_figure({"run": result})
    axes = figure.axes[0]
    assert not axes.patches
    points, means, rule = axes.get_lines()
    heights = np.where(np.arange(1010, 0, -1) == 8, math.nan, np.arange(1010, 0, -1))
    np.testing.assert_array_equal(points.get_ydata(), heights)
    assert points.get_linestyle() == "None"
    np.testing.assert_allclose(means.get_ydata()[16:980], heights[16:980])  # a straight line is its own mean
    assert rule.get_xdata()[0] == 509.5 and [text.get_text() for text in axes.texts] == ["head", "tail"]
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks[0] == "1\n10100" and ticks[-1] == "1010\n10"
    assert figure_image(figure).width > 600


def test_clip_has_a_panel_of_its_own_where_it_was_measured():
    result = evaluation(3, ifid=0.5, ifid_clip=0.25, class_recall=0.75)
    for row in result["per_class"]:
        row["ifid_clip"] = 2.0 * row["ifid"]
    figure = per_class_figure({"run": result, "without": evaluation(3)})
    assert [heading.split(" (")[0] for heading in titles(figure)] == [
        "Intra-class FID", "Intra-class FID_CLIP", "Recall within the class"
    ]  # fmt: skip
    assert [bar.get_height() for bar in figure.axes[1].containers[0]] == [6, 4, 2]
    assert [axes.get_lines()[0].get_ydata()[0] for axes in figure.axes] == [0.5, 0.25, 0.75]


def test_order_without_counts_is_by_class_id():
    rows = [{"class": 2}, {"class": 0, "n_train": None}, {"class": 1, "n_train": 3}]
    assert [row["class"] for row in rows_head_to_tail({"per_class": rows})] == [1, 0, 2]


def records(scale, times=(0, 1, 2), **constant):
    return [{"step": 10 * t, "kimg": float(t), "w_ratio": scale * t} | constant for t in times]


def test_w_ratio_is_the_mean_over_seeds_where_all_have_it():
    runs = {
        "a": [records(1.0), [*records(3.0, (0, 2, 3)), {"step": 5, "kimg": 0.5, "loss": 1.0}], [{"step": 1}]],
        "b": [records(0.5, **{"w_ratio/tail": 0.25})],
        "old": [],
    }
    figure = w_ratio_figure(runs, "W")
    assert titles(figure) == ["All classes", "Tail classes"]
    everything, tail = figure.axes
    a, b = everything.get_lines()
    np.testing.assert_array_equal(a.get_xydata(), [[0, 0], [2, 4]])
    np.testing.assert_array_equal(b.get_xydata(), [[0, 0], [1, 0.5], [2, 1]])
    band = everything.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 0 and band[:, 1].max() == 6  # 2 and 6: 4 ± 2
    np.testing.assert_array_equal(tail.get_lines()[0].get_ydata(), [0.25] * 3)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert figure_image(figure).width > 600
    with pytest.raises(UserError, match="has logged its W ratio"):
        w_ratio_figure({"old": [[{"step": 1, "kimg": 1.0, "loss": 1.0}]]})
