"""What an objective sees of an update, with only the parts that a test gives."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from noisytwins_jax.losses.adversarial import ADVERSARIAL_LOSSES
from noisytwins_jax.losses.base import DiscriminatorPass, GeneratorPass, Progress
from noisytwins_jax.models.discriminator_output import Discrimination

# Small programs that run once or twice: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

BARE = Discrimination(logits=jnp.zeros(4))  # of a discriminator with nothing but logits


def progress(step: int = 0, kimg: float = 0.0) -> Progress:
    return Progress(jnp.int32(step), jnp.float32(kimg))


def generator_pass(**given: Any) -> GeneratorPass:
    return GeneratorPass(**(dict.fromkeys(GeneratorPass._fields) | _shared() | given))


def discriminator_pass(**given: Any) -> DiscriminatorPass:
    return DiscriminatorPass(**(dict.fromkeys(DiscriminatorPass._fields) | _shared() | given))


def _shared() -> dict[str, Any]:
    return {"progress": progress(), "loss": ADVERSARIAL_LOSSES["logistic"], "replicate": lambda x: x}
