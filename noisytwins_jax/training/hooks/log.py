"""Logging: means of the updates' metrics, the monitors, speed, and the progress bar, and Weights & Biases."""

import dataclasses
from pathlib import Path

import jax
from typing_extensions import override

from noisytwins_jax.config import RunConfig
from noisytwins_jax.training.hooks.base import Hook, StepEvent
from noisytwins_jax.training.monitors import compute_monitors
from noisytwins_jax.training.run import Run
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step_metrics import Reported, fetch_in_order, mean_metrics
from noisytwins_jax.utils.multihost import raise_on_all_processes
from noisytwins_jax.utils.wandb_log import WandbLog


def wandb_log(config: RunConfig, workdir: str | Path) -> WandbLog:
    """Return the log of Weights & Biases, which writes in the primary process if the configuration names a project.

    Raises:
      UserError: in all processes: the primary one lacks the package.
    """
    project = config.wandb if jax.process_index() == 0 else ""
    with raise_on_all_processes():
        return WandbLog(project, workdir, config.name, dataclasses.asdict(config))


class LogHook(Hook):
    """Logs at its interval and before every save, so that a state is saved with all its losses logged.

    It fills the event's `updates` and `scalars` for the hooks after it. Time that these take does not count as training.
    """

    def __init__(self, run: Run):
        config = run.config
        self._run, self._interval = run, run.interval(config.log_interval_kimg)
        self._monitor_intervals = {
            name: run.interval(getattr(config, f"{name}_interval_kimg")) for name in run.monitors
        }
        self._reported: list[Reported] = []
        self._monitors_due: set[str] = set()
        self._logged_step = 0

    @override
    def start(self, state: TrainState, step: int) -> None:
        self._reported, self._monitors_due, self._logged_step = [], set(), step
        monitors = self._run.monitors
        if step == 0 and monitors:
            self._run.writer.write_scalars(0, {**compute_monitors(monitors, state, monitors), "kimg": 0.0})
        self._run.stopwatch.reset()

    @override
    def before_step(self, first: int, last: int) -> None:
        self._run.stopwatch.resume()

    @override
    def after_step(self, event: StepEvent, state: TrainState) -> TrainState:
        run, images_per_step = self._run, self._run.config.images_per_step
        self._reported += event.reported
        self._monitors_due |= {
            name for name, interval in self._monitor_intervals.items() if event.due(interval) or event.last
        }
        if event.due(self._interval) or event.saving:
            event.updates = fetch_in_order(self._reported)
            event.scalars = mean_metrics([metrics for _, metrics in event.updates])
            event.scalars |= compute_monitors(run.monitors, state, self._monitors_due)
            speed = run.stopwatch.lap(event.step - self._logged_step, images_per_step)
            kimg = event.step * images_per_step / 1000
            run.writer.write_scalars(event.step, {**event.scalars, "kimg": kimg, **speed})
            run.progress.update(kimg, G=event.scalars["loss/generator"], D=event.scalars["loss/discriminator"])
            self._reported, self._monitors_due, self._logged_step = [], set(), event.step
        run.stopwatch.pause()
        return state
