"""Contexts of losses, with only the parts that a test gives."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from noisytwins_jax.losses.adversarial import ADVERSARIAL_LOSSES
from noisytwins_jax.losses.base import DiscriminatorContext, GeneratorContext, Progress
from noisytwins_jax.models.discriminator_output import DiscriminatorOutput

# Small programs that run once or twice: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

BARE = DiscriminatorOutput(logits=jnp.zeros(4))  # of a discriminator with nothing but logits


def progress(step: int = 0, kimg: float = 0.0) -> Progress:
    return Progress(jnp.int32(step), jnp.float32(kimg))


def generator_context(**given: Any) -> GeneratorContext:
    return GeneratorContext(**(dict.fromkeys(GeneratorContext._fields) | _shared() | given))


def discriminator_context(**given: Any) -> DiscriminatorContext:
    return DiscriminatorContext(**(dict.fromkeys(DiscriminatorContext._fields) | _shared() | given))


def _shared() -> dict[str, Any]:
    return {"progress": progress(), "adversarial": ADVERSARIAL_LOSSES["logistic"], "replicate": lambda x: x}
