"""Adam, corrected for lazy regularisation."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.layout import Layout, with_layout_constraint

from noisytwins_jax.config.groups import OptimizerConfig

PyTree = Any


def lazy_rates(learning_rate: float, beta1: float, beta2: float, interval: int) -> tuple[float, float, float]:
    """Compute Adam's learning rate and decays, corrected for a lazy regulariser's updates (StyleGAN2, appendix B).

    With k = `interval` and r = k/(k+1): ``(learning_rate·r, β₁ʳ, β₂ʳ)``. As published, k = 1 corrects nothing.
    """
    r = interval / (interval + 1) if interval > 1 else 1.0
    return learning_rate * r, beta1**r, beta2**r


def lazy_adam(
    config: OptimizerConfig,
    learning_rate: float,
    interval: int,
    unreached: Sequence[tuple[str, ...]] = (),
    frozen: Sequence[tuple[str, ...]] = (),
) -> optax.GradientTransformationExtraArgs:
    """Build Adam corrected by `lazy_rates`, with one optimiser state for the main updates and the regulariser's.

    Args:
      config: epsilon, and decays before correction.
      learning_rate: before correction.
      interval: main updates between two of the regulariser.
      unreached: paths, or prefixes of paths, of parameters that the regulariser does not depend on. The published
        updates do not change those, nor their moments and step counts; nor does ``update(..., regularization=True)``.
      frozen: paths, or prefixes of paths, of parameters that are not trained.
    """
    adam = _adam(config, learning_rate, interval)
    if not unreached and not frozen:
        return adam

    def update(gradients: PyTree, state: PyTree, params: PyTree = None, *, regularization: bool = False, **extra: Any):
        if regularization:
            return jax.tree.map(jnp.zeros_like, gradients), state
        return adam.update(gradients, state, params, **extra)

    def label(path: tuple, _: Any) -> str:
        keys = tuple(entry.key for entry in path)
        kinds = {"frozen": frozen, "unreached": unreached}
        return next((kind for kind, found in kinds.items() if any(keys[: len(x)] == x for x in found)), "reached")

    skipping = optax.GradientTransformationExtraArgs(adam.init, update)
    transforms = {"reached": adam, "unreached": skipping} | ({"frozen": optax.set_to_zero()} if frozen else {})
    return optax.partition(transforms, lambda params: jax.tree_util.tree_map_with_path(label, params))


def _adam(config: OptimizerConfig, learning_rate: float, interval: int) -> optax.GradientTransformationExtraArgs:
    """Build Adam whose β₂, before correction, may be given to ``update(..., beta2=)``: a schedule's value."""

    def build(beta2: jax.Array | float) -> optax.GradientTransformation:
        lr, beta1, beta2 = lazy_rates(learning_rate, config.beta1, beta2, interval)
        return optax.adam(lr, b1=beta1, b2=beta2, eps=config.epsilon)

    def update(
        gradients: PyTree, state: PyTree, params: PyTree = None, *, beta2: jax.Array | float = config.beta2, **_: Any
    ):
        return build(beta2).update(gradients, state, params)

    return optax.GradientTransformationExtraArgs(build(config.beta2).init, update)


def row_major(tree: PyTree) -> PyTree:
    """Constrain arrays to row-major memory layout (last axis fastest), as the state has it; call inside a program.

    Otherwise the TPU compiler leaves weight gradients in the layout of a convolution's output, and copies parameters and
    moments into that layout and back for the optimiser.
    """
    return jax.tree.map(lambda x: with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim)))), tree)
