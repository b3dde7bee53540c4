"""Stepping into a run: frozen networks, other learning rates, forgotten momenta (BigGAN, Brock et al. 2019, appendix H)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.config import InterventionConfig
from noisytwins_jax.training.state import Rates, TrainState

PyTree = Any


def intervene(state: TrainState, config: InterventionConfig) -> TrainState:
    """The state with an intervention made. On the host, between two programs."""
    generator = 0.0 if config.freeze == "generator" else config.generator_lr
    discriminator = 0.0 if config.freeze == "discriminator" else config.discriminator_lr
    return with_rates(state, generator, discriminator, config.reset_momenta)


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
