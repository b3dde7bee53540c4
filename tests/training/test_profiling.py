"""Figures of time, and traces of steps."""

import jax.numpy as jnp
import pytest

from noisytwins_jax.config.groups import traced_steps
from noisytwins_jax.training.profiling import Stopwatch, Tracer
from noisytwins_jax.utils.errors import UserError


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_stopwatch_tells_waiting_from_working_and_leaves_pauses_out():
    clock = Clock()
    watch = Stopwatch(clock)
    for _ in range(2):
        with watch.waiting():
            clock.now += 0.25
    clock.now += 1.5  # two steps of work
    watch.pause()
    clock.now += 100  # an evaluation
    watch.resume()
    figures = watch.lap(steps=2, images_per_step=8)
    assert figures["img_per_second"] == pytest.approx(8.0)
    assert figures["ms_per_step"] == pytest.approx(1000.0)
    assert figures["input_wait"] == pytest.approx(0.25)
    clock.now += 1.0
    assert watch.lap(steps=1, images_per_step=8)["input_wait"] == 0.0  # every lap starts anew


@pytest.mark.parametrize(("text", "steps"), [("", None), ("7", (7, 7)), ("100-104", (100, 104))])
def test_steps_of_a_trace(text, steps):
    assert traced_steps(text) == steps


@pytest.mark.parametrize("text", ["a", "5-4", "0-3", "1,2", "-3"])
def test_wrong_steps_are_one_sentence(text):
    with pytest.raises(UserError, match=r"config\.profile\.steps=.*as 100-104"):
        traced_steps(text)


def test_a_trace_is_written_once(tmp_path):
    tracer = Tracer("3-4", tmp_path)
    finished = []
    for step in range(1, 8):
        tracer.before(step, step)
        finished.append(tracer.after(step, jnp.ones(3) * step))
    assert finished == [step == 4 for step in range(1, 8)]
    assert len(list(tmp_path.glob("profile/**/*.xplane.pb"))) == 1
    silent = Tracer("1-2", tmp_path / "other", enabled=False)
    silent.before(1, 1)
    assert not silent.after(2, jnp.ones(3))
    assert not (tmp_path / "other").exists()
