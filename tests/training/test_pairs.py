"""A loss of pairs: generated images have the labels of the real ones beside them, in both networks' updates."""

import jax
import numpy as np
import pytest
import tiny_run

from noisytwins_jax.data.pipeline import training_batches
from noisytwins_jax.data.registry import load_data
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.compiled_step import CompiledStep
from noisytwins_jax.training.phases import build_phases
from noisytwins_jax.training.random_inputs import class_table
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.training.step_metrics import fetch_in_order

PAIRED = {
    "loss": "relativistic",
    "fake_labels": "paired",
    "r1.gamma": 0.0,
    "r1.interval": 1,
    "gradient_penalty.gamma": 0.1,
    "path_length.weight": 0.0,
    "augment.diffaugment": "",
}
ANNEALED = {
    "optimizer.anneal_kimg": 0.04,
    "optimizer.final_lr": 0.25,
    "optimizer.final_beta2": 0.9,
    "ema.anneal_kimg": 0.04,
    "gradient_penalty.anneal_kimg": 0.04,
    "gradient_penalty.final_gamma": 0.01,
    "ada.operations": "brightness",
    "ada.anneal_kimg": 0.04,
    "ada.final_p": 0.5,
    "ada.interval": 1,
}


def build(**changes):
    config = tiny_run.tiny_config(**(PAIRED | changes))
    splits = load_data(config.data)
    step = TrainingStep(config, build_model(config, splits.train.channels, splits.train.num_classes))
    return config, splits, step


@pytest.mark.parametrize("twins", [False, True])
def test_labels_of_pairs(twins, monkeypatch):
    """Twins share a label, which is that of the real image that both are compared with."""
    _, splits, step = build(**{"noisytwins.weight": 0.05 if twins else 0.0})
    seen = {}

    def record(name, function):
        def recorded(params, state, table, first, second, *rest, **others):
            seen[name] = (first, second, others.get("real_inputs", rest[-1] if rest else None))
            return function(params, state, table, first, second, *rest, **others)

        return recorded

    monkeypatch.setattr(step, "generator_loss", record("generator", step.generator_loss))
    monkeypatch.setattr(step, "discriminator_loss", record("discriminator", step.discriminator_loss))
    phases = {phase.name: phase for phase in build_phases(step)}
    assert phases["generator"].first_batch and "r1" not in phases
    table = jax.device_put(class_table(step.config, splits.train.class_counts))
    batch = {"image": splits.train.images[:8], "label": np.int32([3, 1, 0, 2, 1, 0, 0, 3])}

    def both(state):
        state, _ = phases["generator"].update(state, *phases["generator"].inputs(batch, table))
        state, _ = phases["discriminator"].update(state, *phases["discriminator"].inputs(batch, table))
        made, _, real = seen["generator"]
        real_d, fake_d, _ = seen["discriminator"]
        return made.labels, real.labels, real.images, real_d.labels, fake_d.labels

    made, real, images, real_d, fake_d = jax.jit(lambda: both(step.init(0)))()
    expected = np.tile(batch["label"][:4], 2) if twins else batch["label"]
    rows = np.tile(np.arange(4), 2) if twins else np.arange(8)
    np.testing.assert_array_equal(made, expected)
    np.testing.assert_array_equal(real, expected)
    np.testing.assert_allclose(images, batch["image"][rows] / 127.5 - 1, atol=1e-5)
    np.testing.assert_array_equal(real_d, batch["label"])
    np.testing.assert_array_equal(fake_d, batch["label"])


def test_it_trains_with_every_schedule_in_one_program_or_in_many(fast_compilation):
    config, splits, step = build(steps_per_dispatch=4, **{"noisytwins.weight": 0.0}, **ANNEALED)
    programs = CompiledStep(step, class_table(config, splits.train.class_counts))

    def run(together: bool):
        state = jax.jit(step.init)(0)
        reported = []
        with training_batches(splits.train, batch_size=config.batch_size, seed=0, mirror=False) as batches:
            for i in range(0, 8, 4 if together else 1):
                state, some = programs(state, i, batches, 4 if together else 1)
                reported += some
            return state, fetch_in_order(reported), batches.state()

    (one, reports, position), (several, _, position_several) = run(False), run(True)
    assert position == position_several == {"next_index": 8}  # a batch a step, of which both networks take their part
    names = {name for _, numbers in reports for name in numbers}
    assert {"loss/generator", "loss/discriminator", "loss/discriminator/gradient_penalty", "augment/p"} <= names
    assert all(np.isfinite(value) for _, numbers in reports for value in numbers.values())
    p = [numbers["augment/p"] for _, numbers in reports if "augment/p" in numbers]
    kimg = np.minimum(np.arange(1, 9) * config.batch_size / 1000 / 0.04, 1)
    np.testing.assert_allclose(p, 0.5 * 0.5 * (1 - np.cos(np.pi * kimg)), atol=1e-5)
    have, want = tiny_run.arrays(several), tiny_run.arrays(one)
    for name in want:
        np.testing.assert_allclose(have[name], want[name], rtol=0.02, atol=0.01, err_msg=name)
