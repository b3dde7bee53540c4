"""Adam as the published runs use it: corrected for lazy regularisation."""

import optax

from noisytwins_jax.config import OptimizerConfig


def lazy_rates(learning_rate: float, beta1: float, beta2: float, interval: int) -> tuple[float, float, float]:
    """Adam's learning rate and decays, corrected for a regulariser's own updates (StyleGAN2, appendix B).

    With k = `interval` and r = k/(k+1): ``(learning_rate·r, β₁ʳ, β₂ʳ)``. As published, k = 1 corrects nothing.
    """
    r = interval / (interval + 1) if interval > 1 else 1.0
    return learning_rate * r, beta1**r, beta2**r


def lazy_adam(config: OptimizerConfig, learning_rate: float, interval: int) -> optax.GradientTransformation:
    """Adam corrected by `lazy_rates`. One optimiser state serves the main updates and the regulariser's."""
    lr, beta1, beta2 = lazy_rates(learning_rate, config.beta1, config.beta2, interval)
    return optax.adam(lr, b1=beta1, b2=beta2, eps=config.epsilon)
