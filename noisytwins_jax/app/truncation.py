"""The slider of truncation: which kind a generator has, and the range of its strength."""

from typing import NamedTuple

from noisytwins_jax.config import RunConfig
from noisytwins_jax.models.latents import TRUNCATION_DESCRIPTIONS, TRUNCATION_SYMBOLS, Truncation


class TruncationSlider(NamedTuple):
    """A slider that truncates the more, the further it is on the left.

    Attributes:
      kind: of `latents.TRUNCATIONS`.
      low, high, step: of the strength.
    """

    kind: str
    low: float
    high: float
    step: float

    @property
    def label(self) -> str:
        """Its name."""
        return f"Truncation, {TRUNCATION_SYMBOLS[self.kind].removesuffix(' =').removesuffix(' ≤')}"

    @property
    def info(self) -> str:
        """What it does."""
        end = "" if self.kind == "scaled" else f"; {self.high:g} is no truncation"
        return f"{TRUNCATION_DESCRIPTIONS[self.kind].capitalize()}{end}."

    def truncation(self, strength: float) -> Truncation | None:
        """Return the truncation of a strength, which is moved into the range."""
        strength = min(max(float(strength), self.low), self.high)
        # At their right ends psi and std change nothing, and the program is compiled already.
        return None if self.kind == "threshold" and strength == self.high else Truncation(self.kind, strength)


def truncation_slider(config: RunConfig) -> TruncationSlider:
    """Return the slider of the run's own kind of truncation, or of one that its latents allow."""
    kind = config.truncation_kind
    if kind in ("threshold", "scaled") and config.latents.kind != "normal":
        kind = "psi" if config.has_mapping_network else "std"
    # |z| ≤ 3 keeps 99.7 % of a normal distribution.
    low, high, step = {"psi": (0.0, 1.0, 0.05), "threshold": (0.1, 3.0, 0.1)}.get(kind, (0.1, 1.0, 0.05))
    return TruncationSlider(kind, low, high, step)
