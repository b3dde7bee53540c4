"""Latent distributions and their truncation (Brock et al., "Large Scale GAN Training for High Fidelity Natural Image
Synthesis" (BigGAN), ICLR 2019, section 3.1 and appendix E).

Everything here can be traced, including the strength of a truncation: one compiled program serves a whole sweep.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.utils.errors import UserError, did_you_mean

Array = jax.Array


def _fair_bernoulli(key: Array, shape: tuple[int, int]) -> Array:
    return jax.random.bernoulli(key, 0.5, shape).astype(float)


def _normal_bernoulli(key: Array, shape: tuple[int, int]) -> Array:
    normal, bernoulli = jax.random.split(key)
    return jax.random.normal(normal, shape) * _fair_bernoulli(bernoulli, shape)


def _mixed(key: Array, shape: tuple[int, int]) -> Array:
    normal, bernoulli = jax.random.split(key)
    n, dim = shape
    discrete = dim // 2
    return jnp.concatenate(
        [jax.random.normal(normal, (n, dim - discrete)), _fair_bernoulli(bernoulli, (n, discrete))], axis=1
    )


# Name → (key, (n, z_dim)) → latents [n, z_dim]. All elements are independent; Bernoulli variables have p = 1/2.
LATENTS: dict[str, Callable[[Array, tuple[int, int]], Array]] = {
    "normal": jax.random.normal,  # N(0, 1)
    "uniform": lambda key, shape: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0),  # U[-1, 1]
    "bernoulli": _fair_bernoulli,  # {0, 1}
    "censored": lambda key, shape: jax.nn.relu(jax.random.normal(key, shape)),  # max(N(0, 1), 0)
    "sign": lambda key, shape: jax.random.rademacher(key, shape, float),  # {-1, 1}
    "ternary": lambda key, shape: jax.random.randint(key, shape, -1, 2).astype(float),  # {-1, 0, 1}, a third each
    "normal_bernoulli": _normal_bernoulli,  # N(0, 1) or 0
    "mixed": _mixed,  # the first half N(0, 1), rounded up, the rest {0, 1}
    "random_std": jax.random.normal,  # N(0, σ²), σ of each sample from `Latents.std_range`: U[low, high]
}

TRUNCATIONS = (
    "psi",  # in W, towards its mean: w_avg + ψ·(w - w_avg)
    "threshold",  # of the BigGAN paper: elements of z are resampled until |z| ≤ threshold
    "scaled",  # of the published BigGAN modules: strength times a normal z truncated to [-2, 2]
    "std",  # of BigGAN's PyTorch release: strength times z
)


TRUNCATION_DESCRIPTIONS = {  # for reports
    "psi": "w is moved towards its mean",
    "threshold": "elements of z above the threshold are resampled",
    "scaled": "z is a normal variable truncated at 2, times the scale",
    "std": "z has this standard deviation",
}
TRUNCATION_SYMBOLS = {"psi": "ψ =", "threshold": "|z| ≤", "scaled": "scale =", "std": "std ="}  # before a strength


class Truncation(NamedTuple):
    """A kind of truncation, of `TRUNCATIONS`, and its strength; the smaller the strength, the less variety."""

    kind: str
    strength: float


class Latents(NamedTuple):
    """A distribution of latents.

    `std_range` are the bounds of σ of kind ``"random_std"``, uniform for each sample; other kinds ignore it.
    """

    z_dim: int
    kind: str = "normal"  # of `LATENTS`
    std_range: tuple[float, float] = (0.5, 1.5)  # the paper names no bounds

    def draw(
        self,
        key: Array,
        n: int,
        std: float | Array = 1.0,
        truncation_kind: str | None = None,
        strength: float | Array | None = None,
    ) -> Array:
        """Sample latents ``[n, z_dim]`` in jax's default float type.

        Kind ``"normal"`` is ``jax.random.normal(key, (n, z_dim))`` to the bit, at std 1 and without truncation.

        Args:
          key: PRNG key. With the same key, latents change continuously with the strength of a truncation.
          n: how many.
          std: factor of the untruncated latents (`annealed_std`); may be traced.
          truncation_kind: of `TRUNCATIONS`, or ``None``. ``"psi"`` changes nothing here: it acts in W.
          strength: see `TRUNCATIONS`; may be traced. A threshold bounds the latents as they are returned, std included.

        Raises:
          ValueError: for ``"threshold"`` or ``"scaled"`` on latents that are not normal (see `check_truncation`).
        """
        shape = (n, self.z_dim)
        if truncation_kind in ("threshold", "scaled"):
            if self.kind != "normal":
                raise ValueError(f"truncation {truncation_kind!r} needs normal latents, not {self.kind!r}.")
            if truncation_kind == "scaled":
                return strength * std * _truncated_normal(key, shape, 2.0)
            return std * _truncated_normal(key, shape, strength / jnp.asarray(std, float))
        if self.kind == "random_std":
            key, std_key = jax.random.split(key)
            low, high = self.std_range
            std = std * jax.random.uniform(std_key, (n, 1), minval=low, maxval=high)
        z = std * LATENTS[self.kind](key, shape)
        return strength * z if truncation_kind == "std" else z


def annealed_std(kimg: float | Array, start: float, end: float, over_kimg: float) -> Array:
    """Anneal σ linearly from `start` to `end` over the first `over_kimg` (above 0); it is `end` from then on.

    BigGAN's appendix E anneals from 2 to 1 "over the course of training" without stating the schedule.
    """
    return start + (end - start) * jnp.clip(jnp.asarray(kimg, float) / over_kimg, 0.0, 1.0)


def parse_truncation(text: str, default_kind: str) -> Truncation | None:
    """Parse ``0.7`` (of the default kind), ``threshold:0.5``, or an empty text for no truncation (``None``).

    Whether it fits the network is checked by `check_truncation`.

    Raises:
      UserError: the text is anything else.
    """
    text = text.strip()
    if not text:
        return None
    kind, _, number = (part.strip() for part in text.rpartition(":"))
    kind = kind if ":" in text else default_kind
    _check_kind(kind)
    try:
        return Truncation(kind, float(number))
    except ValueError:
        raise UserError(
            f"Truncation {text!r} has no number as its strength; give one as 0.7 or with its kind as threshold:0.5."
        ) from None


def check_truncation(kind: str, strength: float, latents_kind: str, has_w: bool) -> None:
    """Check that a truncation is possible and has an effect.

    Args:
      kind: of `TRUNCATIONS`.
      strength: for psi any finite number, for threshold above 0 (infinity is no truncation), otherwise finite, at least 0.
      latents_kind: of `LATENTS`.
      has_w: whether the generator has a mapping network: StyleGAN2 has, BigGAN has none.

    Raises:
      UserError: it is not possible, or has no effect.
    """
    _check_kind(kind)
    if kind == "psi" and not has_w:
        raise UserError(
            "Truncation psi acts in W, which this generator does not have; truncate its latents: threshold:0.5 or std:0.5."
        )
    if kind in ("scaled", "std") and has_w:
        raise UserError(
            f"Truncation {kind} changes nothing here, as the mapping network normalises its latents; use psi, as psi:0.7."
        )
    if kind in ("threshold", "scaled") and latents_kind != "normal":
        raise UserError(
            f"Truncation {kind} needs normal latents, and these are {latents_kind}; use {'psi' if has_w else 'std'}, "
            f"as {'psi:0.7' if has_w else 'std:0.5'}."
        )
    if kind == "psi" and not math.isfinite(strength):
        raise UserError(f"Truncation psi must be finite, but it is {strength:g}; 1 is no truncation, 0 the mean image.")
    if kind == "threshold" and not strength > 0:
        raise UserError(f"A truncation threshold must be above 0, but it is {strength:g}; the paper has 0.04 to 2.")
    if kind in ("scaled", "std") and not 0 <= strength < math.inf:
        raise UserError(f"Truncation {kind} must be finite and at least 0, but it is {strength:g}; try 0.5.")


def _check_kind(kind: str) -> None:
    if kind not in TRUNCATIONS:
        raise UserError(f"There is no truncation {kind!r}: {did_you_mean(kind, TRUNCATIONS)}")


def _truncated_normal(key: Array, shape: tuple[int, int], threshold: float | Array) -> Array:
    """Sample N(0, 1) given |z| ≤ threshold: ``Φ⁻¹`` of uniform numbers between ``Φ(-threshold)`` and ``Φ(threshold)``.

    The uniform numbers are those of ``jax.random.normal(key, shape)``, which is the limit of high thresholds.
    """
    threshold = jnp.asarray(threshold, float)
    above = np.nextafter(np.array(-1.0, threshold.dtype), np.array(0.0, threshold.dtype))  # -1 itself would give -∞
    u = jax.random.uniform(key, shape, threshold.dtype, minval=above, maxval=1.0)
    z = math.sqrt(2) * jax.lax.erf_inv(u * jax.lax.erf(threshold / math.sqrt(2)))
    return jnp.clip(z, -threshold, threshold)  # rounding at the ends
