"""Saving the state, with the position in the data and the configuration."""

from typing_extensions import override

from noisytwins_jax.config import flatten
from noisytwins_jax.training.hooks.base import Hook, StepEvent
from noisytwins_jax.training.hooks.collapse import CollapseHook
from noisytwins_jax.training.run import Run
from noisytwins_jax.training.state import TrainState


class CheckpointHook(Hook):
    """Saves where the event says so; waits until it is on disk where an evaluation follows or training ends."""

    def __init__(self, run: Run, collapse: CollapseHook):
        self._run, self._collapse = run, collapse
        self._config, self._fingerprint = flatten(run.config), run.splits.train.fingerprint
        self._evaluation_interval = run.interval(run.config.evaluation.interval_kimg)

    @override
    def after_step(self, event: StepEvent, state: TrainState) -> TrainState:
        if event.saving:
            run = self._run
            run.watchdog.heartbeat(event.step, "saving", patience=6)
            data = {**run.batches.state(), "fingerprint": self._fingerprint, "returns": self._collapse.returns}
            wait = event.due(self._evaluation_interval) or event.stopping or event.last
            run.checkpoints.save(event.step, state, data, self._config, wait=wait)
        return state
