"""The training loop: when it logs, saves and stops; and one whole run."""

import json
import math
import os
import signal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from noisytwins_jax import train as train_module
from noisytwins_jax.checkpoint import Checkpoints
from noisytwins_jax.data import load_splits
from noisytwins_jax.data.pipeline import training_batches
from noisytwins_jax.errors import UserError
from noisytwins_jax.evaluate import evaluate
from noisytwins_jax.logs import MetricsWriter, read_metrics
from noisytwins_jax.train import interval, mean_metrics, run_loop, train

KIMG = tiny_run.BATCH / 1000  # a step


@flax.struct.dataclass
class State:
    """What the loop knows of a state."""

    steps: jax.Array
    ema: dict


ABSTRACT = State(jax.ShapeDtypeStruct((), jnp.int32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])), {})


class Counting:
    """Programs whose state counts steps; `events` are called before a step by its number, from 0."""

    def __init__(self, **events):
        self.events = {int(name.lstrip("at")): event for name, event in events.items()}
        self.loss = 1.0
        self.done = 0

    def advance(self, state, step, batches):
        next(batches)
        if step in self.events:
            self.events[step](self)
        metrics = [{"loss/generator": jnp.float32(self.loss)}, {"loss/discriminator": jnp.float32(step)}]
        self.done = step + 1
        return state.replace(steps=state.steps + 1), metrics


def loop(workdir, programs, start=0, w_ratio=None, **changes):
    """Runs the loop with these programs; returns the last state."""
    config = tiny_run.tiny_config(**{"w_ratio_interval_kimg": 0.0, **changes})
    splits = load_splits(config.data.name, resolution=config.data.resolution, **config.data.options)
    batches = training_batches(splits.train, batch_size=config.batch_size, seed=0, mirror=False)
    state = State(jnp.int32(start), {})
    with batches, Checkpoints(workdir, writable=True) as checkpoints:
        writer = MetricsWriter(workdir)
        return run_loop(config, state, start, programs, w_ratio, batches, checkpoints, writer, splits, workdir)


def saved(workdir):
    """Steps that were saved, and what is in the newest one."""
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.steps(), checkpoints.restore(ABSTRACT)


def test_logs_at_its_interval_and_whenever_it_saves(tmp_path):
    changes = {"total_kimg": 12 * KIMG, "log_interval_kimg": 5 * KIMG, "checkpoint_interval_kimg": 4 * KIMG}
    state = loop(tmp_path, Counting(), **changes)
    assert state.steps == 12
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records] == [4, 5, 8, 10, 12]
    # Means over the steps since the record before.
    assert [record["loss/discriminator"] for record in records] == [1.5, 4.0, 6.0, 8.5, 10.5]
    assert [record["kimg"] for record in records] == [record["step"] * KIMG for record in records]
    steps, restored = saved(tmp_path)
    assert steps == [8, 12]
    assert restored.data == {"next_index": 12}
    assert restored.state.steps == 12


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, capsys, number):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as exit_info:
        loop(tmp_path, Counting(at6=lambda _: os.kill(os.getpid(), number)))
    assert exit_info.value.code == 128 + number
    assert f"Stopped by {number.name} at step 7; saved. Run the same command again" in capsys.readouterr().err
    assert signal.getsignal(number) is before
    _, restored = saved(tmp_path)
    assert (restored.step, restored.data, restored.state.steps) == (7, {"next_index": 7}, 7)
    assert read_metrics(tmp_path)[-1]["step"] == 7


def test_a_second_interrupt_stops_at_once(tmp_path):
    def twice(_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        loop(tmp_path, Counting(at3=twice))


def test_a_diverged_state_is_not_saved(tmp_path):
    changes = {"log_interval_kimg": 1.0, "checkpoint_interval_kimg": 5 * KIMG}
    with pytest.raises(UserError, match=r"diverged before step 10: loss/generator not finite.*lower the learning"):
        loop(tmp_path, Counting(at7=lambda programs: setattr(programs, "loss", math.nan)), **changes)
    steps, restored = saved(tmp_path)
    assert steps == [5]
    assert restored.state.steps == 5


def test_evaluates_saves_the_best_and_draws(tmp_path, monkeypatch):
    fids = iter([30.0, 10.0, 20.0])
    monkeypatch.setattr(
        train_module, "evaluate_variables", lambda *_: {"metrics": {"fid": next(fids), "recall": 0.5, "ifid": None}}
    )
    sheets = []
    monkeypatch.setattr(train_module, "make_sheet", lambda *_: sheets.append(1) or np.zeros((4, 4, 1), np.uint8))
    loop(
        tmp_path,
        Counting(),
        **{
            "total_kimg": 12 * KIMG,
            "evaluation.interval_kimg": 4 * KIMG,
            "sheet_interval_kimg": 6 * KIMG,
            "checkpoint_interval_kimg": 5 * KIMG,
        },
    )
    assert len(sheets) == 2
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [8, 10, 12]
        assert checkpoints.restore(ABSTRACT, "best").step == 8
    evaluations = {r["step"]: r["evaluation/fid"] for r in read_metrics(tmp_path) if "evaluation/fid" in r}
    assert evaluations == {4: 30.0, 8: 10.0, 12: 20.0}
    assert all(r["kimg"] == pytest.approx(r["step"] * KIMG) for r in read_metrics(tmp_path))


@pytest.mark.parametrize("start", [0, 6])
def test_w_ratio_is_logged_at_the_start_at_its_interval_and_at_the_end(tmp_path, start):
    changes = {"total_kimg": 13 * KIMG, "log_interval_kimg": 2 * KIMG, "w_ratio_interval_kimg": 3 * KIMG}
    programs = Counting()
    loop(tmp_path, programs, start, lambda ema: {"w_ratio": jnp.float32(programs.done)}, **changes)
    logged = {r["step"]: r["w_ratio"] for r in read_metrics(tmp_path) if "w_ratio" in r}
    # Due at steps 3, 6, 9, 12 and 13, measured at the next log. Step 0 only in a run that starts anew.
    steps = [0, 4, 6, 10, 12, 13] if start == 0 else [10, 12, 13]
    assert logged == {step: step for step in steps}
    assert all("kimg" in r for r in read_metrics(tmp_path))


@pytest.mark.parametrize(("kimg", "steps"), [(KIMG, 1), (10 * KIMG, 10), (KIMG / 10, 1), (0.0, tiny_run.STEPS + 1)])
def test_intervals(kimg, steps):
    assert interval(tiny_run.tiny_config(), kimg) == steps


def test_mean_metrics_counts_each_number_where_it_was_reported():
    pending = [{"a": jnp.float32(1)}, {"a": jnp.float32(3), "r1": jnp.float32(5)}, {}]
    assert mean_metrics(pending) == {"a": 2.0, "r1": 5.0}


@pytest.mark.slow
def test_a_whole_run(tmp_path, capsys):
    """Trains, evaluates on the way and at the end, and writes what people look at; then evaluates the best step."""
    config = tiny_run.tiny_config(
        **{"total_kimg": 20 * KIMG, "evaluation.interval_kimg": 10 * KIMG, "sheet_interval_kimg": 10 * KIMG}
    )
    workdir = tmp_path / "run"
    report = train(config, workdir)
    assert report.read_text().startswith("<!")
    result = json.loads((workdir / "evaluation.json").read_text())
    assert result["protocol"]["step"] == 20
    assert all(np.isfinite(value) for value in result["metrics"].values() if value is not None)
    records = read_metrics(workdir)
    assert [r["step"] for r in records if "evaluation/fid" in r] == [10, 20]
    assert records[-1]["evaluation/fid"] == pytest.approx(result["metrics"]["fid"], rel=1e-3)
    assert (workdir / "samples.png").stat().st_size > 100

    best = min((r["evaluation/fid"], r["step"]) for r in records if "evaluation/fid" in r)[1]
    evaluate(config, workdir, "best")
    assert json.loads((workdir / "evaluation.json").read_text())["protocol"]["step"] == best
    assert f"averaged generator of step {best}" in capsys.readouterr().out
