"""Watching a run for collapse while it trains, and going back to an earlier checkpoint if the configuration says so."""

import sys
from collections.abc import Mapping

from typing_extensions import override

from noisytwins_jax.training.fault_tolerance.collapse_detector import Collapse, CollapseDetector
from noisytwins_jax.training.fault_tolerance.collapse_log import count_returns, read_collapses, write_collapse
from noisytwins_jax.training.hooks.base import Hook, StepEvent
from noisytwins_jax.training.run import Rewind, Run
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.utils.logging import METRICS_FILE, read_metrics
from noisytwins_jax.utils.multihost import broadcast_from_primary, print_on_primary


class CollapseHook(Hook):
    """Checks every logged number of a run, of evaluations too.

    Attributes:
      returns: how often the run went back already.
    """

    def __init__(self, run: Run):
        self._run, self._config = run, run.config.collapse
        self._detector = CollapseDetector(self._config) if self._config.watched else None
        self.returns = 0

    @override
    def start(self, state: TrainState, step: int) -> None:
        """Replay what was logged so far, and act on an alarm of this step that a killed run had no time to record."""
        workdir = self._run.workdir
        records = broadcast_from_primary(lambda: read_collapses(workdir))
        self.returns = count_returns(records)
        if self._detector is None:
            return
        alarms = self._detector.replay(broadcast_from_primary(lambda: read_metrics(workdir)))
        recorded = {record["step"] for record in records}
        for alarm in alarms:
            if alarm.step == step and step not in recorded:
                self._handle(alarm)

    @override
    def after_step(self, event: StepEvent, state: TrainState) -> TrainState:
        if event.scalars is not None:
            self.check(event.step, event.scalars)
        return state

    def check(self, step: int, scalars: Mapping[str, float]) -> None:
        """Check numbers logged at a step; if training collapses, say so, keep the last good checkpoint, and record it.

        Raises:
          Rewind: training is to resume from that checkpoint, now the newest.
        """
        if self._detector is not None and (collapse := self._detector.update(step, scalars)) is not None:
            self._handle(collapse)

    def _handle(self, collapse: Collapse) -> None:
        """Record it last: a run that is killed in here finds the same collapse again when it resumes."""
        config, checkpoints, workdir = self._config, self._run.checkpoints, self._run.workdir
        checkpoints.wait()
        kept = checkpoints.newest_at_or_before(collapse.good_step)
        returning = config.action == "return" and kept is not None and self.returns < config.max_returns
        then = "going back there" if returning else "going on"
        if kept is not None:
            checkpoints.pin(kept)
            what = f"the checkpoint of step {kept}, which is of before, is kept"
            if config.action == "return" and not returning:
                then += f", having gone back as often as config.collapse.max_returns={config.max_returns} says"
        else:
            what = (
                f"no checkpoint of step {collapse.good_step} or before is left (lower config.checkpoint_interval_kimg, or "
                "raise config.collapse.keep)"
            )
        print_on_primary(f"Training collapses: {collapse.sign}; {what}; {then}.", sys.stderr)
        if returning:
            checkpoints.discard_after(kept)
        log = workdir / METRICS_FILE if returning else None
        broadcast_from_primary(lambda: write_collapse(workdir, collapse, kept, log))
        if returning:
            raise Rewind
