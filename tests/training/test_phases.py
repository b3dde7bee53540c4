"""What runs in a step and when; several steps in one program are the same steps."""

import jax
import numpy as np
import tiny_run

from noisytwins_jax.data.pipeline import training_batches
from noisytwins_jax.data.registry import load_data
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.compiled_step import CompiledStep
from noisytwins_jax.training.phases import build_phases, step_order
from noisytwins_jax.training.random_inputs import class_table
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.training.step_metrics import Reported, fetch_in_order
from noisytwins_jax.utils.sharding import Layout


def make_step(**changes) -> TrainingStep:
    ada = {"augment.diffaugment": "", "ada.operations": "brightness"}
    config = tiny_run.tiny_config(**{"optimizer.discriminator_updates": 2, **ada, **changes})
    return TrainingStep(config, build_model(config, 1, 4))


def test_order_of_a_step():
    order = step_order(build_phases(make_step()), 2)
    assert [(phase.name, i) for phase, i in order] == [
        *(("generator", 0), ("path_length", 0), ("average", 0)),
        *(("discriminator", 0), ("r1", 0), ("discriminator", 1), ("r1", 1), ("adapt", 0)),
    ]


def test_regularisers_are_due_at_their_intervals():
    changes = {"r1.interval": 3, "path_length.interval": 4, "path_length.start_step": 5, "ada.interval": 5}
    phases = {phase.name: phase for phase in build_phases(make_step(**changes))}
    steps = range(12)
    assert [s for s in steps if phases["path_length"].due(s, 0, 2)] == [8]
    assert [(s, b) for s in steps[:4] for b in (0, 1) if phases["r1"].due(s, b, 2)] == [(0, 0), (1, 1), (3, 0)]
    assert [s for s in steps if phases["adapt"].due(s, 0, 2)] == [0, 5, 10]
    assert all(phases["discriminator"].due(s, b, 2) for s in steps for b in (0, 1))


def test_reports_come_in_the_order_of_the_updates():
    ran = np.array([True, False, True])
    reported = [
        Reported(4, {"a": np.arange(3.0)}, np.ones(3, bool)),
        Reported(4, {"b": np.arange(3.0) + 10}, ran),
        Reported(7, {"a": np.float32(5.0)}),
    ]
    assert fetch_in_order(reported) == [
        *((4, {"a": 0.0}), (4, {"b": 10.0}), (5, {"a": 1.0}), (6, {"a": 2.0}), (6, {"b": 12.0}), (7, {"a": 5.0}))
    ]


def test_several_steps_in_one_program_are_the_same_steps(fast_compilation):
    """All regularisers are due in some of four steps and not in others."""
    changes = {"r1.interval": 2, "path_length.interval": 2}
    changes |= {"augment.diffaugment": "", "ada.operations": "brightness", "ada.interval": 3, "ada.initial_p": 0.2}
    config = tiny_run.tiny_config(**changes, steps_per_dispatch=4)
    splits = load_data(config.data)
    layout = Layout(jax.devices()[:1])
    step = TrainingStep(config, build_model(config, splits.train.channels, splits.train.num_classes))
    programs = CompiledStep(step, class_table(config, splits.train.class_counts))

    def run(together: bool):
        state = jax.jit(step.init, static_argnums=0, out_shardings=layout.replicated)(0)
        reported = []
        with training_batches(splits.train, batch_size=config.batch_size, seed=0, mirror=False) as batches:
            for i in range(0, 8, 4 if together else 1):
                state, some = programs(state, i, batches, 4 if together else 1)
                reported += some
            return state, fetch_in_order(reported), batches.state()

    (one, reports, position), (several, reports_several, position_several) = run(False), run(True)
    assert position == position_several == {"next_index": 8}
    assert [(step, set(numbers)) for step, numbers in reports] == [(s, set(n)) for s, n in reports_several]
    for (number, want), (_, have) in zip(reports, reports_several, strict=True):
        for name in want:
            np.testing.assert_allclose(have[name], want[name], rtol=2e-3, atol=2e-4, err_msg=f"{name} of step {number}")
    have, want = tiny_run.arrays(several), tiny_run.arrays(one)
    for name in want:
        np.testing.assert_allclose(have[name], want[name], rtol=0.02, atol=0.01, err_msg=name)
