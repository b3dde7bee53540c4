"""NoisyTwins (Rangwani et al., "NoisyTwins: Class-Consistent and Diverse Image Generation through StyleGANs", CVPR 2023).

The whole method: noise on the class embedding (eq. 3), two noisy twins of every (z, class) pair (Sec. 4.2, Fig. 4), and a
Barlow-Twins loss on the cross-correlation of the twins' w (eq. 5 and 6).

Where the paper and its published code differ, the code is the default, and the paper's literal form is an option:
``noise_normalization``, ``noise_scale``, ``correlation`` and ``diagonal``.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from noisytwins_jax.losses.base import GeneratorContext, WeightedLoss
from noisytwins_jax.utils.config_fields import choice, number

Array = jax.Array


def effective_number(counts: np.ndarray, alpha: float) -> np.ndarray:
    """Compute the effective number of samples of each class, ``(1 - αⁿ) / (1 - α)`` (Cui et al., CVPR 2019). float64 ``[C]``."""
    return (1.0 - np.power(alpha, np.asarray(counts, np.float64))) / (1.0 - alpha)


def class_noise_std(
    counts: np.ndarray,
    sigma: float,
    alpha: float,
    noise_normalization: Literal["mean1", "paper"] = "mean1",
    noise_scale: Literal["std", "variance"] = "std",
) -> np.ndarray:
    """Compute the standard deviation of the noise on each class's embedding: σ_c of eq. 3.

    Args:
      counts: training images of each class, ``[C]``.
      sigma: σ, in units of the effective embedding (whose coordinates start with standard deviation 1/√C).
      alpha: α in [0, 1); 0 gives every class the same noise.
      noise_normalization: ``"mean1"`` scales the inverse effective numbers to mean one, so that σ is the mean standard
        deviation (published code); ``"paper"`` takes eq. 3 as printed, ``σ(1 - α)/(1 - αⁿ)``.
      noise_scale: whether σ_c is the ``"std"`` (published code) or the ``"variance"`` (as ``N(0, σ_c I)`` reads).

    Returns:
      float32 ``[C]``.
    """
    inverse = 1.0 / effective_number(counts, alpha)
    if noise_normalization == "mean1":
        inverse = inverse / inverse.mean()
    scale = sigma * inverse
    return (np.sqrt(scale) if noise_scale == "variance" else scale).astype(np.float32)


def class_noise(key: Array, labels: Array, std: Array, dim: int) -> Array:
    """Sample noise for the embeddings of `labels` ``[N]``: independent ``N(0, std[label]²)`` per coordinate, ``[N, dim]``."""
    return std[labels][:, None] * jax.random.normal(key, (labels.shape[0], dim), dtype=std.dtype)


def twins(x: Array) -> Array:
    """Double a half batch ``[N, …] → [2N, …]`` in the layout [all a; all b]: rows i and i + N are twins."""
    return jnp.concatenate([x, x])


def cross_correlation(a: Array, b: Array, correlation: Literal["standardized", "paper"] = "standardized") -> Array:
    """Compute the cross-correlation ``[D, D]`` of two batches ``[N, D]`` over the whole global batch (eq. 5).

    ``"standardized"`` (published code): columns are centred and divided by their biased standard deviation (ε = 1e-5),
    and the product by N. ``"paper"``: eq. 5 as printed, without centring and without a square root in the
    denominator.
    """
    product = functools.partial(jnp.matmul, precision="highest")  # a TPU would multiply in bfloat16 by default
    if correlation == "paper":
        return product(a.T, b) / (jnp.square(a).sum(axis=0)[:, None] * jnp.square(b).sum(axis=0)[None, :])

    def standardize(x: Array) -> Array:
        return (x - x.mean(axis=0)) * jax.lax.rsqrt(x.var(axis=0) + 1e-5)

    return product(standardize(a).T, standardize(b)) / a.shape[0]


def noisytwins_loss(
    w: Array,
    gamma: float,
    correlation: Literal["standardized", "paper"] = "standardized",
    diagonal: Literal["barlow", "paper"] = "barlow",
    replicate: Callable[[Array], Array] = lambda x: x,
) -> Array:
    """Compute L_NT of eq. 6 (without λ): twins' w should agree in every coordinate, and coordinates be decorrelated.

    Args:
      w: mapping outputs ``[2N, D]`` in the layout of `twins`.
      gamma: γ, weight of the off-diagonal terms.
      correlation: see `cross_correlation`.
      diagonal: ``"barlow"`` is ``Σ (1 - C_jj)²`` (published code), ``"paper"`` is ``Σ (1 - C_jj²)`` (eq. 6 as printed,
        which also rewards anti-correlation).
      replicate: gathers `w` to every device of a mesh, once.

    Returns:
      A scalar: a plain sum over D diagonal and D(D - 1) off-diagonal entries.
    """
    half = w.shape[0] // 2
    w = replicate(w)
    c = cross_correlation(w[:half], w[half:], correlation)
    on_diagonal = jnp.where(jnp.eye(len(c), dtype=bool), c, 0).sum(axis=0)  # jnp.diagonal is a gather, slow on TPUs
    agreement = jnp.square(1.0 - on_diagonal) if diagonal == "barlow" else 1.0 - jnp.square(on_diagonal)
    return agreement.sum() + gamma * (jnp.square(c).sum() - jnp.square(on_diagonal).sum())


@dataclass(frozen=True)
class NoisyTwins(WeightedLoss):
    """`noisytwins_loss` in the generator's loss, and the noise of `class_noise_std` on both networks' class embeddings.

    Noise needs no twins: weight 0 with sigma above 0 is noise augmentation alone (eq. 3). Batches consist of twins from the
    first step, also if the loss starts later.
    """

    gamma: float = number(0.05, at_least=0)  # γ, weight of the off-diagonal terms
    correlation: str = choice("standardized", "paper")  # published code | eq. 5 as printed
    diagonal: str = choice("barlow", "paper")  # (1 - C)², published code | 1 - C², eq. 6 as printed
    sigma: float = number(0.0, at_least=0)  # σ of the noise; 0 for none
    alpha: float = number(0.0, at_least=0, below=1)  # α of the effective number; 0 for the same noise in every class
    noise_normalization: str = choice("mean1", "paper")  # published code | eq. 3 as printed
    noise_scale: str = choice("std", "variance")  # what σ_c is: published code | as the paper's N(0, σ_c I) reads

    twins: ClassVar[bool] = True

    @override
    def generator(self, ctx: GeneratorContext, state: tuple) -> tuple[Array, tuple]:
        return noisytwins_loss(ctx.w, self.gamma, self.correlation, self.diagonal, ctx.replicate), state
