"""The state of training, as one tree."""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from noisytwins_jax.losses.base import Loss
from noisytwins_jax.models.model import Model
from noisytwins_jax.models.singular_values import init_bases

Array = jax.Array
PyTree = Any


class NetworkState(flax.struct.PyTreeNode):
    """State of one network: parameters, other variables (running statistics), optimiser state, updates done."""

    params: PyTree
    stats: PyTree
    opt_state: PyTree
    updates: Array  # int32, main updates so far; updates of lazy regularisers are not counted

    @property
    def variables(self) -> dict:
        """Return the variables that ``module.apply`` takes."""
        return {"params": self.params, **self.stats}


class AdaState(NamedTuple):
    """State of adaptive augmentation: its probability, and statistics since it was last adjusted; float32."""

    p: Array
    sign_sum: Array  # of the signs of logits of real images
    count: Array  # of those logits


class Rates(NamedTuple):
    """Factors on the learning rates, 1 unless an intervention changes them; 0 freezes a network; float32."""

    generator: Array
    discriminator: Array


class TrainState(flax.struct.PyTreeNode):
    """State of a run. `key` never changes: the keys of random inputs are folded from it, the step and their purpose."""

    key: Array
    generator: NetworkState
    discriminator: NetworkState
    ema: PyTree  # variables of the averaged generator
    ada: AdaState
    losses: dict[str, PyTree]  # states of the losses that are switched on, by name
    rates: Rates
    singular_vectors: dict[str, PyTree]  # bases of each network's leading singular vectors; empty if not computed

    @property
    def step(self) -> Array:
        """Return the generator's updates so far, int32."""
        return self.generator.updates


def create_state(
    seed: int,
    model: Model,
    generator_optimizer: optax.GradientTransformation,
    discriminator_optimizer: optax.GradientTransformation,
    losses: dict[str, Loss],
    ada_p: float,
    watch_singular_values: bool = False,
) -> TrainState:
    """Create the state at the start of training; call inside ``jit``, so that it is created with its sharding."""
    key = jax.random.key(seed)

    def create_network(variables: dict, optimizer: optax.GradientTransformation) -> NetworkState:
        stats = {name: tree for name, tree in variables.items() if name != "params"}
        params = variables["params"]
        return NetworkState(params, stats, optimizer.init(params), jnp.int32(0))

    g_variables, d_variables = model.init(jax.random.fold_in(key, 0))
    return TrainState(
        key=key,
        generator=create_network(g_variables, generator_optimizer),
        discriminator=create_network(d_variables, discriminator_optimizer),
        ema=jax.tree.map(jnp.copy, g_variables),
        ada=AdaState(jnp.float32(ada_p), jnp.float32(0.0), jnp.float32(0.0)),
        rates=Rates(jnp.float32(1.0), jnp.float32(1.0)),
        singular_vectors={
            "generator": init_bases(g_variables["params"]),
            "discriminator": init_bases(d_variables["params"]),
        }
        if watch_singular_values
        else {},
        losses={name: loss.init(g_variables["params"], d_variables["params"]) for name, loss in losses.items()},
    )
