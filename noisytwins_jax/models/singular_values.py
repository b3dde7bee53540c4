"""The largest singular values of every weight of a network (Brock et al., "Large Scale GAN Training for High Fidelity
Natural Image Synthesis" (BigGAN), ICLR 2019, Sec. 4.1 and App. F): what foretells the collapse of training best.

A weight is looked at as it is stored: before spectral normalisation, and without the gains of equalised learning rates.
BigGAN's, which start orthogonal, have all singular values 1 at first. StyleGAN2's are stored with unit variance (the
mapping network's with the inverse of its learning-rate multiplier) and multiplied by multiplier/√fan_in at run time, so
that one of m × n starts near (√m + √n)/multiplier.

The values come from subspace iteration with a warm start: weights move little from one look to the next, so that one
iteration a look follows them. Sizes: k = min(3, m, n) values of an m × n matrix; functions are pure and take weights on
any number of devices.
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


class Spectra(NamedTuple):
    """The leading singular values and vectors of each weight, by its name."""

    values: dict[str, Array]  # [k], descending, never above the true ones
    bases: dict[str, Array]  # [min(m, n), k] orthonormal: singular vectors of the smaller side, for the next `advance`
    left: dict[str, Array]  # [m], u of the first singular value
    right: dict[str, Array]  # [n], v of the same; one of the two is zero for a weight of zeros


def matrices(params: PyTree) -> dict[str, Array]:
    """The weights of a network as matrices ``[m, n]`` with a filter a column.

    Args:
      params: a tree of dictionaries. Parameters of two or four axes are weights, filters along their last axis; others
        (biases, gains, StyleGAN2's constant input) are left out.

    Returns:
      Path of each weight, joined with "/", and its matrix: ``[inputs, outputs]`` of a dense layer, ``[H·W·inputs,
      outputs]`` of a convolution, ``[classes, dim]`` of an embedding.
    """
    return {_name(path): _matrix(x) for path, x in jax.tree.leaves_with_path(params) if _is_weight(x)}


def init_bases(params: PyTree, k: int = 3) -> dict[str, Array]:
    """Where subspace iteration starts: `FIRST_ITERATIONS` from random vectors that depend on a weight's name alone.

    Returns:
      ``[min(m, n), min(k, m, n)]`` for each of `matrices`, orthonormal, in float32 or the weight's wider type.
    """

    def start(name: str, matrix: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(0), zlib.crc32(name.encode()))
        small = min(matrix.shape)
        return jax.random.normal(key, (small, min(k, small)), _dtype(matrix))

    bases = {name: start(name, matrix) for name, matrix in matrices(params).items()}
    return advance(params, _by_shape(_orthonormal, bases), FIRST_ITERATIONS).bases


def advance(params: PyTree, bases: Mapping[str, Array], iterations: int = 1) -> Spectra:
    """Moves bases towards the leading singular vectors of the weights, and reads the singular values off them.

    An iteration is ``Q ← orth(M MᵀQ)``, M being the weight, or its transpose if that has fewer rows. The values are those
    of the projected ``QQᵀM`` (Rayleigh-Ritz).

    Args:
      params: the tree that `init_bases` had, some updates later.
      bases: what `init_bases` or the last `advance` gave.
      iterations: at least 1; static.

    Returns:
      Values and vectors, without gradient. A weight that is not finite gives values that are not, and keeps its basis.
    """
    weights = {name: jax.lax.stop_gradient(x).astype(_dtype(x)) for name, x in matrices(params).items()}
    wide = {name: x if x.shape[0] <= x.shape[1] else x.T for name, x in weights.items()}

    def iterate(_: int, bases: dict[str, Array]) -> dict[str, Array]:
        return _by_shape(_orthonormal, {name: _moved(m, bases[name]) for name, m in wide.items()})

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
    return Spectra(values, bases, left, right)


def scalars(values: Mapping[str, Array], network: str) -> dict[str, Array]:
    """Singular values under the names they are logged by: ``spectra/<network>/<path>/0`` the largest, ``…/1``, ``…/2``."""
    return {f"spectra/{network}/{name}/{i}": x[i] for name, x in values.items() for i in range(len(x))}


def clamp(params: PyTree, spectra: Spectra, sigma: float | Array | Mapping[str, float | Array]) -> PyTree:
    """``W - max(0, σ0 - σ_clamp) u0 v0ᵀ`` (eq. 4) for every weight: no first singular value above σ_clamp.

    Only the first is clamped: a second one that is above σ_clamp as well becomes the first of the result, and is clamped
    in its turn by the next ``clamp(params, advance(params, bases), sigma)``. The others stay what they are as far as the
    vectors have converged, as those of a warm start have; no singular value ever grows.

    Args:
      params: the tree that `advance` had.
      spectra: what it gave.
      sigma: σ_clamp of all weights, or of each by its name; weights without one are left as they are. For a ratio r of
        the second singular value: `ratio_limits`.

    Returns:
      The tree with its weights clamped, in their own type.
    """

    def one(path: tuple[Any, ...], weight: Array) -> Array:
        name = _name(path)
        limit = sigma.get(name) if isinstance(sigma, Mapping) else sigma
        if limit is None or not _is_weight(weight):
            return weight
        excess = jnp.maximum(spectra.values[name][0] - limit, 0.0)
        excess = (excess * jnp.outer(spectra.left[name], spectra.right[name])).reshape(weight.shape)
        return (weight - excess).astype(weight.dtype)

    return jax.tree_util.tree_map_with_path(one, params)


def ratio_limits(values: Mapping[str, Array], ratio: float) -> dict[str, Array]:
    """``r·σ1`` of each weight that has a second singular value."""
    return {name: ratio * x[1] for name, x in values.items() if len(x) > 1}


def _is_weight(x: Array) -> bool:
    return x.ndim in (2, 4)


def _matrix(weight: Array) -> Array:
    return weight.reshape(-1, weight.shape[-1])


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _dtype(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _moved(matrix: Array, basis: Array) -> Array:
    """``M MᵀQ`` up to a factor, which keeps it from overflowing; Q itself where that is zero, to stay a generic start."""
    large = _product(matrix.T, basis)
    norm = jnp.linalg.norm(large)
    return jnp.where(norm > 0, _product(matrix, large / jnp.where(norm > 0, norm, 1.0)), basis)


def _orthonormal(columns: Array) -> Array:
    return jnp.linalg.qr(columns)[0]


def _by_shape(decompose: Callable[[Array], PyTree], arrays: Mapping[str, Array]) -> dict[str, PyTree]:
    """A batched decomposition of each array, one for all arrays of a shape: compiling decompositions takes long."""
    groups: dict[Any, list[str]] = {}
    for name, x in arrays.items():
        groups.setdefault((x.shape, x.dtype), []).append(name)
    results = {}
    for names in groups.values():
        together = decompose(jnp.stack([arrays[name] for name in names]))
        results |= {name: jax.tree.map(lambda x, i=i: x[i], together) for i, name in enumerate(names)}
    return results
