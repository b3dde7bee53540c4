"""A sheet of samples now and then while training."""

from typing_extensions import override

from noisytwins_jax.evaluation.sheets import SHEET_FILE, make_sheet
from noisytwins_jax.training.hooks.base import Hook, StepEvent
from noisytwins_jax.training.run import Run
from noisytwins_jax.training.state import TrainState


class SamplesHook(Hook):
    """Draws samples of the averaged generator into the workdir and TensorBoard at ``config.sheet_interval_kimg``."""

    def __init__(self, run: Run):
        self._run, self._interval = run, run.interval(run.config.sheet_interval_kimg)

    @override
    def after_step(self, event: StepEvent, state: TrainState) -> TrainState:
        if event.due(self._interval):
            run = self._run
            run.watchdog.heartbeat(event.step, "drawing samples", patience=6)
            sheet = make_sheet(run.config, state.ema, run.splits, run.workdir / SHEET_FILE)
            run.writer.write_images(event.step, {"samples": sheet})
        return state
