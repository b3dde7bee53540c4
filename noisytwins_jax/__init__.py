"""NoisyTwins and BigGAN in JAX/Flax."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """``noisytwins_jax.load``, see `trained_generator.load`; JAX is imported when it is asked for."""
    if name == "load":
        from noisytwins_jax.generation.trained_generator import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
