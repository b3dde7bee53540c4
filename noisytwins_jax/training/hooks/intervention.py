"""The intervention of the configuration: other learning rates, a frozen network, fresh momenta from some step on."""

from typing_extensions import override

from noisytwins_jax.training.hooks.base import Hook, StepEvent
from noisytwins_jax.training.hooks.collapse import CollapseHook
from noisytwins_jax.training.interventions import intervene
from noisytwins_jax.training.run import Run
from noisytwins_jax.training.state import TrainState


class InterventionHook(Hook):
    """Applies ``config.intervention`` after its step."""

    def __init__(self, run: Run, collapse: CollapseHook):
        self._run, self._collapse = run, collapse

    @override
    def after_step(self, event: StepEvent, state: TrainState) -> TrainState:
        config = self._run.config
        if event.first < config.intervention.step <= event.step:
            state = intervene(state, config.intervention, config.collapse, self._collapse.returns)
            self._run.progress.write(f"step {event.step}: the intervention of the configuration is made.")
        return state
