"""The training loop: when it logs, saves and stops; and one whole run."""

import json
import math
import os
import signal

import fake_wandb
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from noisytwins_jax.data.pipeline import training_batches
from noisytwins_jax.data.registry import load_data
from noisytwins_jax.evaluation import evaluation_hook, samples_hook
from noisytwins_jax.evaluation.evaluate import evaluate
from noisytwins_jax.evaluation.evaluation_hook import protocol_digest
from noisytwins_jax.evaluation.scores import FRECHET
from noisytwins_jax.train import run_to_end, train
from noisytwins_jax.training.checkpoint import Checkpoints
from noisytwins_jax.training.fault_tolerance.signals import StopSignal
from noisytwins_jax.training.fault_tolerance.watchdog import Watchdog
from noisytwins_jax.training.run import Run, interval
from noisytwins_jax.training.step_metrics import Reported, mean_metrics
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.logging import MetricsWriter, Progress, read_metrics
from noisytwins_jax.utils.sharding import Layout
from noisytwins_jax.utils.stopwatch import Stopwatch

KIMG = tiny_run.BATCH / 1000  # a step


@flax.struct.dataclass
class State:
    """What the loop knows of a state."""

    steps: jax.Array
    key: jax.Array
    params: jax.Array
    ema: dict


class Step:
    """What a run needs of its updates to start and to restore."""

    layout = Layout(jax.devices()[:1])

    def init(self, seed):
        return State(jnp.int32(0), jax.random.key(seed), jnp.zeros(3), {})

    def abstract_state(self, shardings):
        shapes = jax.eval_shape(lambda: self.init(0))
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings(shapes))


ABSTRACT = Step().abstract_state(Step.layout.state_shardings)


class Counting:
    """Programs whose state counts steps; `events` are called before a step by its number, from 0."""

    def __init__(self, **events):
        self.events = {int(name.lstrip("at")): event for name, event in events.items()}
        self.loss = 1.0
        self.done = 0

    def __call__(self, state, step, batches, count=1):
        return self.run_one(state, step, batches) if count == 1 else self.run_several(state, step, batches, count)

    def run_one(self, state, step, batches):
        next(batches)
        if step in self.events:
            self.events[step](self)
        metrics = [{"loss/generator": jnp.float32(self.loss)}, {"loss/discriminator": jnp.float32(step)}]
        self.done = step + 1
        return state.replace(steps=state.steps + 1), [Reported(step + 1, update) for update in metrics]

    def run_several(self, state, step, batches, count):
        losses = []
        for i in range(step, step + count):
            state, reported = self.run_one(state, i, batches)
            losses.append([float(x) for update in reported for x in update.metrics.values()])
        generator, discriminator = np.array(losses).T
        every_other = np.arange(step, step + count) % 2 == 0
        return state, [
            Reported(step + 1, {"loss/generator": generator}, np.ones(count, bool)),
            Reported(step + 1, {"loss/discriminator": discriminator}, np.ones(count, bool)),
            Reported(step + 1, {"loss/r1": discriminator * every_other}, every_other),
        ]


def loop(workdir, programs, start=0, monitors=None, **changes):
    """Runs the loop with these programs; returns the last state."""
    config = tiny_run.tiny_config(**{"w_ratio_interval_kimg": 0.0, **changes})
    splits = load_data(config.data)
    batches = training_batches(splits.train, batch_size=config.batch_size, seed=0, mirror=False)
    state = Step().init(0).replace(steps=jnp.int32(start))
    with batches, Checkpoints(workdir, writable=True) as checkpoints:
        writer = MetricsWriter(workdir)
        tools = Progress(config.total_kimg), StopSignal(), Watchdog(0.0), Stopwatch()
        run = Run(config, splits, workdir, Step(), ABSTRACT, batches, checkpoints, writer, *tools, monitors or {})
        return run_to_end(run, programs, state, start)[0]


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
    assert restored.data["next_index"] == 12
    assert len(restored.data["fingerprint"]) == 64
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
    assert (restored.step, restored.data["next_index"], restored.state.steps) == (7, 7, 7)
    assert read_metrics(tmp_path)[-1]["step"] == 7


def test_a_second_interrupt_stops_at_once(tmp_path):
    def twice(_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        loop(tmp_path, Counting(at3=twice))


def diverge(programs):
    programs.loss = math.nan


DIVERGING = {"log_interval_kimg": 1.0, "checkpoint_interval_kimg": 5 * KIMG, "total_kimg": 20 * KIMG}


def test_a_diverged_state_is_not_saved(tmp_path):
    message = (
        r"diverged at step 8: loss/generator is not finite\. The last good checkpoint is step 5 in .*nonfinite=rewind"
    )
    with pytest.raises(UserError, match=message):
        loop(tmp_path, Counting(at7=diverge), **DIVERGING)
    steps, restored = saved(tmp_path)
    assert steps == [5]
    assert restored.state.steps == 5


def test_tensors_are_looked_at_before_they_are_saved(tmp_path):
    class Poisoned(Counting):
        def run_one(self, state, step, batches):
            state, reported = super().run_one(state, step, batches)
            return (state.replace(params=state.params.at[1].set(jnp.inf)) if step == 8 else state), reported

    message = r"diverged at step 10: params is not finite; params: 1 of 3 values are infinite\. .*step 5"
    with pytest.raises(UserError, match=message):
        loop(tmp_path, Poisoned(), **DIVERGING)
    assert saved(tmp_path)[0] == [5]


def test_goes_back_and_skips_what_it_diverged_on(tmp_path, capsys):
    def once(programs):
        diverge(programs)
        programs.events.clear()

    class Recovering(Counting):
        def run_one(self, state, step, batches):
            self.loss = 1.0 if step == 5 else self.loss  # back at the checkpoint
            return super().run_one(state, step, batches)

    state = loop(tmp_path, Recovering(at7=once), **DIVERGING, **{"faults.nonfinite": "rewind"})
    assert state.steps == 20
    said = capsys.readouterr().err
    assert (
        "diverged at step 8 (loss/generator is not finite): going back to step 5, and on with the images after" in said
    )
    _, restored = saved(tmp_path)
    # Steps 6 to 10 were run twice, on other images and with other draws.
    assert (restored.step, restored.data["next_index"]) == (20, 25)
    assert not np.array_equal(jax.random.key_data(restored.state.key), jax.random.key_data(jax.random.key(0)))
    assert [r["step"] for r in read_metrics(tmp_path)] == [5, 10, 15, 20]
    assert all(r["loss/generator"] == 1.0 for r in read_metrics(tmp_path))


def test_goes_back_only_so_often(tmp_path, capsys):
    class Hopeless(Counting):
        def run_one(self, state, step, batches):
            self.loss = math.nan if step == 7 else 1.0
            return super().run_one(state, step, batches)

    with pytest.raises(UserError, match=r"diverged again after going back 2 time\(s\) at step 8"):
        loop(tmp_path, Hopeless(), **DIVERGING, **{"faults.nonfinite": "rewind", "faults.max_rewinds": 2})
    assert capsys.readouterr().err.count("going back to step 5") == 2
    assert saved(tmp_path)[0] == [5]


def test_several_steps_in_one_program(tmp_path):
    """Everything that is due within them comes after them; what does not fill a program runs step by step."""
    changes = {"total_kimg": 14 * KIMG, "log_interval_kimg": 2 * KIMG, "checkpoint_interval_kimg": 6 * KIMG}
    state = loop(tmp_path, Counting(), **changes, steps_per_dispatch=4)
    assert state.steps == 14
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records] == [4, 8, 12, 14]
    assert [r["loss/discriminator"] for r in records] == [1.5, 5.5, 9.5, 12.5]
    assert [r.get("loss/r1") for r in records] == [1.0, 5.0, 9.0, None]
    assert saved(tmp_path)[0] == [12, 14]


# --- evaluation on the way --------------------------------------------------------------------------------------------

EVERY_4 = {"total_kimg": 12 * KIMG, "evaluation.interval_kimg": 4 * KIMG, "checkpoint_interval_kimg": 5 * KIMG}


class Evaluations:
    """In place of `evaluate_variables`: gives these distances one after the other, and notes what it was asked.

    Attributes:
      fids: the distances.
      headline: kind of extractor.
      protocol: its name.
      pauses: called before every pause, by the number of evaluations begun, from 1.
      thorough: what was asked, by evaluation.
      saved: the checkpoints that there were whole on disk at each evaluation.
    """

    def __init__(self, *fids, headline="classifier", protocol="embedded", pauses=None):
        self.fids, self.headline, self.protocol, self.pauses = iter(fids), headline, protocol, pauses or {}
        self.thorough, self.saved = [], []

    def __call__(self, config, variables, splits, workdir, thorough=True, between=None):
        self.thorough.append(thorough)
        with Checkpoints(workdir) as checkpoints:
            restored = checkpoints.restore(ABSTRACT)
            self.saved.append((checkpoints.steps(), checkpoints.evaluated_steps(), int(restored.state.steps)))
        for _ in range(3):
            self.pauses.get(len(self.thorough), lambda: None)()
            between()
        protocol = {"name": self.protocol, "headline_extractor": self.headline, "n_fake_pooled": 32}
        return {
            "protocol": protocol,
            "metrics": {FRECHET[self.headline]: next(self.fids), "recall": 0.5, "ifid": None},
        }


@pytest.fixture
def evaluate_with(monkeypatch):
    """Sets what evaluates from now on."""

    def set_evaluations(*fids, **options):
        evaluations = Evaluations(*fids, **options)
        monkeypatch.setattr(evaluation_hook, "evaluate_variables", evaluations)
        return evaluations

    return set_evaluations


def terminate(_=None):
    os.kill(os.getpid(), signal.SIGTERM)


def stopped(workdir, programs=None, start=0, **changes):
    with pytest.raises(SystemExit) as exit_info:
        loop(workdir, programs or Counting(), start, **{**EVERY_4, **changes})
    assert exit_info.value.code == 128 + signal.SIGTERM


def evaluated(workdir, name="fid"):
    """Steps and distances that were logged, in the order of the file."""
    key = f"evaluation/{name}"
    return [(r["step"], r[key]) for r in read_metrics(workdir) if key in r]


def best(workdir):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.best_step()


def test_saves_then_evaluates_then_records_and_keeps_the_best(tmp_path, monkeypatch, capsys, evaluate_with):
    evaluations = evaluate_with(30.0, 10.0, 20.0)
    sheets = []
    monkeypatch.setattr(samples_hook, "make_sheet", lambda *_: sheets.append(1) or np.zeros((4, 4, 1), np.uint8))
    loop(tmp_path, Counting(), sheet_interval_kimg=6 * KIMG, **EVERY_4)
    assert len(sheets) == 2
    # The state of its step is there; the evaluations before are recorded; step 10 was saved without one.
    assert evaluations.saved == [([4], [], 4), ([4, 5, 8], [4], 8), ([8, 10, 12], [4, 8], 12)]
    assert evaluations.thorough == [False, False, True]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [8, 10, 12]
        assert checkpoints.restore(ABSTRACT, "best").step == 8
    assert evaluated(tmp_path) == [(4, 30.0), (8, 10.0), (12, 20.0)]
    assert all(r["kimg"] == pytest.approx(r["step"] * KIMG) for r in read_metrics(tmp_path))
    assert "step 8: FID 10.0, recall 0.500 (protocol embedded, 32 images)" in capsys.readouterr().err


@pytest.mark.parametrize(("headline", "name"), [("clip", "fid_clip"), ("dinov2", "fd_dinov2"), ("inception", "fid")])
def test_the_best_is_by_the_headline(tmp_path, evaluate_with, headline, name):
    evaluate_with(0.7, 0.2, 0.3, headline=headline)
    loop(tmp_path, Counting(), **EVERY_4)
    assert best(tmp_path) == 8
    assert evaluated(tmp_path, name) == [(4, 0.7), (8, 0.2), (12, 0.3)]


def test_a_distance_that_is_not_finite_is_never_the_best(tmp_path, evaluate_with):
    evaluate_with(30.0, None, 40.0)
    loop(tmp_path, Counting(), **EVERY_4)
    assert best(tmp_path) == 4
    assert evaluated(tmp_path) == [(4, 30.0), (12, 40.0)]


def test_the_best_is_of_the_protocol_that_the_run_goes_on_with(tmp_path, evaluate_with):
    evaluate_with(3.0, 2.0)
    loop(tmp_path, Counting(), **{**EVERY_4, "total_kimg": 9 * KIMG})
    assert best(tmp_path) == 8
    evaluate_with(50.0, 60.0, protocol="clean")
    resume(tmp_path, Counting(), 9, **{**EVERY_4, "total_kimg": 17 * KIMG})
    assert best(tmp_path) == 12


@pytest.mark.parametrize(
    ("entry", "compare"), [("name", False), ("seed", False), ("extractor_sha256", False), ("warnings", True)]
)
def test_protocol_digest(entry, compare):
    protocol = {"name": "clean", "headline_extractor": "inception", "extractor_sha256": "a", "seed": 0, "warnings": []}
    digests = {protocol_digest({"protocol": p}) for p in (protocol, protocol | {entry: "other"})}
    assert len(digests) == (1 if compare else 2)


def resume(workdir, programs, start, **changes):
    """As `loop`, from the newest checkpoint, which is of step `start`."""
    assert saved(workdir)[1].step == start
    return loop(workdir, programs, start, **changes)


def test_a_stop_comes_before_an_evaluation_which_is_made_up_once(tmp_path, capsys, evaluate_with):
    evaluations = evaluate_with(30.0, 20.0)
    stopped(tmp_path, Counting(at7=terminate))  # step 8 is due
    assert evaluations.saved == [([4], [], 4)]
    assert "Stopped by SIGTERM at step 8; saved. Run the same command again to resume." in capsys.readouterr().err
    evaluations = evaluate_with(20.0, 10.0)
    stopped(tmp_path, Counting(at9=terminate), start=8)  # made up before step 9
    assert evaluations.saved == [([4, 5, 8], [4], 8)]
    state = resume(tmp_path, Counting(), 10, **EVERY_4)
    assert state.steps == 12
    assert evaluations.thorough == [False, True]
    assert evaluated(tmp_path) == [(4, 30.0), (8, 20.0), (12, 10.0)]
    assert best(tmp_path) == 12


def test_a_stop_during_an_evaluation(tmp_path, capsys, evaluate_with):
    evaluate_with(30.0, 20.0, pauses={2: terminate})
    stopped(tmp_path)
    assert "Stopped by SIGTERM at step 8; saved." in capsys.readouterr().err
    assert saved(tmp_path)[0] == [4, 5, 8]
    assert evaluated(tmp_path) == [(4, 30.0)]
    evaluate_with(20.0, pauses={1: terminate})  # again, in the one that makes it up
    stopped(tmp_path, start=8)
    assert evaluated(tmp_path) == [(4, 30.0)]
    evaluate_with(20.0, 10.0)
    resume(tmp_path, Counting(), 8, **EVERY_4)
    assert evaluated(tmp_path) == [(4, 30.0), (8, 20.0), (12, 10.0)]
    evaluations = evaluate_with()
    resume(tmp_path, None, 12, **EVERY_4)
    assert evaluations.thorough == []


@pytest.mark.parametrize("during", [False, True])
def test_a_stop_at_the_last_step_leaves_a_thorough_evaluation_to_be_made_up(tmp_path, evaluate_with, during):
    evaluate_with(30.0, 20.0, 10.0, pauses={3: terminate} if during else {})
    stopped(tmp_path, Counting() if during else Counting(at11=terminate))
    assert evaluated(tmp_path) == [(4, 30.0), (8, 20.0)]
    evaluations = evaluate_with(10.0)
    resume(tmp_path, None, 12, **EVERY_4)  # nothing is left to train
    assert evaluations.thorough == [True]
    assert best(tmp_path) == 12


def test_an_evaluation_due_within_several_steps_is_made_up_after_them(tmp_path, evaluate_with):
    changes = {"steps_per_dispatch": 4, "evaluation.interval_kimg": 6 * KIMG}
    evaluate_with()
    stopped(tmp_path, Counting(at5=terminate), **changes)
    assert saved(tmp_path)[0] == [8]
    evaluate_with(2.0, 1.0)
    resume(tmp_path, Counting(), 8, **{**EVERY_4, **changes})
    assert evaluated(tmp_path) == [(8, 2.0), (12, 1.0)]


@pytest.mark.parametrize("start", [0, 6])
def test_w_ratio_is_logged_at_the_start_at_its_interval_and_at_the_end(tmp_path, start):
    changes = {"total_kimg": 13 * KIMG, "log_interval_kimg": 2 * KIMG, "w_ratio_interval_kimg": 3 * KIMG}
    programs = Counting()
    loop(tmp_path, programs, start, {"w_ratio": lambda state: {"w_ratio": jnp.float32(programs.done)}}, **changes)
    logged = {r["step"]: r["w_ratio"] for r in read_metrics(tmp_path) if "w_ratio" in r}
    # Due at steps 3, 6, 9, 12 and 13, measured at the next log. Step 0 only in a run that starts anew.
    steps = [0, 4, 6, 10, 12, 13] if start == 0 else [10, 12, 13]
    assert logged == {step: step for step in steps}
    assert all("kimg" in r for r in read_metrics(tmp_path))


@pytest.mark.parametrize(("kimg", "steps"), [(KIMG, 1), (10 * KIMG, 10), (KIMG / 10, 1), (0.0, tiny_run.STEPS + 1)])
def test_intervals(kimg, steps):
    assert interval(tiny_run.tiny_config(), kimg) == steps


def test_mean_metrics_counts_each_number_where_it_was_reported():
    pending = [{"a": 1.0}, {"a": 3.0, "r1": 5.0}, {}]
    assert mean_metrics(pending) == {"a": 2.0, "r1": 5.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"evaluation.pooled_images": 4}, "pooled_images"), ({"data.options.num_images": 8}, "real images")],
)
def test_counts_that_cannot_be_evaluated_are_refused_before_training(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(tiny_run.tiny_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def check_wandb(logs, result, records):
    """The log of Weights & Biases has every number, the sheets and the tables, and is ended."""
    (log,) = logs
    scalars = [(step, name) for step, values in log.logged for name, x in values.items() if isinstance(x, float)]
    assert {(r["step"], name) for r in records for name in r if name != "step"} <= set(scalars)
    values = log.values()
    assert values["evaluation/fid"] == result["metrics"]["fid"]
    assert {"samples", "nearest"} <= values.keys()
    rows = [
        dict(zip(values["evaluation/classes"].columns, row, strict=True)) for row in values["evaluation/classes"].data
    ]
    assert sorted(rows, key=lambda row: row["class"]) == result["per_class"]
    assert ["FID", result["metrics"]["fid"]] in [[row[0], row[2]] for row in values["evaluation/results"].data]
    assert log.arguments["config"]["noisytwins"]["weight"] == 0.05
    assert log.exit_code == 0


@pytest.mark.slow
def test_a_whole_run(tmp_path, capsys, monkeypatch):
    """Trains, evaluates on the way and at the end, and writes what people look at; then evaluates the best step."""
    config = tiny_run.tiny_config(
        **{"total_kimg": 20 * KIMG, "evaluation.interval_kimg": 10 * KIMG, "sheet_interval_kimg": 10 * KIMG},
        wandb="project",
    )
    workdir, logs = tmp_path / "run", fake_wandb.install(monkeypatch)
    report = train(config, workdir)
    assert report.read_text().startswith("<!")
    result = json.loads((workdir / "evaluation.json").read_text())
    assert result["protocol"]["step"] == 20
    assert all(np.isfinite(value) for value in result["metrics"].values() if value is not None)
    records = read_metrics(workdir)
    assert [r["step"] for r in records if "evaluation/fid" in r] == [10, 20]
    assert records[-1]["evaluation/fid"] == pytest.approx(result["metrics"]["fid"], rel=1e-3)
    assert (workdir / "samples.png").stat().st_size > 100
    check_wandb(logs, result, records)

    best = min((r["evaluation/fid"], r["step"]) for r in records if "evaluation/fid" in r)[1]
    evaluate(config, workdir, "best")
    assert json.loads((workdir / "evaluation.json").read_text())["protocol"]["step"] == best
    assert f"averaged generator of step {best}" in capsys.readouterr().out
