import math

import numpy as np
import pytest

from noisytwins_jax.evaluation.report.singular_values_figure import singular_values_figure, sort_layers
from noisytwins_jax.models import singular_values
from noisytwins_jax.utils.plotting import figure_image


def record(step, values, kimg=True, network="generator", **others):
    return {"step": step, **({"kimg": step / 10} if kimg else {}), **others} | {
        name: None if value is None else float(value)
        for name, value in singular_values.to_metrics(values, network).items()
    }


@pytest.fixture
def records():
    made = []
    for step in range(0, 100, 10):
        exploding = [1.0 + step / 50 + (8.0 if step >= 80 else 0.0), 1.0, 0.5]
        made.append(
            record(step, {"linear/weight": exploding, "blocks_0/conv1/weight": [2.0, 1.6], "output_conv/weight": [3.0]})
            | record(step, {"blocks_0/conv1/weight": [1.5, 1.0]}, network="discriminator")
        )
        made.append({"step": step + 5, "kimg": step / 10 + 0.5, "loss/generator": 1.0})
    return made


def curves(axes):
    return [line.get_xydata() for line in axes.get_lines()]


def test_a_curve_for_every_weight_of_each_network(records):
    figure = singular_values_figure(records)
    titles = {axes.get_title(loc="left"): axes for axes in figure.axes}
    first, second = titles["Generator: σ0 of every weight"], titles["Generator: σ0/σ1"]
    linear, conv, output = curves(first)  # first layer to last
    kimg = np.arange(10.0)
    np.testing.assert_allclose(linear, np.stack([kimg, 1 + kimg / 5 + 8 * (kimg >= 8)], axis=1))
    np.testing.assert_allclose(conv, np.stack([kimg, np.full(10, 2.0)], axis=1))
    np.testing.assert_allclose(output, np.stack([kimg, np.full(10, 3.0)], axis=1))
    ratios = curves(second)
    np.testing.assert_allclose(ratios[0], linear)
    np.testing.assert_allclose(ratios[1], np.stack([kimg, np.full(10, 1.25)], axis=1))
    assert np.isnan(ratios[2][:, 1]).all()  # it has no second value
    assert first.get_yscale() == second.get_yscale() == "log"
    assert second.get_xlabel() == "thousand real images shown"
    colours = [line.get_color() for line in first.get_lines()]
    assert len({tuple(colour) for colour in colours}) == 3
    assert len(curves(titles["Discriminator: σ0 of every weight"])) == 1
    assert figure_image(figure).width > 600


def test_the_layers_that_grew_most_are_named(records):
    words = [axes for axes in singular_values_figure(records).axes if axes.get_legend()]
    generator = [text.get_text() for text in words[0].get_legend().get_texts()]
    assert generator[0] == "linear (× 10.8)"
    assert set(generator[1:]) == {"blocks_0/conv1 (× 1)", "output_conv (× 1)"}


def test_one_network_alone_over_steps():
    records = [record(step, {"a/weight": [2.0 + step, 1.0]}, kimg=False, network="discriminator") for step in (0, 7)]
    figure = singular_values_figure(records)
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == [
        "Discriminator: σ0 of every weight",
        "Discriminator: σ0/σ1",
    ]
    assert figure.axes[1].get_xlabel() == "step"
    np.testing.assert_allclose(curves(figure.axes[0])[0], [[0, 2], [7, 9]])


def test_marks_stand_at_their_steps(records):
    figure = singular_values_figure(records, marks={82.5: "collapse"})
    marked = [axes for axes in figure.axes if axes.get_title(loc="left").startswith("Generator")]
    for axes in marked:
        assert list(axes.get_lines()[-1].get_xdata()) == [8.25, 8.25]
    assert [text.get_text() for text in marked[0].texts] == ["collapse"]


def test_numbers_that_a_logarithm_cannot_show_are_gaps():
    values = [2.0, None, math.nan, 0.0, 3.0]
    records = [record(step, {"w": [value, 1.0], "dead": [0.0, 0.0]}) for step, value in enumerate(values)]
    figure = singular_values_figure(records)
    shown = dict(enumerate(curves(figure.axes[0])))
    np.testing.assert_array_equal(shown[1][:, 1], [2, np.nan, np.nan, np.nan, 3])
    assert np.isnan(shown[0]).any(axis=1).all()
    assert figure_image(figure).height > 300


def test_rounding_does_not_look_like_change():
    records = [record(step, {"w": [1.0 + 1e-7 * (step % 2)]}) for step in range(20)]
    low, high = singular_values_figure(records).axes[0].get_ylim()
    assert high / low > 2


def test_without_singular_values_there_is_no_figure():
    assert singular_values_figure([]) is None
    assert singular_values_figure([{"step": 1, "loss/generator": 2.0}]) is None


def test_order_of_layers():
    stylegan2 = ["synthesis/b16/conv0", "synthesis/b4/conv1", "synthesis/b8/conv0", "mapping/fc1", "mapping/embed"]
    assert sort_layers(stylegan2, "generator") == [stylegan2[i] for i in (4, 3, 1, 2, 0)]
    discriminator = ["b4/conv", "output", "b16/conv0", "b8/conv0", "b32/fromrgb", "mapping/fc0"]
    assert sort_layers(discriminator, "discriminator") == [discriminator[i] for i in (4, 2, 3, 0, 5, 1)]
    biggan = ["blocks_10/conv1", "blocks_2/conv1", "blocks_2/bn1/gain", "linear", "output_conv", "shared"]
    assert sort_layers(biggan, "generator") == [biggan[i] for i in (3, 5, 2, 1, 0, 4)]
    biggan = ["blocks_1/conv1", "blocks_0/conv1", "embed", "linear", "input_conv"]
    assert sort_layers(biggan, "discriminator") == [biggan[i] for i in (4, 1, 0, 2, 3)]
