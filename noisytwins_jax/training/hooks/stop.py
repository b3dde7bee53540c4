"""Ending a run that was asked to stop, after its state is saved."""

from typing_extensions import override

from noisytwins_jax.training.hooks.base import Hook, StepEvent
from noisytwins_jax.training.run import Stop
from noisytwins_jax.training.state import TrainState


class StopHook(Hook):
    """Raises `Stop` where the event says so."""

    @override
    def after_step(self, event: StepEvent, state: TrainState) -> TrainState:
        if event.stopping:
            raise Stop
        return state
