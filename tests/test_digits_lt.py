"""The claim of the demo, in less training than the demo: the baseline's W collapses, NoisyTwins' does not."""

import runpy
from pathlib import Path

import pytest

from noisytwins_jax.config import parse_config
from noisytwins_jax.evaluate import sample_w
from noisytwins_jax.metrics.w_space import within_class_variance_ratio
from noisytwins_jax.train import train_to_end

CONFIG = Path(__file__).parent.parent / "configs" / "digits_lt.py"


@pytest.mark.slow
def test_noisytwins_keeps_the_variety_of_w_that_the_baseline_loses(tmp_path):
    ratios = {}
    for method in ("baseline", "noisytwins"):
        config = runpy.run_path(str(CONFIG))["get_config"](method)
        config.total_kimg = 96.0
        run = train_to_end(parse_config(config), tmp_path / method)
        ratios[method], _ = within_class_variance_ratio(*sample_w(parse_config(config), run.state.ema, run.splits))
    assert ratios["baseline"] < 0.4 and ratios["noisytwins"] > 0.5, ratios
