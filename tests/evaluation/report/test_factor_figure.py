import numpy as np
import pytest

from noisytwins_jax.evaluation.report.factor_figure import factor_figure
from noisytwins_jax.metrics.factors.coverage import factor_metrics, held_out_quality
from noisytwins_jax.metrics.factors.network import Predictions

NAMES = ("x", "hue")


def report(groups: dict) -> dict:
    """Of two classes with ten images each; the network reads x well and hue not at all."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    true, guessed = rng.random((20, 2)), rng.random((20, 2))
    read = np.stack([true[:, 0], guessed[:, 1]], axis=1)
    quality = held_out_quality(labels, true, Predictions(labels, read), NAMES)
    options = {"factor_names": NAMES, "num_classes": 2, "groups": groups}
    fake = np.stack([np.full(20, 0.5), guessed[:, 0]], axis=1)
    generated = factor_metrics(labels, labels, fake, **options)
    real_vs_real = factor_metrics(labels, labels, read, **options)
    return {"protocol": {"factors": list(NAMES), "held_out": quality}, **generated, "real_vs_real": real_vs_real}


@pytest.mark.parametrize(
    ("groups", "shown"),
    [({"head": [0], "medium": [], "tail": [1]}, ["head", "tail"]), ({}, ["all classes"])],
)
def test_bars_of_every_group_and_factor(groups, shown):
    result = report(groups)
    figure = factor_figure(result)
    coverage, entropy = figure.axes
    heights = [bar.get_height() for bar in coverage.patches]
    values = [result["groups"][name] for name in shown] if groups else [result["metrics"]]
    assert heights == [group["factors"][name]["coverage_ratio"] for group in values for name in NAMES]
    assert entropy.patches[0].get_height() == 0  # x is always the same
    assert [text.get_text() for text in coverage.get_legend().get_texts()] == ["real images", *shown]
    good, bad = (tick.get_color() for tick in coverage.get_xticklabels())
    assert good != bad
