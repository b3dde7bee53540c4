"""Within-class share of the variance of W, which shows class-wise mode collapse directly; norms of class embeddings."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.utils.errors import UserError

Array = jax.Array
PyTree = Any
MONITOR_CLASSES, MONITOR_LATENTS = 50, 32  # the most classes, and latents of each, while training


def within_class_variance_ratio(w: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Compute the within-class variance of W as a fraction of its total variance.

    With mu_c the mean of class c, mu the mean of the C class means, and population variances averaged over dimensions,

        within_c = mean_i,d (w_id - mu_cd)^2                      over the samples i of class c
        total    = mean_c [ within_c + mean_d (mu_cd - mu_d)^2 ]  every class with the same weight
        ratio_c  = within_c / total,      overall = mean_c ratio_c

    ``overall`` lies in [0, 1]: 0 when every class is a single point (the mapping network ignores z), about 1 when w
    does not depend on the class (1 - 1/n for n samples a class, since the class means scatter). A single ratio_c may
    exceed 1. If W does not vary at all, every ratio is 0.

    Args:
        w: [n, D], any float dtype; computed in float64.
        labels: int [n], class ids >= 0.

    Returns:
        overall, and the ratios [C] by class id, C = max(labels) + 1; a class without samples is NaN and not averaged.

    Raises:
        UserError: if w holds NaN or infinity, or a class has exactly one sample.
        ValueError: if the shapes do not match.
    """
    w, labels = np.asarray(w, np.float64), np.asarray(labels)
    if w.ndim != 2 or labels.shape != (len(w),) or not len(w):
        raise ValueError(f"w must be [n, D] and labels [n] with n >= 1, got {w.shape} and {labels.shape}.")
    if not np.isfinite(w).all():
        raise UserError("W holds NaN or infinity: the run has diverged, so evaluate an earlier checkpoint.")
    present, counts = np.unique(labels, return_counts=True)
    if present[0] < 0:
        raise ValueError(f"class ids must be >= 0, got {present[0]}.")
    if (counts == 1).any():
        raise UserError(f"Class {present[counts == 1][0]} has a single sample of W: its variance needs two or more.")
    means = np.stack([w[labels == c].mean(axis=0) for c in present])
    within = np.array([w[labels == c].var(axis=0).mean() for c in present])
    total = within.mean() + means.var(axis=0).mean()
    ratios = np.full(present[-1] + 1, np.nan)
    varies = total > 1e-24 * np.mean(w**2)  # below this, "variance" is the rounding of the means
    ratios[present] = within / total if varies else 0.0
    return float(np.nanmean(ratios)), ratios


def class_variance_ratios(w: Array) -> Array:
    """Compute `within_class_variance_ratio` in JAX: W ``[C, n, D]`` of n samples a class → ratios ``[C]``.

    The same formula, in w's precision; 0 where W varies by no more than rounding, NaN where W is not finite.
    """
    means, within = w.mean(axis=1), w.var(axis=1).mean(axis=-1)
    total = within.mean() + means.var(axis=0).mean()
    constant = total <= 1e-12 * jnp.mean(w**2)
    return jnp.where(constant, 0.0, within / jnp.where(constant, 1.0, total))


def class_embedding_norms(generator_params: PyTree) -> dict[str, Array]:
    """Compute the norms of the generator's stored class embeddings: ``embedding_norm/mean``, ``/min`` and ``/max``.

    BigGAN monitors those of its shared embedding (Brock et al. 2019, appendix H). Empty for a generator without a vector
    for each class.
    """
    mapping = generator_params.get("mapping", {})
    tree = generator_params.get("shared") or mapping.get("embed") or generator_params.get("embedding")
    if tree is None:
        return {}
    norms = jnp.linalg.norm(tree["weight"], axis=1)  # [C]
    return {f"embedding_norm/{name}": f(norms) for name, f in (("mean", jnp.mean), ("min", jnp.min), ("max", jnp.max))}


def w_ratio_monitor(
    map_latents: Callable[[PyTree, Array, Array], Array], z_dim: int, class_groups: Mapping[str, np.ndarray]
) -> Callable[[PyTree], dict[str, Array]]:
    """Build a cheap monitor of the W ratio while training: a pure function of the generator's variables, to be compiled.

    It maps the same 32 latents for each of at most 50 classes, evenly spaced from head to tail. Sharing the latents
    keeps sampling noise out of the differences between classes and between steps.

    Args:
      map_latents: (variables, z ``[N, z_dim]``, labels ``[N]`` int32) → w ``[N, D]``.
      z_dim: width of the latents.
      class_groups: the classes from head to tail, as `data.long_tail.class_groups` divides them.

    Returns:
      variables → ``{"w_ratio": mean over the classes, "w_ratio/head": …, "w_ratio/tail": …}``, scalars; a group
      without classes is left out.
    """
    order = np.concatenate([np.asarray(ids) for ids in class_groups.values()])
    classes = order[np.linspace(0, len(order) - 1, min(len(order), MONITOR_CLASSES)).round().astype(int)]
    members = {name: np.flatnonzero(np.isin(classes, class_groups.get(name, ()))) for name in ("head", "tail")}

    def monitor(variables: PyTree) -> dict[str, Array]:
        z = jax.random.normal(jax.random.key(0), (MONITOR_LATENTS, z_dim))
        labels = jnp.repeat(jnp.asarray(classes, jnp.int32), MONITOR_LATENTS)
        w = map_latents(variables, jnp.tile(z, (len(classes), 1)), labels)
        ratios = class_variance_ratios(w.reshape(len(classes), MONITOR_LATENTS, -1))
        groups = {f"w_ratio/{name}": ratios[rows].mean() for name, rows in members.items() if len(rows)}
        return {"w_ratio": ratios.mean(), **groups}

    return monitor
