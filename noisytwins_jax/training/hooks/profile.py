"""A trace of some steps, for TensorBoard's profiler or Perfetto, where the configuration asks for one."""

import jax
from typing_extensions import override

from noisytwins_jax.config.groups import traced_steps
from noisytwins_jax.training.hooks.base import Hook, StepEvent
from noisytwins_jax.training.run import Run
from noisytwins_jax.training.state import TrainState


class ProfileHook(Hook):
    """Traces the steps of ``config.profile.steps`` on the primary process, once, into ``<workdir>/profile``."""

    def __init__(self, run: Run):
        self._progress, self._directory = run.progress, run.workdir / "profile"
        self._steps = traced_steps(run.config.profile.steps) if jax.process_index() == 0 else None
        self._tracing = False

    @override
    def before_step(self, first: int, last: int) -> None:
        if self._steps is not None and not self._tracing and first <= self._steps[1] and last >= self._steps[0]:
            jax.profiler.start_trace(self._directory)
            self._tracing = True

    @override
    def after_step(self, event: StepEvent, state: TrainState) -> TrainState:
        if self._tracing and event.step >= self._steps[1]:
            jax.block_until_ready(state)
            self.close()
            self._progress.write(f"A trace up to step {event.step} is in {self._directory}.")
        return state

    @override
    def close(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing, self._steps = False, None
