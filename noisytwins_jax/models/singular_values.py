"""The largest singular values of every weight of a network, the earliest sign that training is about to collapse
(Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis" (BigGAN), ICLR 2019, Sec. 4.1, App. F).

Weights are taken as stored: before spectral normalisation, and without the gains of equalised learning rates. BigGAN's
weights start orthogonal, with all singular values 1. StyleGAN2's are stored with unit variance (the mapping network's
with the inverse of its learning-rate multiplier) and multiplied by multiplier/√fan_in at run time, so that an m × n weight
starts near (√m + √n)/multiplier.

The values come from subspace iteration with a warm start: weights change little between two calls, so that one iteration
a call tracks them. Sizes: k = min(3, m, n) values of an m × n matrix; functions are pure and take weights on any number of
devices.
"""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any

FIRST_ITERATIONS = 20  # from a random start

# In full precision: a TPU would multiply in bfloat16 by default.
_product = functools.partial(jnp.matmul, precision="highest")


class SingularTriplets(NamedTuple):
    """The largest singular values of each weight, with the vectors of the first, by the weight's name."""

    values: dict[str, Array]  # [k], descending, never above the true ones
    bases: dict[str, Array]  # [min(m, n), k] orthonormal: singular vectors of the smaller side, for the next iteration
    left: dict[str, Array]  # [m], u of the first singular value
    right: dict[str, Array]  # [n], v of the same; one of the two is zero for a weight of zeros


def weight_matrices(params: PyTree) -> dict[str, Array]:
    """Reshape the weights of a network to matrices ``[m, n]`` with one filter per column.

    Args:
      params: a tree of dictionaries. Parameters of two or four axes are weights, filters along their last axis; others
        (biases, gains, StyleGAN2's constant input) are left out.

    Returns:
      Path of each weight, joined with "/", and its matrix: ``[inputs, outputs]`` of a dense layer, ``[H·W·inputs,
      outputs]`` of a convolution, ``[classes, dim]`` of an embedding.
    """
    return {_name(path): _matrix(x) for path, x in jax.tree.leaves_with_path(params) if _is_weight(x)}


def init_bases(params: PyTree, k: int = 3) -> dict[str, Array]:
    """Compute the bases that subspace iteration starts from.

    They are `FIRST_ITERATIONS` iterations away from random vectors that depend on the name of a weight only.

    Returns:
      ``[min(m, n), min(k, m, n)]`` for each of `weight_matrices`, orthonormal, in float32 or the weight's wider type.
    """

    def start(name: str, matrix: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(0), zlib.crc32(name.encode()))
        small = min(matrix.shape)
        return jax.random.normal(key, (small, min(k, small)), _dtype(matrix))

    bases = {name: start(name, matrix) for name, matrix in weight_matrices(params).items()}
    return subspace_iteration(params, _by_shape(_orthonormal, bases), FIRST_ITERATIONS).bases


def subspace_iteration(params: PyTree, bases: Mapping[str, Array], iterations: int = 1) -> SingularTriplets:
    """Move bases towards the leading singular vectors of the weights, and compute the singular values.

    An iteration is ``Q ← orth(M MᵀQ)``, M being the weight, or its transpose if that has fewer rows. The values are those
    of the projected ``QQᵀM`` (Rayleigh-Ritz).

    Args:
      params: the tree given to `init_bases`, after any number of updates.
      bases: from `init_bases` or the previous `subspace_iteration`.
      iterations: at least 1; static.

    Returns:
      Values and vectors, without gradient. A weight with non-finite entries gives non-finite values; its basis is unchanged.
    """
    weights = {name: jax.lax.stop_gradient(x).astype(_dtype(x)) for name, x in weight_matrices(params).items()}
    wide = {name: x if x.shape[0] <= x.shape[1] else x.T for name, x in weights.items()}

    def iterate(_: int, bases: dict[str, Array]) -> dict[str, Array]:
        return _by_shape(_orthonormal, {name: _power_step(m, bases[name]) for name, m in wide.items()})

    bases = jax.lax.fori_loop(0, iterations, iterate, {name: bases[name] for name in wide})
    projected = {name: _product(m.T, bases[name]) for name, m in wide.items()}
    triangles = _by_shape(lambda x: jnp.linalg.qr(x, mode="r"), projected)
    decomposed = _by_shape(lambda x: jnp.linalg.svd(x)[1:], triangles)

    values, left, right = {}, {}, {}
    for name, (sigmas, rotation) in decomposed.items():
        values[name] = sigmas
        basis = _product(bases[name], rotation.T)
        large = _product(projected[name], rotation[0]) / jnp.maximum(sigmas[0], jnp.finfo(sigmas.dtype).tiny)
        left[name], right[name] = basis[:, 0], large
        if weights[name].shape[0] > weights[name].shape[1]:
            left[name], right[name] = right[name], left[name]
        bases[name] = jnp.where(jnp.isfinite(basis).all(), basis, bases[name])
    return SingularTriplets(values, bases, left, right)


def to_metrics(values: Mapping[str, Array], network: str) -> dict[str, Array]:
    """Return singular values under their names in the log: ``spectra/<network>/<path>/0`` the largest, ``…/1``, ``…/2``."""
    return {f"spectra/{network}/{name}/{i}": x[i] for name, x in values.items() for i in range(len(x))}


def clamp(params: PyTree, triplets: SingularTriplets, sigma: float | Array | Mapping[str, float | Array]) -> PyTree:
    """Clamp the first singular value of every weight: ``W - max(0, σ0 - σ_clamp) u0 v0ᵀ`` (eq. 4).

    Only the first is clamped: if the second is above σ_clamp as well, it becomes the first of the result, and the next
    ``clamp(params, subspace_iteration(params, bases), sigma)`` clamps it. The others do not change as far as the vectors
    have converged, as they have after a warm start; no singular value ever grows.

    Args:
      params: the tree given to `subspace_iteration`.
      triplets: its result.
      sigma: σ_clamp of all weights, or of each by its name; weights without one are unchanged. For a ratio r of the
        second singular value see `ratio_limits`.

    Returns:
      The tree with clamped weights, in their own type.
    """

    def clamp_weight(path: tuple[Any, ...], weight: Array) -> Array:
        name = _name(path)
        limit = sigma.get(name) if isinstance(sigma, Mapping) else sigma
        if limit is None or not _is_weight(weight):
            return weight
        excess = jnp.maximum(triplets.values[name][0] - limit, 0.0)
        excess = (excess * jnp.outer(triplets.left[name], triplets.right[name])).reshape(weight.shape)
        return (weight - excess).astype(weight.dtype)

    return jax.tree_util.tree_map_with_path(clamp_weight, params)


def ratio_limits(values: Mapping[str, Array], ratio: float) -> dict[str, Array]:
    """Compute ``r·σ1`` for each weight that has a second singular value."""
    return {name: ratio * x[1] for name, x in values.items() if len(x) > 1}


def _is_weight(x: Array) -> bool:
    return x.ndim in (2, 4)


def _matrix(weight: Array) -> Array:
    return weight.reshape(-1, weight.shape[-1])


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _dtype(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _power_step(matrix: Array, basis: Array) -> Array:
    """Compute ``M MᵀQ`` up to a factor, against overflow; return Q itself where that is zero, to stay a generic start."""
    large = _product(matrix.T, basis)
    norm = jnp.linalg.norm(large)
    return jnp.where(norm > 0, _product(matrix, large / jnp.where(norm > 0, norm, 1.0)), basis)


def _orthonormal(columns: Array) -> Array:
    return jnp.linalg.qr(columns)[0]


def _by_shape(decompose: Callable[[Array], PyTree], arrays: Mapping[str, Array]) -> dict[str, PyTree]:
    """Apply a batched decomposition once to all arrays of a shape, as compiling decompositions is slow."""
    groups: dict[Any, list[str]] = {}
    for name, x in arrays.items():
        groups.setdefault((x.shape, x.dtype), []).append(name)
    results = {}
    for names in groups.values():
        batch = decompose(jnp.stack([arrays[name] for name in names]))
        results |= {name: jax.tree.map(lambda x, i=i: x[i], batch) for i, name in enumerate(names)}
    return results
