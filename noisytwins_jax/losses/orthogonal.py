"""Orthogonal regularisation (Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis" (BigGAN),
ICLR 2019, eq. 3).

The modified form: filters of the generator should have different directions, whatever their length. It makes generators
amenable to truncation.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from typing_extensions import override

from noisytwins_jax.losses.base import GeneratorContext, PyTree, WeightedLoss
from noisytwins_jax.utils.config_fields import choice

Array = jax.Array

CLASS_EMBEDDINGS = ("shared", "gain_table", "bias_table")  # of BigGAN, by name


def orthogonal_penalty(weight: Array) -> Array:
    """Compute ``‖W Wᵀ ⊙ (1 - I)‖²_F`` (eq. 3 without β), where each row of W is a filter.

    Args:
      weight: ``[..., out]``, a dense layer's or a convolution's, with the filters along the last axis.

    Returns:
      A scalar.
    """
    return _penalty(weight.reshape(-1, weight.shape[-1]))


# On TPUs three passes of bfloat16; the default is one, the highest precision takes six.
_product = functools.partial(jnp.matmul, precision="high")


@jax.custom_vjp
def _penalty(columns: Array) -> Array:
    """Compute the penalty of filters ``[in, out]`` by products of the smaller side: ``‖W Wᵀ‖_F = ‖Wᵀ W‖_F``."""
    return _penalty_and_gradient(columns)[0]


def _penalty_and_gradient(columns: Array) -> tuple[Array, Array]:
    if columns.shape[0] < columns.shape[1]:
        products, squares = _product(columns, columns.T), jnp.square(columns).sum(axis=0)
        value = jnp.square(products).sum() - jnp.square(squares).sum()
        return value, 4.0 * (_product(products, columns) - columns * squares)
    products = _product(columns.T, columns) * (1.0 - jnp.eye(columns.shape[1], dtype=columns.dtype))
    return jnp.square(products).sum(), 4.0 * _product(columns, products)


# Automatic differentiation would need one more product: it does not know that the product is symmetric.
_penalty.defvjp(_penalty_and_gradient, lambda gradient, g: (g * gradient,))


def filters(generator_params: PyTree) -> list[Array]:
    """Return the regularised weights: every matrix and convolution kernel except class embeddings.

    BigGAN: all parameters of two or four axes, before spectral normalisation, except the embedding that the layers share
    (``shared``) or their own tables (``gain_table``, ``bias_table``). StyleGAN2: convolutions and style affines of the
    synthesis network, divided by √fan_in as at run time (they are stored with unit variance). Its mapping network is left
    out, like BigGAN's shared embedding.
    """
    if "synthesis" in generator_params:
        weights = [x for x in jax.tree.leaves(generator_params["synthesis"]) if x.ndim in (2, 4)]
        return [x / math.sqrt(math.prod(x.shape[:-1])) for x in weights]
    weights = [(path, x) for path, x in jax.tree.leaves_with_path(generator_params) if x.ndim in (2, 4)]
    return [x for path, x in weights if not any(key.key in CLASS_EMBEDDINGS for key in path)]


@dataclass(frozen=True)
class Orthogonal(WeightedLoss):
    """The sum of `orthogonal_penalty` over the generator's filters, in the generator's loss.

    Published with weight 1e-4 (β).
    """

    # "true" is the gradient of the paper's penalty. The PyTorch release adds half of it, which "published" does: the same
    # value, with the gradient of half the weight.
    gradient: str = choice("true", "published")

    @override
    def generator(self, ctx: GeneratorContext, state: tuple) -> tuple[Array, tuple]:
        value = sum(orthogonal_penalty(weight) for weight in filters(ctx.params))
        if self.gradient == "published":
            value = 0.5 * (value + jax.lax.stop_gradient(value))
        return value, state
