"""Settings that follow from the data: the rules, and that a method's own choices and the user's stay."""

import numpy as np
import pytest
from methods_program import run_config

from noisytwins_jax.config import flatten
from noisytwins_jax.config.recipe import follow_recipe, followed_settings
from noisytwins_jax.data.long_tail import long_tail_counts
from noisytwins_jax.data.recipe import recipe_table, recommend

FASHION = long_tail_counts(6000, 10, 0.01)
PETALS = long_tail_counts(500, 100, 0.02)
FOLDER = np.full(12, 25)  # 300 pictures


def values(*arguments, **options):
    return {setting.field: setting.value for setting in recommend(*arguments, **options)}


def test_a_small_folder():
    """StyleGAN2-ADA's --cfg=auto at 256 px on one GPU: batch 16, γ .0002·256²/16, EMA 5 kimg with ramp-up .05."""
    found = values(FOLDER, 256)
    assert (found["batch_size"], found["r1.gamma"]) == (16, pytest.approx(0.8192))
    assert (found["ema.kimg"], found["ema.rampup"], found["total_kimg"]) == (5.0, 0.05, 5000.0)
    assert (found["ada.operations"], found["ada.kimg"]) == ("bgc", 100.0)
    assert [found[f"noisytwins.{x}"] for x in ("sigma", "alpha", "weight", "gamma")] == [0.5, 0.0, 0.001, 0.05]


def test_twins_are_those_of_the_published_set_that_is_most_alike():
    twins = [f"noisytwins.{x}" for x in ("sigma", "alpha", "weight", "gamma")]
    assert [values(FASHION, 32)[x] for x in twins] == [0.75, 0.99, 0.01, 0.05]  # CIFAR10-LT
    assert [values(PETALS, 32)[x] for x in twins] == [0.1, 0.0, 0.001, 0.005]  # iNat19


def test_many_images_need_no_augmentation_and_long_training():
    found = values(np.full(10, 20_000), 64)
    assert (found["ada.operations"], found["total_kimg"], found["batch_size"]) == ("", 25_000.0, 64)


def test_trained_networks_need_less():
    found = values(FASHION, 32, pretrained=True)
    assert (found["total_kimg"], found["ada.kimg"], found["ema.rampup"]) == (1000.0, 100.0, None)


def test_the_batch_is_divided_where_memory_is_small():
    assert "device_batch" not in values(FOLDER, 256)
    assert values(FOLDER, 512, memory=8e9)["device_batch"] == 4 and values(FOLDER, 512, memory=8e9)["remat"]
    assert values(FOLDER, 512, memory=80e9)["device_batch"] == 0 and "remat" not in values(FOLDER, 512, memory=80e9)


def test_what_was_given_or_is_off_in_the_method_stays():
    plain = run_config("image_folder:sg2")
    assert plain.auto
    config, settings = follow_recipe(plain, FASHION, given=["total_kimg"])
    fields, before = flatten(config), flatten(plain)
    assert (config.ada.operations, config.noisytwins.sigma, config.noisytwins.weight) == ("", 0, 0)
    assert config.total_kimg == plain.total_kimg and config.batch_size == 64
    changed = {name for name in fields if fields[name] != before[name]}
    assert changed <= {setting.field for setting in settings} == {"batch_size", "r1.gamma", "ema.kimg", "ema.rampup"}


def test_following_twice_is_following_once():
    once, _ = follow_recipe(run_config("image_folder:noisytwins"), FASHION)
    assert follow_recipe(once, FASHION)[0] == once
    assert {s.field: s.value for s in followed_settings(once, FASHION)} == values(FASHION, 64)


def test_the_table_has_every_rule_and_its_source():
    lines = recipe_table(recommend(FOLDER, 64)).splitlines()
    assert lines[0].split() == ["setting", "value", "rule", "source"]
    assert (
        lines[2].startswith("config.r1.gamma") and lines[2].endswith("StyleGAN2-ADA") and "pixels / batch" in lines[2]
    )
    assert len(lines) == 1 + len(recommend(FOLDER, 64))


def test_smoke_runs_keep_their_own_numbers():
    assert not run_config("image_folder:noisytwins,smoke").auto
