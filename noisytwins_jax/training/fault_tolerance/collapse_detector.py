"""Detection of collapse: a generator's weights explode, the discriminator's loss jumps, samples get much worse.

After BigGAN (Brock et al. 2019, section 4 and appendices F and H): there is no threshold of σ0 at which training
collapses, and in most layers σ0 grows throughout, so an alarm is for growth that is sudden compared with recent values.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, NamedTuple

from noisytwins_jax.config.groups import CollapseConfig

SIGMA_PREFIX, SIGMA_SUFFIX = "spectra/generator/", "/0"  # around the path of a weight
LOSS = "loss/discriminator"
DISTANCES = ("evaluation/fid", "evaluation/fid_clip", "evaluation/fd_dinov2")  # lower is better
_MIN_DEVIATION = 0.2  # of the loss, whose range is about 0 to 3: near zero, growing many times means nothing
_NORMAL_MAD = 1.4826  # standard deviation over median absolute deviation of a normal distribution
_MIN_EVALUATIONS = 3  # before one is judged; each is of thousands of images, so a single unusual one is an alarm


class Collapse(NamedTuple):
    """An alarm."""

    step: int
    good_step: int  # the last step at which every metric that is unusual now was still usual
    sign: str  # description, without a full stop


class CollapseDetector:
    """Detector of collapse in the logged metrics.

    It compares three kinds of metrics with their own history; each may be missing from a record:

    - ``spectra/generator/<path>/0``, σ0 of a weight: above ``sigma_growth`` times its median (and above the median of
      all weights, as one that starts near zero may grow many times);
    - ``loss/discriminator``: ``loss_jump`` deviations (1.48 times the median absolute deviation) above its median;
    - a Fréchet distance of an evaluation: above ``distance_growth`` times the best.

    Medians are of the last ``window`` usual values; nothing is judged before there are a quarter as many. Unusual values
    do not enter the history. Values that are not finite are skipped (see `nan_guard`).

    An alarm clears the history: the next one compares with the state after it.

    Args:
      config: the thresholds; how to react to an alarm is up to the caller.
    """

    def __init__(self, config: CollapseConfig) -> None:
        self._config = config
        self._histories: dict[str, _History] = {}

    def update(self, step: int, record: Mapping[str, Any]) -> Collapse | None:
        """Add the metrics logged at a step (None for one that was not finite); return the alarm, if there is one.

        The same records in the same order always give the same alarms.
        """
        values = {name: float(x) for name, x in record.items() if x is not None and math.isfinite(x)}
        self._check_singular_values(step, values)
        self._check_loss(step, values)
        self._check_distances(step, values)
        alarming = {name: values[name] for name in self._histories if self._is_alarming(name)}  # all are in this record
        if not alarming:
            return None
        good_step = min(x.last_usual[0] for x in self._histories.values() if x.unusual_in_row)
        sign = self._describe(step, alarming)
        self._histories.clear()
        return Collapse(step, good_step, sign)

    def replay(self, records: Iterable[Mapping[str, Any]]) -> list[Collapse]:
        """Clear the history and update it with the records of a run, to continue where the run stopped.

        Args:
          records: of `logging.read_metrics`.

        Returns:
          The alarms.
        """
        self._histories.clear()
        alarms = [self.update(record["step"], record) for record in records]
        return [alarm for alarm in alarms if alarm is not None]

    def _check_singular_values(self, step: int, values: Mapping[str, float]) -> None:
        weights = [name for name in values if name.startswith(SIGMA_PREFIX) and name.endswith(SIGMA_SUFFIX)]
        usual = {name: history.median() for name in weights if (history := self._history(name)).enough}
        overall = median(usual.values()) if usual else 0.0
        for name in weights:
            limit = max(self._config.sigma_growth * usual[name], overall) if name in usual else math.inf
            self._history(name).update(step, values[name], limit, usual.get(name, math.inf))

    def _check_loss(self, step: int, values: Mapping[str, float]) -> None:
        if LOSS not in values:
            return
        history = self._history(LOSS)
        usual = limit = math.inf
        if history.enough:
            usual = history.median()
            deviation = _NORMAL_MAD * median(abs(x - usual) for _, x in history.values)
            limit = usual + self._config.loss_jump * max(deviation, _MIN_DEVIATION)
        history.update(step, values[LOSS], limit, usual)

    def _check_distances(self, step: int, values: Mapping[str, float]) -> None:
        for name in DISTANCES:
            if name not in values:
                continue
            history = self._histories.setdefault(name, _History(window=None, warm_up=_MIN_EVALUATIONS))
            best = min((x for _, x in history.values), default=math.inf) if history.enough else math.inf
            growth = self._config.distance_growth
            history.update(step, values[name], growth * best, math.sqrt(growth) * best)  # up to half-way is no growth

    def _history(self, name: str) -> "_History":
        window = self._config.window
        return self._histories.setdefault(name, _History(window, window // 4))

    def _is_alarming(self, name: str) -> bool:
        return self._histories[name].unusual_in_row >= (1 if name in DISTANCES else self._config.patience)

    def _describe(self, step: int, alarming: Mapping[str, float]) -> str:
        """Describe the most telling metric of an alarm: the weight that grew most, else the loss, else a distance."""

        def growth(name: str) -> float:
            before = self._histories[name].last_usual[1]
            return alarming[name] / before if before > 0 else math.inf

        weights = [name for name in alarming if name.startswith(SIGMA_PREFIX)]
        name = max(weights, key=growth) if weights else LOSS if LOSS in alarming else next(iter(alarming))
        if weights:
            what = f"σ0 of generator/{name.removeprefix(SIGMA_PREFIX).removesuffix(SIGMA_SUFFIX)}"
        else:
            what = "the discriminator's loss" if name == LOSS else name.removeprefix("evaluation/")
        good_step, before = self._histories[name].last_usual
        change = f"went from {before:.3g} at step {good_step} to {alarming[name]:.3g} at step {step}"
        times = f" ({growth(name):.1f} times)" if name != LOSS and before > 0 else ""
        more = len(weights) - 1
        others = f", and {'that of another weight' if more == 1 else f'those of {more} other weights'} too"
        return f"{what} {change}{times}{others if more > 0 else ''}"


class _History:
    """The usual values of a metric.

    Args:
      window: values to store; None for all.
      warm_up: values needed before new ones are judged.
    """

    def __init__(self, window: int | None, warm_up: int) -> None:
        self.values: deque[tuple[int, float]] = deque(maxlen=window)  # (step, value) of usual values
        self.unusual_in_row = 0  # unusual values since the last usual one
        self._warm_up, self._not_grown = warm_up, math.inf

    @property
    def enough(self) -> bool:
        return len(self.values) >= self._warm_up

    @property
    def last_usual(self) -> tuple[int, float]:
        """Return step and value of the last usual value that had not grown yet."""
        return next(entry for entry in reversed(self.values) if entry[1] <= self._not_grown)

    def median(self) -> float:
        return median(value for _, value in self.values)

    def update(self, step: int, value: float, limit: float, not_grown: float) -> None:
        """Add a value. It is unusual above `limit`; earlier values up to `not_grown` count as not grown yet."""
        if value > limit:
            self.unusual_in_row, self._not_grown = self.unusual_in_row + 1, not_grown
        else:
            self.values.append((step, value))
            self.unusual_in_row = 0
