"""The interface of what the training loop does around its steps."""

import dataclasses

from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step_metrics import Reported


@dataclasses.dataclass
class StepEvent:
    """One turn of the training loop: a step, or several that were dispatched together."""

    first: int  # steps done before it
    step: int  # steps done after it
    reported: list[Reported]  # metrics of its updates, on the device
    last: bool  # whether training ends here
    stopping: bool  # whether the run was asked to stop
    saving: bool = False  # whether the state is to be saved
    updates: list[tuple[int, dict[str, float]]] | None = None  # step and metrics of all updates since the last log
    scalars: dict[str, float] | None = None  # what was logged; both are None where nothing is logged

    def due(self, interval: int) -> bool:
        """Return whether a multiple of `interval` steps was reached."""
        return self.step // interval > self.first // interval


class Hook:
    """One concern of the training loop. All processes of a run call every hook; the order of the hooks is a contract."""

    def start(self, state: TrainState, step: int) -> None:
        """Prepare for training from `step` on: at the start, and again after every rewind."""

    def before_step(self, first: int, last: int) -> None:
        """Prepare for the steps number `first` to `last` (from 1)."""

    def after_step(self, event: StepEvent, state: TrainState) -> TrainState:
        """Do what is due after a step; return the state to go on with.

        Raises:
          Rewind: training is to resume from the newest checkpoint.
          Stop: training is to end here.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Release what the hook holds, when training ends in any way."""
