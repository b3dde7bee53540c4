"""Alarms on synthetic curves: none in a usual run, and one soon after something breaks."""

import json
import math

import numpy as np
import pytest

from noisytwins_jax.config.groups import CollapseConfig
from noisytwins_jax.evaluation.scores import FRECHET
from noisytwins_jax.training.fault_tolerance.collapse_detector import DISTANCES, CollapseDetector

RECORDS, BREAK, EVERY = 600, 450, 8  # records, the one after which it breaks, steps from one to the next
CONFIG = CollapseConfig(action="report")
FIRST, SECOND = "spectra/generator/linear/kernel/0", "spectra/generator/blocks_2/conv1/0"


def usual_run(count=RECORDS, seed=0):
    """Records of a run as BigGAN describes it: σ0 grows all the way, more in one weight; D's loss falls; noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(count) / RECORDS
    noise = lambda scale: np.exp(scale * rng.normal(size=count))  # noqa: E731
    columns = {
        FIRST: (3.0 + 40.0 * t) * noise(0.05),
        SECOND: (2.0 + 3.0 * t) * noise(0.1),
        "spectra/generator/linear/kernel/1": 2.0 * noise(0.1),
        "spectra/discriminator/linear/kernel/0": 5.0 * noise(0.5),  # noisy, and not watched
        "loss/discriminator": 0.1 + np.exp(-3 * t) * noise(0.2),
        "loss/generator": noise(0.5),
    }
    records = [{name: float(x[i]) for name, x in columns.items()} for i in range(count)]
    for i in range(0, count, 25):
        records[i]["evaluation/fid"] = float(300 * np.exp(-4 * t[i]) * np.exp(0.05 * rng.normal()) + 10)
    return records


def alarms(records, config=CONFIG):
    detector = CollapseDetector(config)
    return [alarm for i, record in enumerate(records) if (alarm := detector.update(i * EVERY, record))]


def broken(names, factor):
    """The usual run, in which numbers become `factor(records since then)` times their own."""
    records = usual_run()
    for i in range(BREAK + 1, RECORDS):
        records[i] |= {name: records[i][name] * factor(i - BREAK) for name in names if name in records[i]}
    return records


def test_the_distances_are_those_of_the_evaluations():
    assert {f"evaluation/{name}" for name in FRECHET.values()} == set(DISTANCES)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_said_of_a_usual_run(seed):
    assert alarms(usual_run(2000, seed)) == []


@pytest.mark.parametrize("start", [0.0, 1e-3, 1.0])
def test_steady_growth_is_usual_from_the_first_record(start):
    grows = start + np.arange(3000) / 10
    others = {f"spectra/generator/b{i}/0": 1.0 for i in range(4)}
    assert alarms([{FIRST: float(x)} for x in grows]) == []
    assert alarms([{FIRST: float(x)} for x in start + 0.1 * np.exp(np.arange(3000) / 400)]) == []
    # From nothing to what the others have, at once.
    wakes = np.clip(np.arange(3000) - 100, 0, 20) / 20
    assert alarms([{FIRST: float(x), **others} for x in wakes]) == []
    assert len(alarms([{FIRST: float(x), **others} for x in 2 * wakes])) == 1


def test_the_first_records_may_be_anything():
    rng = np.random.default_rng(0)
    wild = {i: {FIRST: 10.0 ** rng.normal(), "loss/discriminator": 100 * rng.random()} for i in range(40)}
    assert alarms([record | wild.get(i, {}) for i, record in enumerate(usual_run())]) == []


def test_an_explosion():
    (alarm, *_) = alarms(broken([FIRST, SECOND], lambda n: 1.3**n))
    assert BREAK * EVERY < alarm.step <= (BREAK + 12) * EVERY
    assert (BREAK - CONFIG.window) * EVERY <= alarm.good_step <= BREAK * EVERY


def test_an_explosion_that_takes_hundreds_of_records():
    (alarm, *_) = alarms(broken([SECOND], lambda n: math.exp(n / 60)))
    assert BREAK * EVERY < alarm.step <= (BREAK + 120) * EVERY
    # Its first records, where it has grown by less than two deviations of its noise, are as the ones before.
    assert (BREAK - CONFIG.window) * EVERY <= alarm.good_step <= (BREAK + 12) * EVERY


def test_the_description_and_the_good_step():
    config = CollapseConfig(window=8, patience=2)
    flat = [{FIRST: 1.0, SECOND: 2.0}, {FIRST: 1.5, SECOND: 2.5}] * 6
    grown = [{FIRST: 2.0, SECOND: 2.5}, {FIRST: 6.0, SECOND: 9.7}, {FIRST: 7.0, SECOND: 9.75}]
    (alarm,) = alarms([*flat, *grown], config)
    assert alarm.step == 14 * EVERY
    # The last one at which neither of them was above its median: 1.5 of FIRST, 2.5 of SECOND.
    assert alarm.good_step == 11 * EVERY
    assert alarm.sign == (
        "σ0 of generator/linear/kernel went from 1.5 at step 88 to 7 at step 112 (4.7 times), and that of another "
        "weight too"
    )
    (alarm,) = alarms([*flat, *[{FIRST: 1.0, SECOND: 9.7}] * 2], config)
    assert alarm.good_step == 10 * EVERY
    assert alarm.sign == "σ0 of generator/blocks_2/conv1 went from 2 at step 80 to 9.7 at step 104 (4.8 times)"


@pytest.mark.parametrize("usual", [0.02, 0.7])
def test_a_jump_of_the_discriminators_loss(usual):
    rng = np.random.default_rng(1)
    loss = usual * np.exp(0.3 * rng.normal(size=RECORDS))
    loss[BREAK + 1 :] += 2.0
    (alarm, *_) = alarms([{"loss/discriminator": float(x)} for x in loss])
    assert alarm.step == (BREAK + CONFIG.patience) * EVERY
    assert (BREAK - 10) * EVERY <= alarm.good_step <= BREAK * EVERY
    assert alarm.sign.startswith("the discriminator's loss went from ")
    assert "times" not in alarm.sign


def test_a_loss_near_zero_may_grow_many_times():
    rng = np.random.default_rng(3)
    loss = 0.01 * np.exp(0.3 * rng.normal(size=RECORDS))
    loss[BREAK + 1 :] *= 30
    assert alarms([{"loss/discriminator": float(x)} for x in loss]) == []


def test_losses_that_are_noisy_without_bounds():
    """As Wasserstein's: the deviations tell how far is far."""
    rng = np.random.default_rng(2)
    loss = -50 + 20 * rng.normal(size=RECORDS)
    assert alarms([{"loss/discriminator": float(x)} for x in loss]) == []
    loss[BREAK + 1 :] += 400
    (alarm, *_) = alarms([{"loss/discriminator": float(x)} for x in loss])
    assert alarm.step == (BREAK + CONFIG.patience) * EVERY


def test_a_jump_of_the_distance():
    fid = [400, 100, 50, 20, 15, 18, 16, 24, 31]
    (alarm,) = alarms([{"evaluation/fid": float(x)} for x in fid])
    assert alarm == (8 * EVERY, 6 * EVERY, "fid went from 16 at step 48 to 31 at step 64 (1.9 times)")
    assert alarms([{"evaluation/fid": float(x)} for x in fid[:-1]]) == []
    assert alarms([{"evaluation/fid": float(x)} for x in [10, 300, 25, 19]]) == []  # too few to judge by
    assert alarms([{"evaluation/precision": float(x)} for x in fid]) == []


def test_a_spike_shorter_than_the_patience_is_none():
    records = usual_run()
    for i in (300, 301, 400, 401, 403):
        records[i][SECOND] *= 50
        records[i]["loss/discriminator"] += 50
    assert alarms(records) == []
    (alarm,) = alarms(records, CollapseConfig(patience=2))[:1]
    assert alarm.step == 301 * EVERY
    for i in (402, 404):
        records[i]["loss/discriminator"] += 50
    assert alarms(records)[0].step == 402 * EVERY


def test_numbers_may_be_missing_or_not_finite():
    records = broken([FIRST], lambda n: 10.0)
    for i, record in enumerate(records):
        if i % 3:
            record.pop(FIRST)
        if i % 3 == 1:
            record[SECOND] = (None, math.nan, math.inf)[i % 9 // 3]
        if i % 2:
            del record["loss/discriminator"]
    (alarm,) = alarms(records)[:1]
    assert alarm.step == (BREAK + 3 * CONFIG.patience) * EVERY
    assert alarm.good_step <= BREAK * EVERY
    assert alarms([{}, {"kimg": 1.0}, {FIRST: None}]) == []


def test_the_good_step_is_before_everything_that_is_unusual():
    """σ0 is logged seldom, and has grown before the loss, which gives the alarm."""
    records = [{"loss/discriminator": 0.5} | ({FIRST: 1.0} if i % 10 == 0 else {}) for i in range(RECORDS)]
    records[550][FIRST] = 9.0
    for i in range(555, 558):
        records[i]["loss/discriminator"] = 5.0
    (alarm,) = alarms(records, CollapseConfig(window=40))
    assert (alarm.step, alarm.good_step) == (557 * EVERY, 540 * EVERY)
    assert alarm.sign == "the discriminator's loss went from 0.5 at step 4432 to 5 at step 4456"


def test_one_alarm_for_one_collapse():
    assert len(alarms(broken([FIRST], lambda n: 20.0))) == 1  # it stays there
    records = broken([FIRST], lambda n: 20.0)
    for record in records[-20:]:
        record[FIRST] *= 20
    assert [alarm.step > (RECORDS - 20) * EVERY for alarm in alarms(records)] == [False, True]


@pytest.mark.parametrize("stopped", [10, 300, BREAK + 1, BREAK + 2, BREAK + 30])
def test_a_resumed_run_says_what_it_would_have_said(stopped):
    records = broken([FIRST, SECOND, "evaluation/fid"], lambda n: 1.3 ** min(n, 20))
    records[100][SECOND] = None
    steps = [{"step": i * EVERY, **record} for i, record in enumerate(records)]
    logged = json.loads(json.dumps(steps[:stopped]))
    detector = CollapseDetector(CONFIG)
    detector.replay([{"step": i, SECOND: 1e-3, FIRST: 1e-3} for i in range(100)])  # of a state that is given up
    before = detector.replay(logged)
    after = [alarm for record in steps[stopped:] if (alarm := detector.update(record["step"], record))]
    assert before + after == alarms(records)
    assert len(before + after) >= 1
