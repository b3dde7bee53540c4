"""Stepping into a run: frozen networks, other learning rates, forgotten momenta (BigGAN, Brock et al. 2019, appendix H)."""

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
    """The state with an intervention made, after `returns` collapses. On the host, between two programs."""
    generator = 0.0 if config.freeze == "generator" else config.generator_lr
    discriminator = 0.0 if config.freeze == "discriminator" else config.discriminator_lr
    factors = _after_collapses(collapse, returns) if collapse else (1.0, 1.0)
    return with_rates(state, generator * factors[0], discriminator * factors[1], config.reset_momenta)


def change_after_collapses(state: TrainState, config: CollapseConfig, returns: int) -> TrainState:
    """The state with what a return changes; `returns` times, each on top of the one before."""
    factors = _after_collapses(config, returns)
    generator, discriminator = (float(rate) * factor for rate, factor in zip(state.rates, factors, strict=True))
    return with_rates(state, generator, discriminator, config.reset_momenta)


def _after_collapses(config: CollapseConfig, returns: int) -> tuple[float, float]:
    return config.generator_lr**returns, config.discriminator_lr**returns


def with_rates(state: TrainState, generator: float, discriminator: float, reset_momenta: bool) -> TrainState:
    """The state with these factors on the learning rates, and with optimisers as new if asked for."""
    place = state.rates.generator.sharding
    state = state.replace(rates=Rates(*(jax.device_put(np.float32(x), place) for x in (generator, discriminator))))
    if not reset_momenta:
        return state
    return state.replace(
        generator=state.generator.replace(opt_state=_zeros(state.generator.opt_state)),
        discriminator=state.discriminator.replace(opt_state=_zeros(state.discriminator.opt_state)),
    )


def _zeros(opt_state: PyTree) -> PyTree:
    """Adam's moments and counts as at the start, where the old ones are."""
    places = jax.tree.map(lambda x: x.sharding, opt_state)
    return jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), out_shardings=places)(opt_state)
