import math

import numpy as np
import pytest

from noisytwins_jax.evaluation.report.grid import GridRun, grid_figure, grid_table, write_grid
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.plotting import figure_image

KEYS = ("fid", "ifid", "tail_ifid", "precision", "recall", "tail_recall", "w_ratio", "class_accuracy")


def run(ifid, seed="0", method="noisytwins", protocol=(), **point):
    metrics = dict.fromkeys(KEYS, 0.5) | {"ifid": ifid}
    point = {name: str(value) for name, value in point.items()}
    return GridRun(f"{method}-{point}-{seed}", method, point, seed, {"protocol": dict(protocol), "metrics": metrics})


def curves(figure):
    """Label -> x and y of the first panel's curves."""
    return {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in figure.axes[0].containers}


def test_means_over_seeds_against_the_first_field_a_curve_for_each_value_of_the_second():
    runs = [run(10 * s + w + k, str(k), sigma=s, weight=w) for s in (0.5, 0.1, 0.3) for w in (1, 2) for k in (0, 2)]
    figure = grid_figure(runs)
    want = {f"weight = {w}": [[0.1, 2 + w], [0.3, 4 + w], [0.5, 6 + w]] for w in (1, 2)}
    found = curves(figure)
    assert found.keys() == want.keys()
    for label in want:
        np.testing.assert_allclose(found[label], want[label])
    (segments,) = (bars.get_segments() for bars in figure.axes[0].containers[0].lines[2])
    np.testing.assert_allclose(segments[0], [[0.1, 2], [0.1, 4]])  # 3 ± 1
    assert figure.axes[0].get_xscale() == "linear" and figure.axes[0].get_xlabel() == "sigma"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(want)
    assert figure_image(figure).width > 600


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (["0.1", "0.9"], "linear"),
        (["0.1", "1"], "log"),
        (["0", "0.1", "0.3"], "linear"),
        (["1e-2", "0", "1"], "symlog"),
        (["-1", "1", "100"], "linear"),
        (["0"], "linear"),
    ],
)
def test_axis_is_logarithmic_over_a_decade(values, scale):
    axes = grid_figure([run(1.0, x=value) for value in values]).axes[0]
    assert axes.get_xscale() == scale
    assert [tick.get_text() for tick in axes.get_xticklabels()] == values
    assert axes.get_legend() is None


def test_words_lie_side_by_side_and_methods_are_curves():
    runs = [run(i, method=m, loss=loss) for m in ("a", "b") for i, loss in enumerate(("hinge", "logistic"))]
    assert curves(grid_figure(runs)) == {"a": [[0, 0], [1, 1]], "b": [[0, 0], [1, 1]]}


def test_a_missing_point_is_left_out_and_an_undefined_number_is_a_gap():
    runs = [run(None if s == 1 else s, sigma=s, weight=w) for s in (0, 1, 2) for w in (1, 2) if (s, w) != (2, 2)]
    found = curves(grid_figure(runs))
    np.testing.assert_array_equal(found["weight = 1"], [[0, 0], [1, math.nan], [2, 2]])
    np.testing.assert_array_equal(found["weight = 2"], [[0, 0], [1, math.nan]])


def test_many_curves_have_colours_of_their_own():
    figure = grid_figure([run(1.0, sigma=s, weight=w) for s in (0, 1) for w in range(9)])
    colours = {tuple(np.ravel(bars.lines[0].get_color())) for bars in figure.axes[0].containers}
    assert len(colours) == 9


def test_tables():
    one = grid_table([run(1.25, sigma=s) for s in (0, 1)])
    assert "sigma=1" in one and "1.25" in one and "±" not in one
    several = grid_table([run(1.0 + k, str(k), method, {"k": 5}.items(), sigma=1) for method in "ab" for k in (0, 2)])
    assert "a sigma=1 (2 seeds)" in several and "2.00 ± 1.00" in several


@pytest.mark.parametrize("seeds", [(0,), (0, 2)])
def test_runs_of_different_protocols_are_refused(tmp_path, seeds):
    runs = [run(1.0, str(seed), protocol={"k": k}.items(), sigma=k) for k in (3, 5) for seed in seeds]
    with pytest.raises(UserError, match=r"sigma=3.* and sigma=5.* different protocols \(k: 3 and 5\)"):
        write_grid(tmp_path / "g", runs)
    assert not list(tmp_path.iterdir())


def test_files(tmp_path):
    text = write_grid(tmp_path / "new" / "g", [run(1.0, sigma=0.1, weight=w) for w in (1, 2)])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["g.csv", "g.png", "g.txt"]
    assert str(tmp_path / "new" / "g.csv") in text
    assert (tmp_path / "new" / "g.csv").read_text().splitlines()[0] == "run,method,sigma,weight,seed," + ",".join(KEYS)
    three = write_grid(tmp_path / "three", [run(1.0, a=1, b=2, c=3)])
    assert "No plot" in three and not (tmp_path / "three.png").exists()
    for runs in ([], [run(1.0)], [run(1.0, a=1, b=2, c=3)]):
        with pytest.raises(UserError, match="plot needs"):
            grid_figure(runs)
