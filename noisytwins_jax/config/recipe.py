"""Settings of ``data.recipe`` in a run's configuration (``config.auto``)."""

from collections.abc import Collection

import numpy as np

from noisytwins_jax.config.parsing import flatten, parse_flat
from noisytwins_jax.config.run_config import RunConfig
from noisytwins_jax.data.recipe import Setting, recommend


def follow_recipe(
    config: RunConfig, class_counts: np.ndarray, given: Collection[str] = (), memory: float | None = None
) -> tuple[RunConfig, list[Setting]]:
    """Return the configuration with the settings that its data suggest, and these settings.

    What the method does not use stays off: a baseline without augmentation gets none, one without twins no weight.

    Args:
      config: the run's configuration.
      class_counts: training images of each class.
      given: fields that were set on the command line, which stay as they are.
      memory: see `recommend`.
    """
    unused = set(given)
    if not config.ada.operations:
        unused |= {"ada.operations", "ada.kimg"}
    if not config.noisytwins.sigma:
        unused |= {"noisytwins.sigma", "noisytwins.alpha"}
    if not config.noisytwins.weight:
        unused |= {"noisytwins.weight", "noisytwins.gamma"}
    recommended = recommend(class_counts, config.data.resolution, bool(config.finetune.init_from), memory)
    settings = [setting for setting in recommended if setting.field not in unused]
    return parse_flat(flatten(config) | {setting.field: setting.value for setting in settings}), settings


def followed_settings(config: RunConfig, class_counts: np.ndarray) -> list[Setting]:
    """Return the settings that a configuration has from the recipe; those of the device's memory are left out."""
    fields = flatten(config)
    _, settings = follow_recipe(config, class_counts)
    return [setting for setting in settings if fields[setting.field] == setting.value]
