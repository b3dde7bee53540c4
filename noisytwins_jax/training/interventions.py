"""Interventions in a run: frozen networks, learning rates, reset moments (BigGAN, Brock et al. 2019, appendix H)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.config.groups import CollapseConfig, InterventionConfig
from noisytwins_jax.training.state import Rates, TrainState

PyTree = Any


def intervene(
    state: TrainState, config: InterventionConfig, collapse: CollapseConfig | None = None, returns: int = 0
) -> TrainState:
    """Apply an intervention, after `returns` collapses. On the host, between two programs."""
    generator = 0.0 if config.freeze == "generator" else config.generator_lr
    discriminator = 0.0 if config.freeze == "discriminator" else config.discriminator_lr
    factors = _factors(collapse, returns) if collapse else (1.0, 1.0)
    return with_rates(state, generator * factors[0], discriminator * factors[1], config.reset_momenta)


def change_after_collapses(state: TrainState, config: CollapseConfig, returns: int) -> TrainState:
    """Apply the changes that follow a return after a collapse, `returns` times."""
    factors = _factors(config, returns)
    generator, discriminator = (float(rate) * factor for rate, factor in zip(state.rates, factors, strict=True))
    return with_rates(state, generator, discriminator, config.reset_momenta)


def _factors(config: CollapseConfig, returns: int) -> tuple[float, float]:
    """Return the factors on the learning rates of generator and discriminator after `returns` collapses."""
    return config.generator_lr**returns, config.discriminator_lr**returns


def with_rates(state: TrainState, generator: float, discriminator: float, reset_momenta: bool) -> TrainState:
    """Set the factors on the learning rates, and reset the optimisers if `reset_momenta`."""
    sharding = state.rates.generator.sharding
    state = state.replace(rates=Rates(*(jax.device_put(np.float32(x), sharding) for x in (generator, discriminator))))
    if not reset_momenta:
        return state
    return state.replace(
        generator=state.generator.replace(opt_state=_reset(state.generator.opt_state)),
        discriminator=state.discriminator.replace(opt_state=_reset(state.discriminator.opt_state)),
    )


def _reset(opt_state: PyTree) -> PyTree:
    """Return zeros for Adam's moments and counts, with the same shardings."""
    shardings = jax.tree.map(lambda x: x.sharding, opt_state)
    return jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), out_shardings=shardings)(opt_state)
