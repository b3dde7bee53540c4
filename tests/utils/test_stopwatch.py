"""Speed of training."""

import pytest

from noisytwins_jax.utils.stopwatch import Stopwatch


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
    metrics = watch.lap(steps=2, images_per_step=8)
    assert metrics["img_per_second"] == pytest.approx(8.0)
    assert metrics["ms_per_step"] == pytest.approx(1000.0)
    assert metrics["input_wait"] == pytest.approx(0.25)
    clock.now += 1.0
    assert watch.lap(steps=1, images_per_step=8)["input_wait"] == 0.0  # every lap starts again
