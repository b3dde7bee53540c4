"""Losses and tensors that are not finite: training ends with an error message, or goes back and skips the images."""

from typing_extensions import override

from noisytwins_jax.training.fault_tolerance.nan_guard import Diverged, check_finite, divergence_error
from noisytwins_jax.training.hooks.base import Hook, StepEvent
from noisytwins_jax.training.run import Rewind, Run
from noisytwins_jax.training.state import TrainState


class NanGuardHook(Hook):
    """Checks all losses that are logged, and all tensors before they are saved."""

    def __init__(self, run: Run):
        self._run = run
        self._rewinds, self._rewound_to = 0, None  # to the same checkpoint

    @override
    def after_step(self, event: StepEvent, state: TrainState) -> TrainState:
        if event.updates is not None:
            try:
                check_finite(event.updates, state, thorough=event.saving)
            except Diverged as error:
                self._handle(error)
        return state

    def _handle(self, error: Diverged) -> None:
        run, faults = self._run, self._run.config.faults
        skipped = run.batches.state()["next_index"]
        run.checkpoints.wait()
        newest = max(run.checkpoints.steps(), default=None)
        self._rewinds = self._rewinds if newest == self._rewound_to else 0
        if faults.nonfinite == "stop" or self._rewinds == faults.max_rewinds:
            directory = run.workdir / "checkpoints"
            raise divergence_error(error.step, error.loss, error.tensors, directory, newest, self._rewinds) from None
        self._rewinds, self._rewound_to = self._rewinds + 1, newest
        raise Rewind(
            f"Training diverged at step {error.step} ({error.loss} is not finite): going back to step {{step}}, and on "
            f"with the images after batch {skipped}.",
            next_index=skipped,
        ) from None
