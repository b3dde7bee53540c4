"""Configurations: the tree of fields, its parsing and validation, and presets (rows of results tables)."""

from noisytwins_jax.config.parsing import default_config, differences, flatten, parse_config, parse_flat
from noisytwins_jax.config.run_config import RunConfig

__all__ = ["RunConfig", "default_config", "differences", "flatten", "parse_config", "parse_flat"]
