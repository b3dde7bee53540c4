"""What a checkpoint promises: what was saved comes back, or an error message says why not."""

import functools
import json
import math
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_run import arrays

from noisytwins_jax.training.checkpoint import Checkpoints
from noisytwins_jax.training.checkpoint_records import EVALUATIONS, PINNED
from noisytwins_jax.training.fault_tolerance.checkpoint_integrity import FILES
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.sharding import Layout

CONFIG = {"name": "tiny", "r1.gamma": 0.1}


def make_state(step, size=5000):
    """A tree with the kinds of leaves of a training state; every value depends on `step`."""
    kernel = jax.random.normal(jax.random.key(step), (size, 7))
    return {
        "key": jax.random.key(step),
        "updates": jnp.int32(step),
        "params": {"dense": {"kernel": kernel, "bias": jnp.arange(7.0) + step}},
        "opt_state": ({"mu": kernel.astype(jnp.bfloat16)}, {"empty": ()}),
    }


def abstract(size=5000):
    sharding = Layout(jax.devices()[:1]).replicated
    shapes = jax.eval_shape(lambda: make_state(0, size))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def save(checkpoints, step, fid=None, protocol="a"):
    """Saves a step and, as training does, evaluates it when it is on disk."""
    checkpoints.save(step, make_state(step), {"next_index": 10 * step}, CONFIG, wait=fid is not None)
    if fid is not None:
        checkpoints.record(step, fid, protocol)


def pinned(workdir):
    return json.loads((workdir / "checkpoints" / PINNED).read_text())


def check(restored, step):
    assert restored.step == step
    assert restored.data == {"next_index": 10 * step}
    assert restored.config == CONFIG
    want, have = arrays(make_state(step)), arrays(restored.state)
    assert want.keys() == have.keys()
    for name in want:
        assert want[name].dtype == have[name].dtype
        np.testing.assert_array_equal(want[name], have[name], err_msg=name)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A workdir with checkpoints of steps 1 and 2, both evaluated."""
    workdir = tmp_path_factory.mktemp("two_steps")
    with Checkpoints(workdir, writable=True) as checkpoints:
        save(checkpoints, 1, fid=5.0)
        save(checkpoints, 2, fid=6.0)
    return workdir


def test_what_was_saved_comes_back(two_steps):
    with Checkpoints(two_steps) as checkpoints:
        check(checkpoints.restore(abstract()), 2)
        check(checkpoints.restore(abstract(), "best"), 1)
        check(checkpoints.restore(abstract(), "1"), 1)


def test_a_new_workdir_has_none(tmp_path):
    with Checkpoints(tmp_path, writable=True) as checkpoints:
        assert checkpoints.restore(abstract()) is None


def test_latest_two_and_best_are_kept(tmp_path):
    with Checkpoints(tmp_path, writable=True) as checkpoints:
        for step, fid in [(1, 30.0), (2, None), (3, 20.0), (4, 25.0), (5, None), (6, 40.0), (7, None)]:
            save(checkpoints, step, fid)
            checkpoints.wait()
            assert checkpoints.steps()[-1] == step
        assert checkpoints.steps() == [3, 6, 7]
        assert checkpoints.evaluated_steps() == [1, 3, 4, 6]
    with Checkpoints(tmp_path, writable=True) as checkpoints:
        check(checkpoints.restore(abstract(), "best"), 3)
        check(checkpoints.restore(abstract()), 7)
        save(checkpoints, 8, 10.0)
        assert checkpoints.steps() == [3, 7, 8]  # the next save deletes what is not the best any more
        save(checkpoints, 9)
        save(checkpoints, 10)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [8, 9, 10]
        check(checkpoints.restore(abstract(), "best"), 8)


def test_the_best_is_of_the_protocol_used_last(tmp_path):
    with Checkpoints(tmp_path, writable=True) as checkpoints:
        save(checkpoints, 1, 5.0, "a")
        save(checkpoints, 2, 30.0, "b")
        assert checkpoints.best_step() == 2
        for step, fid in [(3, 20.0), (4, 40.0), (5, 50.0)]:
            save(checkpoints, step, fid, "b")
        assert (checkpoints.steps(), checkpoints.best_step()) == ([3, 4, 5], 3)
        save(checkpoints, 6, 60.0, "a")
        assert checkpoints.best_step() == 6  # alone with its protocol
        checkpoints.record(5, 1.0, "a")  # evaluated again
        assert checkpoints.best_step() == 5


@pytest.mark.parametrize("distance", [None, math.nan, math.inf])
def test_a_distance_that_is_not_finite_is_an_evaluation_and_never_the_best(tmp_path, distance):
    with Checkpoints(tmp_path, writable=True) as checkpoints:
        save(checkpoints, 1, 5.0)
        save(checkpoints, 2)
        checkpoints.wait()
        checkpoints.record(2, distance, "b")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.evaluated_steps() == [1, 2]
        assert checkpoints.best_step() == 1


def test_a_step_that_is_saved_anew_is_not_evaluated(two_steps, tmp_path):
    """Training went back, and came to the step with other weights."""
    workdir = shutil.copytree(two_steps, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "2")
    with Checkpoints(workdir, writable=True) as checkpoints:
        assert checkpoints.evaluated_steps() == [1, 2]
        save(checkpoints, 2)
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.evaluated_steps() == [1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"1": {"distance": 5.0, "prot',
        "[]",
        '{"x": 1}',
        '{"1": {"distance": "5", "protocol": "a"}}',
        '{"1": {"distance": NaN, "protocol": "a"}}',
        None,
    ],
)
def test_damaged_or_missing_evaluations_are_none(two_steps, tmp_path, text):
    workdir = shutil.copytree(two_steps, tmp_path / "run")
    path = workdir / "checkpoints" / EVALUATIONS
    assert json.loads(path.read_text())["1"] == {"distance": 5.0, "protocol": "a"}
    path.unlink()
    if text is not None:
        path.write_text(text)
    with Checkpoints(workdir) as reader:
        assert reader.evaluated_steps() == []
        check(reader.restore(abstract()), 2)
        with pytest.raises(UserError, match="no evaluated checkpoint"):
            reader.restore(abstract(), "best")
    with Checkpoints(workdir, writable=True) as checkpoints:
        checkpoints.record(2, 7.0, "a")
    with Checkpoints(workdir) as reader:
        check(reader.restore(abstract(), "best"), 2)


def test_checkpoints_that_hold_metrics_of_their_own_are_read(tmp_path):
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(make_state(1)),
        meta=ocp.args.JsonSave({"data": {"next_index": 10}, "config": CONFIG}),
    )
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["fid"], best_mode="min")
    with ocp.CheckpointManager(tmp_path / "checkpoints", options=options) as manager:
        manager.save(1, args=args, metrics={"fid": 3.0})
    metrics = tmp_path / "checkpoints" / "1" / "metrics" / "metrics"
    assert json.loads(metrics.read_text()) == {"fid": 3.0}
    with Checkpoints(tmp_path, writable=True) as checkpoints:
        check(checkpoints.restore(abstract()), 1)
        assert checkpoints.best_step() is None
        for step, fid in [(2, 9.0), (3, None), (4, None)]:
            save(checkpoints, step, fid)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [2, 3, 4]


def test_a_saved_step_is_left_as_it_is(two_steps, tmp_path):
    workdir = shutil.copytree(two_steps, tmp_path / "run")
    with Checkpoints(workdir, writable=True) as checkpoints:
        checkpoints.save(2, make_state(99), {"next_index": 0}, CONFIG)
    with Checkpoints(workdir) as checkpoints:
        check(checkpoints.restore(abstract(), 2), 2)


def test_what_is_saved_is_not_what_later_programs_write(tmp_path):
    """The state is donated to the next program while its checkpoint is still being written."""

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(state):
        return jax.tree.map(lambda x: x * 1.01 + 1.0, state)

    # Born in a program: unlike arrays made from the host's memory, its buffers can be donated.
    state = jax.jit(lambda: {"params": {"a": jnp.arange(3e6), "b": jnp.arange(4.0)}})()
    address = state["params"]["a"].unsafe_buffer_pointer()
    state = advance(state)
    assert state["params"]["a"].unsafe_buffer_pointer() == address  # donation does overwrite in place here
    want = {}
    with Checkpoints(tmp_path, writable=True) as checkpoints:
        for step in (1, 2):
            want[step] = jax.tree.map(np.array, jax.tree.map(jnp.copy, state))
            checkpoints.save(step, state, {"next_index": step}, CONFIG)
            for _ in range(5):
                state = advance(state)
        checkpoints.wait()
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        for step in (1, 2):
            jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(shapes, step).state, want[step])


# --- going back further -----------------------------------------------------------------------------------------------


def test_as_many_of_the_latest_are_kept_as_asked_for(tmp_path):
    with Checkpoints(tmp_path, writable=True, keep=4) as checkpoints:
        assert checkpoints.newest_at_or_before(10) is None
        for step in range(10, 70, 10):
            save(checkpoints, step)
        assert checkpoints.steps() == [30, 40, 50, 60]
        wanted = {29: None, 30: 30, 39: 30, 60: 60, 99: 60}
        assert {step: checkpoints.newest_at_or_before(step) for step in wanted} == wanted


def test_what_is_pinned_is_kept_for_good(tmp_path):
    with Checkpoints(tmp_path, writable=True) as checkpoints:
        for step in (1, 2):
            save(checkpoints, step)
        checkpoints.pin(1)
        checkpoints.pin(1)
        for step in (3, 4):
            save(checkpoints, step)
        assert (checkpoints.steps(), pinned(tmp_path)) == ([1, 3, 4], [1])
        with pytest.raises(ValueError, match="step 2 has no checkpoint"):
            checkpoints.pin(2)
    with Checkpoints(tmp_path, writable=True) as checkpoints:
        checkpoints.pin(4)
        for step in (5, 6, 7):
            save(checkpoints, step)
    with Checkpoints(tmp_path) as reader:
        assert (reader.steps(), pinned(tmp_path)) == ([1, 4, 6, 7], [1, 4])
        check(reader.restore(abstract(), 1), 1)


@pytest.mark.parametrize("text", ["", "[1", "{}", "1", '["1"]', "[true]"])
def test_damaged_pins_are_none(two_steps, tmp_path, text):
    workdir = shutil.copytree(two_steps, tmp_path / "run")
    (workdir / "checkpoints" / PINNED).write_text(text)
    with Checkpoints(workdir, writable=True) as checkpoints:
        checkpoints.pin(2)
    assert pinned(workdir) == [2]


def test_training_that_went_back_moves_later_checkpoints_away(two_steps, tmp_path):
    workdir = shutil.copytree(two_steps, tmp_path / "run")
    aside = workdir / "collapsed_checkpoints"
    with Checkpoints(workdir, writable=True, keep=4) as checkpoints:
        assert checkpoints.discard_after(2) == []
        assert not aside.exists()
        save(checkpoints, 3, fid=2.0)
        checkpoints.pin(1)
        checkpoints.pin(3)
        save(checkpoints, 4)  # which is still being written
        assert checkpoints.discard_after(2) == [aside / "3", aside / "4"]
        assert (checkpoints.steps(), pinned(workdir)) == ([1, 2], [1])
        assert (checkpoints.evaluated_steps(), checkpoints.best_step()) == ([1, 2], 1)
        check(checkpoints.restore(abstract()), 2)
        save(checkpoints, 3)  # the run comes to that step again, and collapses again
        check(checkpoints.restore(abstract()), 3)
        assert checkpoints.discard_after(2) == [aside / "3_"]
    assert json.loads((aside / "3" / EVALUATIONS).read_text()) == {"3": {"distance": 2.0, "protocol": "a"}}
    assert not (aside / "4" / EVALUATIONS).exists()
    assert not (aside / "3_" / EVALUATIONS).exists()
    with Checkpoints(workdir) as reader:
        assert (reader.steps(), pinned(workdir), reader.evaluated_steps()) == ([1, 2], [1], [1, 2])
    # Nothing is lost: moved back, they can be read.
    for step in ("3", "4"):
        (aside / step).rename(workdir / "checkpoints" / step)
    with Checkpoints(workdir) as reader:
        check(reader.restore(abstract()), 4)
        check(reader.restore(abstract(), 3), 3)


def test_training_may_go_back_to_its_start(two_steps, tmp_path):
    workdir = shutil.copytree(two_steps, tmp_path / "run")
    with Checkpoints(workdir, writable=True) as checkpoints:
        assert len(checkpoints.discard_after(0)) == 2
        assert checkpoints.restore(abstract()) is None
        save(checkpoints, 1)
    with Checkpoints(workdir) as reader:
        check(reader.restore(abstract()), 1)


# --- damage -----------------------------------------------------------------------------------------------------------

# Every kind of file that a checkpoint has. Orbax alone would return wrong values for changed bytes in an array.
KINDS = {
    "arrays": "state/ocdbt.process_0/d/*",
    "array index": "state/d/*",
    "array manifest": "state/manifest.ocdbt",
    "tree": "state/_METADATA",
    "array shapes": "state/array_metadatas/process_0",
    "meta": "meta/metadata",
    "list of files": FILES,
    "Orbax's record": "_CHECKPOINT_METADATA",
    "Orbax's mark": "commit_success.txt",
}
# Nothing that is restored is in these. (A list of files that is changed, and still readable, disagrees with the files.)
HARMLESS = {
    (kind, damage) for kind in ("Orbax's record", "Orbax's mark") for damage in ("deleted", "truncated", "changed")
}
HARMLESS |= {("list of files", "deleted"), ("list of files", "truncated")}


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)


DAMAGE = {"deleted": lambda path: path.unlink(), "truncated": truncate, "changed": change}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed(two_steps, tmp_path, capfd, kind, damage):
    workdir = shutil.copytree(two_steps, tmp_path / "run")
    files = list((workdir / "checkpoints" / "2").glob(KINDS[kind]))
    DAMAGE[damage](max(files, key=lambda path: path.stat().st_size))

    with Checkpoints(workdir) as reader:  # somebody who samples from the run changes nothing
        check(reader.restore(abstract()), 2 if (kind, damage) in HARMLESS else 1)
    assert (workdir / "checkpoints" / "2").exists()

    with Checkpoints(workdir, writable=True) as checkpoints:
        restored = checkpoints.restore(abstract())
        if (kind, damage) in HARMLESS:
            check(restored, 2)
            return
        check(restored, 1)
        assert (workdir / "damaged_checkpoints" / "2" / "state").exists()
        save(checkpoints, 2, fid=4.0)  # the run comes to that step again
    with Checkpoints(workdir) as checkpoints:
        check(checkpoints.restore(abstract()), 2)
        check(checkpoints.restore(abstract(), "best"), 2)
    said = capfd.readouterr()
    assert "The checkpoint of step 2 is damaged" in said.out
    assert "going back to the one before" in said.out
    assert "Traceback" not in said.out + said.err


def test_no_checkpoint_is_whole(two_steps, tmp_path):
    workdir = shutil.copytree(two_steps, tmp_path / "run")
    for step in (1, 2):
        (workdir / "checkpoints" / str(step) / "meta" / "metadata").unlink()
    with Checkpoints(workdir, writable=True) as checkpoints:
        with pytest.raises(UserError, match=r"No checkpoint in .* can be read \(step 2: meta/metadata is missing\)"):
            checkpoints.restore(abstract())
        with pytest.raises(UserError, match=r"step 1 .* is damaged .*; use --checkpoint=latest"):
            checkpoints.restore(abstract(), 1)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2", EVALUATIONS]


def test_leftovers_of_a_killed_process_are_ignored(two_steps, tmp_path):
    workdir = shutil.copytree(two_steps, tmp_path / "run")
    leftover = workdir / "checkpoints" / "3.orbax-checkpoint-tmp-1"
    shutil.copytree(workdir / "checkpoints" / "2", leftover)
    with Checkpoints(workdir) as reader:
        check(reader.restore(abstract()), 2)
    assert leftover.exists()  # it may be a checkpoint that is being written now
    with Checkpoints(workdir, writable=True) as checkpoints:
        check(checkpoints.restore(abstract()), 2)
        save(checkpoints, 3)
    assert not leftover.exists()
    with Checkpoints(workdir) as reader:
        check(reader.restore(abstract()), 3)


def test_a_half_deleted_old_checkpoint_is_no_obstacle(two_steps, tmp_path):
    workdir = shutil.copytree(two_steps, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "1" / "state")
    with Checkpoints(workdir, writable=True) as checkpoints:
        check(checkpoints.restore(abstract()), 2)
        checkpoints.record(2, 1.0, "a")  # why step 1 was about to be deleted
        for step in (3, 4):
            save(checkpoints, step)
    with Checkpoints(workdir) as reader:
        assert reader.steps() == [2, 3, 4]


# --- requests that cannot be met --------------------------------------------------------------------------------------


def test_another_architecture_is_named(two_steps):
    with Checkpoints(two_steps) as checkpoints:
        with pytest.raises(UserError, match=r"params/dense/kernel has shape \(5000, 7\) there and \(4000, 7\)"):
            checkpoints.restore(abstract(size=4000))
        wanted = abstract()
        wanted["params"]["more"] = wanted["params"]["dense"]["bias"]
        with pytest.raises(UserError, match=r"params/more has shape absent there and \(7,\)"):
            checkpoints.restore(wanted)
        wanted = abstract()
        del wanted["params"]["dense"]["bias"]
        with pytest.raises(UserError, match=r"params/dense/bias has shape \(7,\) there and absent"):
            checkpoints.restore(wanted)


@flax.struct.dataclass
class State:
    """A state without some of the fields that were saved."""

    params: dict


def test_a_state_of_an_earlier_version_is_refused(two_steps):
    with (
        Checkpoints(two_steps) as checkpoints,
        pytest.raises(UserError, match="of an earlier version, whose state has"),
    ):
        checkpoints.restore(State(abstract()["params"]))


@pytest.mark.parametrize("which", [3, "3", "newest"])
def test_a_checkpoint_that_is_not_there(two_steps, which):
    with Checkpoints(two_steps) as checkpoints, pytest.raises(UserError, match=r"one of the steps there \(1, 2\)"):
        checkpoints.restore(abstract(), which)


def test_no_best_without_evaluation(tmp_path):
    with Checkpoints(tmp_path, writable=True) as checkpoints:
        save(checkpoints, 1)
        checkpoints.wait()
        with pytest.raises(UserError, match="no evaluated checkpoint"):
            checkpoints.restore(abstract(), "best")
