"""Conversion between `ml_collections.ConfigDict`, flat dicts and the typed `RunConfig`, and their differences."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from noisytwins_jax.config.run_config import RunConfig
from noisytwins_jax.config.validation import validate_cross_fields
from noisytwins_jax.utils.config_fields import validate
from noisytwins_jax.utils.errors import UserError, did_you_mean

# Fields that change how a run is computed, monitored or evaluated, not what is trained: a workdir accepts other values.
FREE_FIELDS = (
    "accumulation",
    "checkpoint_interval_kimg",
    "collapse.",
    "data.cache",
    "data.dir",
    "data.head_above",
    "data.tail_below",
    "device_batch",
    "evaluation.",
    "faults.",
    "intervention.",
    "log_interval_kimg",
    "memorisation_interval_kimg",
    "mesh.",
    "profile.",
    "remat",
    "sheet_interval_kimg",
    "steps_per_dispatch",
    "total_kimg",
    "up_impl",
    "w_ratio_interval_kimg",
    "wandb",
)


def default_config() -> ml_collections.ConfigDict:
    """Build the default tree, for a config file to change."""
    config = ml_collections.ConfigDict(dataclasses.asdict(RunConfig()))
    for path, hint in _optional_fields(RunConfig):
        parent, _, name = path.rpartition(".")
        node = _descend(config, parent)
        node[name] = ml_collections.config_dict.placeholder(hint)
    return config


def parse_config(config: ml_collections.ConfigDict) -> RunConfig:
    """Parse and validate a tree.

    Raises:
      UserError: a field is unknown, a value is not allowed or out of range, or fields do not fit together.
    """
    run = _build(RunConfig, config.to_dict())
    validate_cross_fields(run)
    return run


def parse_flat(fields: Mapping[str, Any]) -> RunConfig:
    """Parse and validate the fields that `flatten` returns; missing fields have their defaults.

    Raises:
      UserError: as `parse_config`.
    """
    tree: dict[str, Any] = {}
    for path, value in fields.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    run = _build(RunConfig, tree)
    validate_cross_fields(run)
    return run


def flatten(run: RunConfig) -> dict[str, Any]:
    """Return all fields by dotted path, in order of definition."""

    def walk(node: dict, prefix: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for name, value in node.items():
            flat |= walk(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
        return flat

    return walk(dataclasses.asdict(run), "")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List the fields in which two flattened configurations would train differently, as ``name: old → new``.

    A field that one of them lacks, as configurations of earlier versions do, has its default there.
    """
    missing = object()
    changed, defaults = [], flatten(RunConfig())
    for name in sorted(old.keys() | new.keys()):
        before, after = (fields.get(name, defaults.get(name, missing)) for fields in (old, new))
        if before != after and not name.startswith(FREE_FIELDS):
            texts = ["(absent)" if value is missing else repr(value) for value in (before, after)]
            changed.append(f"{name}: {texts[0]} → {texts[1]}")
    return changed


def _build(cls: type, values: dict, prefix: str = "config.") -> Any:
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}
    parsed = {}
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"There is no field {prefix}{name}; {did_you_mean(name, fields)}")
        if nested := _nested(fields[name]):
            value = _build(nested, value, f"{prefix}{name}.")
        elif problem := validate(fields[name].metadata, value):
            raise UserError(f"{prefix}{name} {problem}")
        parsed[name] = value
    return cls(**parsed)


def _nested(entry: dataclasses.Field) -> type | None:
    """Return the dataclass that a field holds, if it holds one."""
    cls = type(entry.default) if entry.default_factory is dataclasses.MISSING else entry.default_factory
    return cls if dataclasses.is_dataclass(cls) else None


def _optional_fields(cls: type, prefix: str = "") -> list[tuple[str, type]]:
    """List paths and types of fields that may be None: ConfigDict needs a typed placeholder for those."""
    optional, hints = [], typing.get_type_hints(cls)
    for entry in dataclasses.fields(cls):
        if nested := _nested(entry):
            optional += _optional_fields(nested, f"{prefix}{entry.name}.")
        elif isinstance(hints[entry.name], types.UnionType):
            optional.append((f"{prefix}{entry.name}", typing.get_args(hints[entry.name])[0]))
    return optional


def _descend(node: ml_collections.ConfigDict, path: str) -> Any:
    for name in filter(None, path.split(".")):
        node = node[name]
    return node
