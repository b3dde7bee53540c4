"""A page to play with a trained generator: ``python -m noisytwins_jax.app --workdir=DIR``."""
