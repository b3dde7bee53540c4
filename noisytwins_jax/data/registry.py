"""Data sets by name: embedded ones, which need no files, and prepared ones."""

import contextlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noisytwins_jax.data.config import DataConfig
from noisytwins_jax.data.digits import digits_splits
from noisytwins_jax.data.prepare.embedded import petals, petals_splits
from noisytwins_jax.data.prepared import KNOWN_SETS, PETALS_SETS, VERSION, how_to_prepare, load_info, prepared_splits
from noisytwins_jax.data.preprocessing import PUBLISHED, Preprocessing
from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.data.synthetic import synthetic_splits
from noisytwins_jax.utils.errors import UserError, did_you_mean

# Embedded data sets. Builders take `resolution` and keyword options, all with defaults.
_BUILDERS: dict[str, Callable[..., DataSplits]] = {
    "digits_lt": digits_splits,
    "petals_drawn": petals_splits,
    "synthetic": synthetic_splits,
}


def load_data(data: DataConfig) -> DataSplits:
    """Load the data set of a configuration, embedded or prepared.

    Raises:
      UserError: the data set does not exist (the message names the nearest one and how to prepare it), was prepared
        differently, or has no such option.
    """
    if data.name in _BUILDERS:
        return load_splits(data.name, resolution=data.resolution, **data.options)
    _check_name(data)
    if data.options:
        raise UserError(
            f'config.data.options are for {", ".join(_BUILDERS)}; "{data.name}" is as it was prepared, with the options '
            "of noisytwins_jax.data.prepare."
        )
    return prepared_splits(
        data.name, resolution=data.resolution, directory=data.dir, cache=data.cache, preprocessing=data.preprocessing
    )


def load_splits(name: str, *, resolution: int, **options: Any) -> DataSplits:
    """Build an embedded data set.

    Args:
      name: "digits_lt" (``digits_splits``), "petals_drawn" (``petals_splits``) or "synthetic" (``synthetic_splits``).
      resolution: pixels, a power of two of at least 8.
      **options: further arguments of the builder.

    Raises:
      UserError: the data set or an option does not exist, or the builder rejects an argument.
    """
    if name not in _BUILDERS:
        raise UserError(f'There is no data set "{name}"; {_suggest(name, list(_BUILDERS))}')
    builder = _BUILDERS[name]
    documented = petals if builder is petals_splits else builder
    valid = [option for option in inspect.signature(documented).parameters if option != "resolution"]
    for option in options:
        if option not in valid:
            raise UserError(f'The data set "{name}" has no option "{option}"; {_suggest(option, valid)}')
    return builder(resolution=resolution, **options)


def classes_and_channels(data: DataConfig) -> tuple[int, int]:
    """Return the numbers of classes and of image channels of a data set; public ones need not be prepared yet.

    Raises:
      UserError: see `load_data`.
    """
    if data.name in _BUILDERS:
        train = load_data(data).train
        return train.num_classes, train.channels
    _check_name(data)
    if data.name in KNOWN_SETS and not (_directory(data) / f"{data.resolution}px" / VERSION).exists():
        return KNOWN_SETS[data.name]
    info, _ = load_info(data.name, resolution=data.resolution, directory=data.dir, cache=data.cache)
    return len(info["class_names"]), info["channels"]


def preprocessing_of(data: DataConfig) -> Preprocessing:
    """Return how the images of a data set were cropped and resized, for others to be so; as published where it is unknown."""
    name = data.preprocessing
    if not name and data.name not in _BUILDERS:
        with contextlib.suppress(UserError):  # it is no longer on this machine
            name = load_info(data.name, resolution=data.resolution, directory=data.dir, cache=data.cache)[0][
                "preprocessing"
            ]
    return Preprocessing.parse(name or PUBLISHED)


def _check_name(data: DataConfig) -> None:
    known = [*_BUILDERS, *KNOWN_SETS, *PETALS_SETS]
    if data.name not in known and "://" not in data.dir and not _directory(data).exists():
        prepared = sorted({path.parent.name for path in Path(data.dir).expanduser().glob("*/*px")} - {*known})
        known = [*prepared, *known]
        raise UserError(
            f'There is no data set "{data.name}" in {data.dir}; {_suggest(data.name, known)} If it is your own, '
            f"{how_to_prepare(data.name, data.resolution, data.dir)}"
        )


def _directory(data: DataConfig) -> Path:
    return Path(data.dir, data.name).expanduser()


def _suggest(word: str, valid: list[str]) -> str:
    """Return the end of an error message: the nearest valid word and all valid words."""
    return f"{did_you_mean(word, valid)} (Valid: {', '.join(valid)}.)"
