"""What the README says of the digits, in less training than there."""

import json
import runpy

import pytest
from paths import ROOT

from noisytwins_jax.config import parse_config
from noisytwins_jax.evaluation.sheets import sample_w
from noisytwins_jax.metrics.w_space import within_class_variance_ratio
from noisytwins_jax.train import train, train_to_end
from noisytwins_jax.training.fault_tolerance.collapse_log import read_collapses

CONFIG = ROOT / "configs" / "digits_lt.py"


@pytest.mark.slow
def test_noisytwins_keeps_the_variety_of_w_that_the_baseline_loses(tmp_path):
    ratios = {}
    for method in ("baseline", "noisytwins"):
        config = runpy.run_path(str(CONFIG))["get_config"](method)
        config.total_kimg = 96.0
        run = train_to_end(parse_config(config), tmp_path / method)
        ratios[method], _ = within_class_variance_ratio(*sample_w(parse_config(config), run.state.ema, run.splits))
    assert ratios["baseline"] < 0.4 and ratios["noisytwins"] > 0.5, ratios


@pytest.mark.slow
def test_a_provoked_collapse_is_noticed_and_made_good(tmp_path):
    """The generator's learning rate is 40 times what it was from step 800 on: every class ends in one image, unless
    training goes back.
    """
    recalls = {}
    for action in ("report", "return"):
        config = runpy.run_path(str(CONFIG))["get_config"]("biggan")
        config.update(total_kimg=48.0, log_interval_kimg=0.32, checkpoint_interval_kimg=4.0)
        config.orthogonal.weight = 0.0  # it would hold the singular values
        config.spectra.interval = 10
        config.intervention.update(step=800, generator_lr=40.0)
        config.collapse.update(action=action, window=60, sigma_growth=2.0, generator_lr=1 / 40)
        report = train(parse_config(config), tmp_path / action)
        (record,) = read_collapses(tmp_path / action)
        assert record["good_step"] < 800 < record["step"] < 1000 and "σ0 of generator/" in record["sign"]
        assert record["kept"] <= record["good_step"] and record["returned"] == (action == "return")
        assert (tmp_path / action / "checkpoints" / str(record["kept"])).is_dir()
        page = report.read_text()
        assert "Singular values of every weight" in page and ("Given up: " in page) == record["returned"]
        recalls[action] = json.loads((tmp_path / action / "evaluation.json").read_text())["metrics"]["recall"]
    assert recalls["report"] < 0.02 and recalls["return"] > 0.08, recalls
