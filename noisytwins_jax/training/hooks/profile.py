"""A trace of some steps, where the configuration asks for one."""

import jax
from typing_extensions import override

from noisytwins_jax.training.hooks.base import Hook, StepEvent
from noisytwins_jax.training.profiling import Tracer
from noisytwins_jax.training.run import Run
from noisytwins_jax.training.state import TrainState


class ProfileHook(Hook):
    """Traces the steps of ``config.profile.steps`` on the first process."""

    def __init__(self, run: Run):
        self._run = run
        self._tracer = Tracer(run.config.profile.steps, run.workdir, enabled=jax.process_index() == 0)

    @override
    def before_step(self, first: int, last: int) -> None:
        self._tracer.before(first, last)

    @override
    def after_step(self, event: StepEvent, state: TrainState) -> TrainState:
        if self._tracer.after(event.step, state):
            self._run.progress.write(f"A trace up to step {event.step} is in {self._tracer.directory}.")
        return state

    @override
    def close(self) -> None:
        self._tracer.close()
