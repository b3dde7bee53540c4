"""NoisyTwins and BigGAN in JAX/Flax."""

from typing import Any

from noisytwins_jax.utils.version import __version__

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import ``noisytwins_jax.load`` (see `trained_generator.load`), and JAX with it, on first use."""
    if name == "load":
        from noisytwins_jax.generation.trained_generator import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
