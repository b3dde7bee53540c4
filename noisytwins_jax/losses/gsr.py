"""Group spectral regularisation, gSR (Rangwani et al., "Improving GANs for Long-Tailed Data through Group Spectral
Regularization", ECCV 2022).

When a tail class collapses, the spectral norm of its own parameters explodes. So the vector of each class is reshaped into
a matrix of groups, whose largest singular value σ is penalised, more for rarer classes.

The paper regularises the gains and biases of class-conditional batch normalisation: with BigGAN's shared embedding, their
linear maps of it with all latents zero; otherwise the classes' rows in the layers' own tables. For StyleGAN2 it is, as in
the comparisons of NoisyTwins, the class embedding of the generator's mapping network; how exactly was not published, so
that this part is our choice.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from typing_extensions import override

from noisytwins_jax.losses.base import GeneratorContext, PyTree, WeightedLoss
from noisytwins_jax.utils.config_fields import choice, number

Array = jax.Array

FIRST_ITERATIONS = 40  # of power iteration, from a random start

# Small products in full precision: a TPU would multiply in bfloat16 by default.
_einsum = functools.partial(jnp.einsum, precision="highest")


def group_shape(dim: int) -> tuple[int, int]:
    """Return the shape that a vector of `dim` entries is reshaped to: the squarest, no taller than wide (512: 16 × 32)."""
    rows = next(n for n in range(math.isqrt(dim), 0, -1) if dim % n == 0)
    return rows, dim // rows


def group_matrices(vectors: Array) -> Array:
    """Reshape the vector of each class into a matrix, row by row: ``[C, d] → [C, a, b]``."""
    return vectors.reshape(vectors.shape[0], *group_shape(vectors.shape[1]))


def power_iteration(matrices: Array, u: Array, iterations: int) -> tuple[Array, Array]:
    """Iterate ``v ← Mᵀu/|Mᵀu|, u ← Mv/|Mv|``: u ``[C, a]`` approaches the first left singular vectors of ``[C, a, b]``.

    Returns:
      u ``[C, a]`` and v ``[C, b]``, without gradient.
    """
    matrices = jax.lax.stop_gradient(matrices)

    def step(_: int, uv: tuple[Array, Array]) -> tuple[Array, Array]:
        v = _normalize(_einsum("cab,ca->cb", matrices, uv[0]))
        return _normalize(_einsum("cab,cb->ca", matrices, v)), v

    return jax.lax.fori_loop(0, iterations, step, (u, jnp.zeros_like(matrices[:, 0])))


def spectral_norms(matrices: Array, u: Array, v: Array) -> Array:
    """Compute ``uᵀMv`` ``[C]``, the largest singular values once u and v have converged; differentiable in M only."""
    return _einsum("ca,cab,cb->c", u, matrices, v)


def class_weights(counts: Array, alpha: float) -> Array:
    """Compute λ_c ``[C]``: inverse effective numbers of samples, ``(1 - α)/(1 - αⁿ)``, scaled to mean one.

    Args:
      counts: training images of each class ``[C]``, at least 1.
      alpha: α in [0, 1); 0 gives every class the same weight.
    """
    if alpha == 0:
        return jnp.ones_like(counts)
    inverse = -1.0 / jnp.expm1(counts * math.log(alpha))  # 1 - αⁿ cancels in float32
    return inverse / inverse.mean()


def group_spectral_penalty(sigma: Array, weights: Array) -> Array:
    """Compute ``1/C · Σ_c λ_c σ_c²`` of spectral norms ``[C]`` and class weights ``[C]``; a scalar."""
    return (weights * jnp.square(sigma)).mean()


@dataclass(frozen=True)
class GroupSpectralNorm(WeightedLoss):
    """`group_spectral_penalty` of the generator's class vectors, in the generator's loss.

    StyleGAN2: of its class embeddings. BigGAN: the penalty of gains plus that of biases, averaged over the conditional
    batch normalisations. Published with weight 0.5 on CIFAR10-LT and 0.01 on large data sets.

    State: u of power iteration, ``[C, a]`` for StyleGAN2; for BigGAN a dict by layer, each with ``"classes"`` ``[2C, a]``
    (gains, then biases) and, if maps are normalised here, ``"maps"`` ``[2, channels]``.
    """

    alpha: float = number(0.99, at_least=0, below=1)  # α of the effective number of samples
    power_iterations: int = number(4, at_least=1)  # per step
    # StyleGAN2: NoisyTwins speaks of "embedding parameters", the "stored" ones. The penalty's gradient for a class,
    # relative to that of the adversarial loss, is then the same for any number of classes C. On "effective" embeddings,
    # divided by √C at run time, it shrinks with 1/C.
    # BigGAN: maps of the shared embedding as "stored", or, in a generator with spectral normalisation, "effective", divided
    # by their spectral norms, as in the published code. There the scale of a stored map changes no image, so that scale
    # alone could reduce the penalty.
    embedding: str = choice("stored", "effective")

    @override
    def init(self, generator_params: PyTree, discriminator_params: PyTree) -> PyTree:
        return self._norms(generator_params, None)[1]

    @override
    def generator(self, ctx: GeneratorContext, state: PyTree) -> tuple[Array, PyTree]:
        sigmas, state = self._norms(ctx.params, state)
        weights = class_weights(ctx.class_counts, self.alpha)
        terms = [group_spectral_penalty(s, weights) for sigma in sigmas for s in sigma.reshape(-1, weights.size)]
        return sum(terms) / len(sigmas), state

    def _norms(self, params: PyTree, state: PyTree | None) -> tuple[list[Array], PyTree]:
        """Compute spectral norms of each layer's matrices, ``[C]`` or ``[2C]``, and the state after; ``None`` starts it."""
        if "embed" in params.get("mapping", {}):
            weight = params["mapping"]["embed"]["weight"]  # [C, w_dim]
            weight = weight / math.sqrt(weight.shape[0]) if self.embedding == "effective" else weight
            sigma, u = self._iterate(group_matrices(weight), state)
            return [sigma], u
        layers = _conditional_norms(params)
        if not layers:
            raise ValueError(
                "gSR needs a generator whose mapping network or batch normalisation embeds classes; this one's does not."
            )
        sigmas, after = [], {}
        for name, layer in layers.items():
            before = state[name] if state else {}
            vectors, maps = self._class_vectors(layer, params.get("shared"), before.get("maps"))
            sigma, classes = self._iterate(group_matrices(vectors), before.get("classes"))
            sigmas.append(sigma)
            after[name] = {"classes": classes} | ({} if maps is None else {"maps": maps})
        return sigmas, after

    def _class_vectors(self, layer: PyTree, shared: PyTree | None, u: Array | None) -> tuple[Array, Array | None]:
        """Compute gains, then biases of the classes, ``[2C, channels]``, with all latents zero; and the new u of the maps."""
        if "gain_table" in layer:
            return jnp.concatenate([layer[f"{kind}_table"]["weight"] for kind in ("gain", "bias")]), None
        maps = jnp.stack([layer[kind]["weight"].T for kind in ("gain", "bias")])  # [2, channels, E + latents]
        if self.embedding == "effective":
            scale, u = self._iterate(maps, u)
            maps = maps / scale[:, None, None]
        embedding = shared["weight"]  # [C, E]
        vectors = _einsum("ce,kde->kcd", embedding, maps[..., : embedding.shape[1]])
        return vectors.reshape(-1, vectors.shape[-1]), u

    def _iterate(self, matrices: Array, u: Array | None) -> tuple[Array, Array]:
        """Compute spectral norms and the new u, from the previous step's u, or from a fixed random one."""
        iterations = self.power_iterations
        if u is None:
            u = _normalize(jax.random.normal(jax.random.key(0), matrices.shape[:2], matrices.dtype))
            iterations = FIRST_ITERATIONS
        u, v = power_iteration(matrices, u, iterations)
        return spectral_norms(matrices, u, v), u


def _conditional_norms(params: PyTree, prefix: str = "") -> dict[str, PyTree]:
    """Return BigGAN's conditional batch normalisations by path: those with maps of the shared embedding, or with tables."""
    layers = {}
    for name, inner in params.items():
        if isinstance(inner, Mapping):
            if "gain_table" in inner or isinstance(inner.get("gain"), Mapping):
                layers[prefix + name] = inner
            else:
                layers |= _conditional_norms(inner, f"{prefix}{name}/")
    return layers


def _normalize(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-3)
