"""Regularisation of the first singular value of every weight (Brock et al., "Large Scale GAN Training for High Fidelity
Natural Image Synthesis" (BigGAN), ICLR 2019, Sec. 4.1).

It keeps the singular values of the generator's weights from growing and exploding; in the paper that did not prevent
collapse.

The paper regularises σ0 "towards" a value σ_reg or r·σ1 and prints no formula; the penalty here acts on σ0 above the
target only, like the clamp of its eq. 4, because it counteracts growth. σ_reg and r are not published either.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from typing_extensions import override

from noisytwins_jax.losses.base import DiscriminatorContext, GeneratorContext, PyTree, WeightedLoss
from noisytwins_jax.models import singular_values
from noisytwins_jax.utils.config_fields import choice, number

Array = jax.Array
State = dict[str, dict[str, Array]]  # network -> bases of `singular_values.subspace_iteration`


def first_value(matrix: Array, left: Array, right: Array) -> Array:
    """Compute ``uᵀWv``: the first singular value of W ``[m, n]``, differentiable in W only; u ``[m]``, v ``[n]``."""
    left, right = jax.lax.stop_gradient((left, right))
    return jnp.einsum("m,mn,n->", left, matrix, right, precision="highest")


def spectrum_penalty(firsts: Mapping[str, Array], limits: Mapping[str, Array | float]) -> Array:
    """Compute ``Σ max(0, σ0 - limit)²`` over the weights that have a limit; no gradient flows into limits."""
    excess = [jnp.maximum(firsts[name] - jax.lax.stop_gradient(limit), 0.0) for name, limit in limits.items()]
    return sum((jnp.square(x) for x in excess), jnp.zeros(()))


@dataclass(frozen=True)
class Spectrum(WeightedLoss):
    """`spectrum_penalty` of a network's weights as they are stored (`singular_values.weight_matrices`), in that network's loss.

    With the target "ratio" a weight with a single row or column, which has no second singular value, is not regularised.

    State: the bases of subspace iteration by regularised network, ``{"generator": bases, "discriminator": bases}``; every
    update iterates from them.
    """

    # The upper limit of σ0 of each weight: the "value" `sigma`, or the "ratio" r·sg(σ1). A value is in units of the stored
    # weights: those of BigGAN start at σ0 = 1; those of StyleGAN2 start at tens, depending on their size
    # (`singular_values`), so that the ratio suits it better.
    target: str = choice("value", "ratio")
    sigma: float = number(10.0, above=0)
    ratio: float = number(2.0, at_least=1)  # σ0 is never below σ1
    network: str = choice("generator", "discriminator", "both")
    iterations: int = number(1, at_least=1)  # of subspace iteration an update

    @override
    def init(self, generator_params: PyTree, discriminator_params: PyTree) -> State:
        params = {"generator": generator_params, "discriminator": discriminator_params}
        return {name: singular_values.init_bases(tree) for name, tree in params.items() if self._acts_on(name)}

    @override
    def generator(self, ctx: GeneratorContext, state: State) -> tuple[Array, State] | None:
        return self._term("generator", ctx.params, state)

    @override
    def discriminator(self, ctx: DiscriminatorContext, state: State) -> tuple[Array, State] | None:
        return self._term("discriminator", ctx.params, state)

    def _acts_on(self, network: str) -> bool:
        return self.network in (network, "both")

    def _term(self, network: str, params: PyTree, state: State) -> tuple[Array, State] | None:
        if not self._acts_on(network):
            return None
        estimate = singular_values.subspace_iteration(params, state[network], self.iterations)
        firsts = {
            name: first_value(x, estimate.left[name], estimate.right[name])
            for name, x in singular_values.weight_matrices(params).items()
        }
        if self.target == "ratio":
            limits = singular_values.ratio_limits(estimate.values, self.ratio)
        else:
            limits = dict.fromkeys(firsts, self.sigma)
        return spectrum_penalty(firsts, limits), {**state, network: estimate.bases}
