"""Training that collapses: a generator's weights explode, the discriminator's loss jumps, samples get much worse.

After BigGAN (Brock et al. 2019, section 4 and appendices F and H): there is no σ0 at which training collapses, and in
most layers it grows all the way, so what counts is growth that is sudden beside what was usual shortly before.
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
_LEAST_DEVIATION = 0.2  # of the loss, whose range is about 0 to 3: near zero it may grow many times and mean nothing
_NORMAL_MAD = 1.4826  # standard deviation of normal numbers over their median absolute deviation
_EVALUATIONS = 3  # made before one is judged; each is of thousands of images, so then it counts alone


class Collapse(NamedTuple):
    """An alarm."""

    step: int
    good_step: int  # the last one at which all that is unusual now was still as usual
    sign: str  # a sentence without its full stop


class CollapseDetector:
    """Looks at every logged record, and says when training collapses.

    Three things are watched, each beside its own past, and each may be missing from a record:

    - ``spectra/generator/<path>/0``, σ0 of a weight: above ``sigma_growth`` times its median (and above the median of
      all weights, as one that starts near zero may grow many times);
    - ``loss/discriminator``: ``loss_jump`` deviations above its median (1.48 times the median absolute one);
    - a Fréchet distance of an evaluation: above ``distance_growth`` times the best.

    Medians are of the last ``window`` usual looks; nothing is judged before there are a quarter as many. What is
    unusual does not become part of the past. Numbers that are not finite are left to `survival.finite`.

    After an alarm all is forgotten: the next one is about what becomes unusual beside the new state.

    Args:
      config: when to give an alarm; what is done then is the caller's business.
    """

    def __init__(self, config: CollapseConfig) -> None:
        self._config = config
        self._numbers: dict[str, _Number] = {}

    def update(self, step: int, record: Mapping[str, Any]) -> Collapse | None:
        """Takes the numbers logged at a step, None for one that was not finite; the alarm, if this gives one.

        The same records in the same order always give the same alarms.
        """
        values = {name: float(x) for name, x in record.items() if x is not None and math.isfinite(x)}
        self._judge_spectra(step, values)
        self._judge_loss(step, values)
        self._judge_distances(step, values)
        signs = {name: values[name] for name in self._numbers if self._is_alarming(name)}  # all are of this record
        if not signs:
            return None
        good_step = min(x.good[0] for x in self._numbers.values() if x.unusual_looks)
        sign = self._describe(step, signs)
        self._numbers.clear()
        return Collapse(step, good_step, sign)

    def replay(self, records: Iterable[Mapping[str, Any]]) -> list[Collapse]:
        """Starts anew and looks at what a run has logged, to go on watching where it stopped.

        Args:
          records: of `logs.read_metrics`.

        Returns:
          The alarms on the way.
        """
        self._numbers.clear()
        alarms = [self.update(record["step"], record) for record in records]
        return [alarm for alarm in alarms if alarm is not None]

    def _judge_spectra(self, step: int, values: Mapping[str, float]) -> None:
        weights = [name for name in values if name.startswith(SIGMA_PREFIX) and name.endswith(SIGMA_SUFFIX)]
        usual = {name: past.median() for name in weights if (past := self._past(name)).enough}
        of_all = median(usual.values()) if usual else 0.0
        for name in weights:
            limit = max(self._config.sigma_growth * usual[name], of_all) if name in usual else math.inf
            self._past(name).judge(step, values[name], limit, usual.get(name, math.inf))

    def _judge_loss(self, step: int, values: Mapping[str, float]) -> None:
        if LOSS not in values:
            return
        past = self._past(LOSS)
        usual = limit = math.inf
        if past.enough:
            usual = past.median()
            deviation = _NORMAL_MAD * median(abs(x - usual) for _, x in past.looks)
            limit = usual + self._config.loss_jump * max(deviation, _LEAST_DEVIATION)
        past.judge(step, values[LOSS], limit, usual)

    def _judge_distances(self, step: int, values: Mapping[str, float]) -> None:
        for name in DISTANCES:
            if name not in values:
                continue
            past = self._numbers.setdefault(name, _Number(window=None, warm_up=_EVALUATIONS))
            best = min((x for _, x in past.looks), default=math.inf) if past.enough else math.inf
            growth = self._config.distance_growth
            past.judge(step, values[name], growth * best, math.sqrt(growth) * best)  # half-way at most is as usual

    def _past(self, name: str) -> "_Number":
        window = self._config.window
        return self._numbers.setdefault(name, _Number(window, window // 4))

    def _is_alarming(self, name: str) -> bool:
        return self._numbers[name].unusual_looks >= (1 if name in DISTANCES else self._config.patience)

    def _describe(self, step: int, signs: Mapping[str, float]) -> str:
        """The most telling number that gave the alarm: the weight that grew most, else the loss, else a distance."""

        def growth(name: str) -> float:
            before = self._numbers[name].good[1]
            return signs[name] / before if before > 0 else math.inf

        weights = [name for name in signs if name.startswith(SIGMA_PREFIX)]
        name = max(weights, key=growth) if weights else LOSS if LOSS in signs else next(iter(signs))
        if weights:
            what = f"σ0 of generator/{name.removeprefix(SIGMA_PREFIX).removesuffix(SIGMA_SUFFIX)}"
        else:
            what = "the discriminator's loss" if name == LOSS else name.removeprefix("evaluation/")
        good_step, before = self._numbers[name].good
        change = f"went from {before:.3g} at step {good_step} to {signs[name]:.3g} at step {step}"
        times = f" ({growth(name):.1f} times)" if name != LOSS and before > 0 else ""
        more = len(weights) - 1
        others = f", and {'that of another weight' if more == 1 else f'those of {more} other weights'} too"
        return f"{what} {change}{times}{others if more > 0 else ''}"


class _Number:
    """The past of a number.

    Args:
      window: usual looks to remember; None for all.
      warm_up: usual looks that there must be for a judgement.
    """

    def __init__(self, window: int | None, warm_up: int) -> None:
        self.looks: deque[tuple[int, float]] = deque(maxlen=window)  # steps and values of usual looks
        self.unusual_looks = 0  # in a row, up to now
        self._warm_up, self._as_usual = warm_up, math.inf

    @property
    def enough(self) -> bool:
        return len(self.looks) >= self._warm_up

    @property
    def good(self) -> tuple[int, float]:
        """Step and value of the last usual look that was not above most of those before it became unusual."""
        return next(look for look in reversed(self.looks) if look[1] <= self._as_usual)

    def median(self) -> float:
        return median(value for _, value in self.looks)

    def judge(self, step: int, value: float, limit: float, as_usual: float) -> None:
        """Takes a value that is unusual above `limit`; up to `as_usual`, of the values before, it has not grown."""
        if value > limit:
            self.unusual_looks, self._as_usual = self.unusual_looks + 1, as_usual
        else:
            self.looks.append((step, value))
            self.unusual_looks = 0
