"""Watching a run for collapse while it trains, and going back to a checkpoint of before if the configuration says so."""

import sys
from collections.abc import Mapping
from pathlib import Path

from noisytwins_jax.config.groups import CollapseConfig
from noisytwins_jax.training.checkpoint import Checkpoints
from noisytwins_jax.training.fault_tolerance.collapse_detector import Collapse, CollapseDetector
from noisytwins_jax.training.fault_tolerance.collapse_log import read_collapses, returns_made, write_collapse
from noisytwins_jax.utils.logging import METRICS_FILE, read_metrics
from noisytwins_jax.utils.multihost import broadcast_from_primary, print_on_primary


class Collapsed(Exception):
    """Training collapsed, and is to go on from the checkpoint of step `kept`, now the newest."""

    def __init__(self, kept: int):
        super().__init__(kept)
        self.kept = kept


class CollapseWatch:
    """Looks at every logged number of a run. To be made and called by all processes of the run.

    Args:
      config: what to watch for and what to do then.
      checkpoints: the run's, writable.
      workdir: the run's; what it has logged so far is looked at first.
      start: step that the run goes on from.

    Attributes:
      returns: how often the run went back already.
    """

    def __init__(self, config: CollapseConfig, checkpoints: Checkpoints, workdir: Path, start: int):
        self._config, self._checkpoints, self._workdir = config, checkpoints, workdir
        records = broadcast_from_primary(lambda: read_collapses(workdir))
        self.returns = returns_made(records)
        self._detector = CollapseDetector(config) if config.watched else None
        self._unheeded: Collapse | None = None  # an alarm of `start`: the run was killed before it was written down
        if self._detector is not None:
            alarms = self._detector.replay(broadcast_from_primary(lambda: read_metrics(workdir)))
            known = {record["step"] for record in records}
            self._unheeded = next((alarm for alarm in alarms if alarm.step == start and start not in known), None)

    def look(self, step: int, numbers: Mapping[str, float] | None = None) -> None:
        """Looks at the numbers logged at a step; without numbers, heeds what was seen before the run was killed.

        At a collapse it says so, keeps the last good checkpoint, and writes it down.

        Raises:
          Collapsed: training is to go on from that checkpoint.
        """
        collapse, self._unheeded = self._unheeded, None
        if numbers is not None and self._detector is not None:
            collapse = self._detector.look(step, numbers)
        if collapse is not None:
            self._heed(collapse)

    def _heed(self, collapse: Collapse) -> None:
        """Written down last: a run that is killed in here finds the same collapse again when it goes on."""
        config, checkpoints, workdir = self._config, self._checkpoints, self._workdir
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
            raise Collapsed(kept)
