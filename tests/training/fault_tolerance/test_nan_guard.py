import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tiny_run

from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.fault_tolerance.nan_guard import (
    divergence_error,
    find_nonfinite_metric,
    find_nonfinite_tensors,
)
from noisytwins_jax.training.step import TrainingStep


def test_the_first_update_and_its_most_specific_loss():
    good = {"loss/generator": 1.0, "w_ratio/tail": math.nan}
    bad = {"loss/generator": math.nan, "loss/generator/noisytwins": np.float32(np.inf), "logits/generator": 0.0}
    assert find_nonfinite_metric([good, good]) is None
    assert find_nonfinite_metric([]) is None
    assert find_nonfinite_metric([good, bad, {"loss/r1": math.inf}]) == (1, "loss/generator/noisytwins")
    assert find_nonfinite_metric([good, {"loss/r1": np.array([1.0, np.nan])}]) == (1, "loss/r1")


def test_names_what_is_bad_in_a_training_state():
    config = tiny_run.tiny_config()
    step = TrainingStep(config, build_model(config, 1, 4))
    shapes = jax.eval_shape(lambda: step.init(0)).replace(key=None)
    state = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes).replace(key=jax.random.key(0))
    assert find_nonfinite_tensors(state) == []

    def spoil(tree, value):
        path, leaf = jax.tree_util.tree_leaves_with_path(tree)[0]
        spoilt = leaf.astype(jnp.float32).ravel().at[:3].set(value).reshape(leaf.shape).astype(leaf.dtype)
        return jax.tree_util.tree_map_with_path(lambda p, x: spoilt if p == path else x, tree)

    d = state.discriminator
    spoilt = state.replace(
        ema=spoil(state.ema, jnp.nan),
        rates=state.rates._replace(generator=jnp.float32(jnp.inf)),
        discriminator=d.replace(params=spoil(d.params, jnp.inf)),
    )
    lines = find_nonfinite_tensors(spoilt)
    assert len(lines) == 3
    assert lines[0].startswith("discriminator/params/")
    assert lines[0].endswith("values are infinite")
    assert ": 3 of " in lines[0]
    assert lines[1] == "rates/generator: 1 of 1 values are infinite"
    assert lines[2].startswith("ema/")
    assert lines[2].endswith("values are NaN")


def test_no_floating_point_number_no_bad_one():
    assert find_nonfinite_tensors({"key": jax.random.key(0), "step": jnp.int32(3)}) == []


def test_the_message():
    where = Path("/runs/x/checkpoints")
    error = str(
        divergence_error(120, "loss/r1", ["discriminator/params/w: 3 of 9 values are NaN", "ema/w: …"], where, 100)
    )
    assert error == (
        "Training diverged at step 120: loss/r1 is not finite; discriminator/params/w: 3 of 9 values are NaN (and 1 more "
        "tensors). The last good checkpoint is step 100 in /runs/x/checkpoints; lower the learning rates, raise "
        "--config.r1.gamma or go on from there with other images: --config.faults.nonfinite=rewind."
    )
    assert str(divergence_error(5, "loss/r1", [], where, None, rewinds=3)) == (
        "Training diverged again after going back 3 time(s) at step 5: loss/r1 is not finite. There is no checkpoint "
        "yet; lower the learning rates or raise --config.r1.gamma."
    )
