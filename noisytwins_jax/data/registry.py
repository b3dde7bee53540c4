"""Data sets by name: those that need no files, and those that were prepared."""

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noisytwins_jax.data.config import DataConfig
from noisytwins_jax.data.digits import digits_splits
from noisytwins_jax.data.prepare.drawn import petals, petals_drawn
from noisytwins_jax.data.prepared import KNOWN_CLASSES, VERSION, how_to_prepare, load_info, prepared_splits
from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.data.synthetic import synthetic_splits
from noisytwins_jax.utils.errors import UserError

# Data sets that need no files. Builders take `resolution` and keyword options that all have defaults.
_BUILDERS: dict[str, Callable[..., DataSplits]] = {
    "digits_lt": digits_splits,
    "petals_drawn": petals_drawn,
    "synthetic": synthetic_splits,
}


def load_data(data: DataConfig) -> DataSplits:
    """The images of a configuration: those that need no files, or a prepared data set.

    Raises:
      UserError: there is no such data set (the nearest one is named, and how to prepare it), it was prepared otherwise,
        or it has no such option.
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
    """Builds a data set that needs no files.

    Args:
      name: "digits_lt" (``digits_splits``), "petals_drawn" (those of ``prepare.drawn.petals``) or "synthetic" (``synthetic_splits``).
      resolution: pixels, a power of two of at least 8.
      **options: further arguments of the builder.

    Raises:
      UserError: no such data set or option (the nearest one is named), or the builder refuses its arguments.
    """
    if name not in _BUILDERS:
        raise UserError(f'There is no data set "{name}"; {_suggest(name, list(_BUILDERS))}')
    builder = _BUILDERS[name]
    named = petals if builder is petals_drawn else builder
    valid = [option for option in inspect.signature(named).parameters if option != "resolution"]
    for option in options:
        if option not in valid:
            raise UserError(f'The data set "{name}" has no option "{option}"; {_suggest(option, valid)}')
    return builder(resolution=resolution, **options)


def classes_and_channels(data: DataConfig) -> tuple[int, int]:
    """Number of classes and image channels of a data set; public ones need not be prepared.

    Raises:
      UserError: as `load_data`.
    """
    if data.name in _BUILDERS:
        train = load_data(data).train
        return train.num_classes, train.channels
    _check_name(data)
    if data.name in KNOWN_CLASSES and not (_directory(data) / f"{data.resolution}px" / VERSION).exists():
        return KNOWN_CLASSES[data.name], 3
    info, _ = load_info(data.name, resolution=data.resolution, directory=data.dir, cache=data.cache)
    return len(info["class_names"]), info["channels"]


def _check_name(data: DataConfig) -> None:
    known = [*_BUILDERS, *KNOWN_CLASSES]
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
    """Ends an error message with the nearest valid word and all valid words."""
    nearest = difflib.get_close_matches(word, valid, n=1, cutoff=0)[0]
    return f'did you mean "{nearest}"? (Valid: {", ".join(valid)}.)'
