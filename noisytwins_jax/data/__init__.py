"""Data: long-tail statistics, sources of images, data sets by name, and the training pipeline."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from noisytwins_jax.data.digits import digits_splits
from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.data.synthetic import synthetic_splits
from noisytwins_jax.errors import UserError

# To add a data set, add its builder here. Builders take `resolution` and keyword options that all have defaults.
_BUILDERS: dict[str, Callable[..., DataSplits]] = {
    "digits_lt": digits_splits,
    "synthetic": synthetic_splits,
}

# Classes of the data sets that have configurations, but no builder yet; their images are RGB.
_LATER = {"cifar10_lt": 10, "imagenet_lt": 1000, "inat19": 1010, "animal_face": 20, "imagenet_carnivore": 20}


def load_splits(name: str, *, resolution: int, **options: Any) -> DataSplits:
    """Builds a data set by name.

    Args:
      name: "digits_lt" (``digits_splits``) or "synthetic" (``synthetic_splits``).
      resolution: pixels, a power of two of at least 8.
      **options: further arguments of the builder.

    Raises:
      UserError: no such data set or option (the nearest one is named), a data set that cannot be read yet, or the
        builder refuses its arguments.
    """
    if name in _LATER:
        raise UserError(
            f'The data set "{name}" cannot be read yet: prepared data comes with a later version. Until then its methods '
            f"run on random images: --config=configs/{name}.py:noisytwins,smoke."
        )
    if name not in _BUILDERS:
        raise UserError(f'There is no data set "{name}"; {_suggest(name, list(_BUILDERS))}')
    builder = _BUILDERS[name]
    valid = [option for option in inspect.signature(builder).parameters if option != "resolution"]
    for option in options:
        if option not in valid:
            raise UserError(f'The data set "{name}" has no option "{option}"; {_suggest(option, valid)}')
    return builder(resolution=resolution, **options)


def classes_and_channels(name: str, *, resolution: int, **options: Any) -> tuple[int, int]:
    """Number of classes and image channels of a data set, which need not be there if they are known.

    Args and errors are those of `load_splits`.
    """
    if name in _LATER:
        return _LATER[name], 3
    train = load_splits(name, resolution=resolution, **options).train
    return train.num_classes, train.channels


def _suggest(word: str, valid: list[str]) -> str:
    """Ends an error message with the nearest valid word and all valid words."""
    nearest = difflib.get_close_matches(word, valid, n=1, cutoff=0)[0]
    return f'did you mean "{nearest}"? (Valid: {", ".join(valid)}.)'
