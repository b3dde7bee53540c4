"""The workloads of the training and ADA benchmarks: one configuration each, on synthetic images."""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from noisytwins_jax.config import RunConfig, parse_config

_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# File of configs/ and options of the synthetic images that replace its data, with the same number of classes.
SIZES = {
    "digits": ("digits_lt", {"num_classes": 10, "channels": 1, "num_images": 1024}),
    "cifar10_lt": ("cifar10_lt", {"num_classes": 10, "num_images": 1024}),
    "inat19_64": ("inat19", {"num_classes": 1010, "num_images": 1010}),
    "biggan_128": ("imagenet", {"num_classes": 1000, "num_images": 1000}),
}


def build_workload(
    size: str,
    batch_size: int | None = None,
    up_impl: str | None = None,
    dtype: str | None = None,
    fields: Sequence[str] = (),
) -> RunConfig:
    """Build the configuration of a size, its data replaced by synthetic images of the same shape and classes.

    Args:
      size: a name of `SIZES`: the first method of the file of that size.
      batch_size, up_impl, dtype: replace those of the size if given.
      fields: further fields as ``name=value``, for example ``path_length.batch_fraction=1``.

    Raises:
      UserError: a value that the configuration does not accept.
      SystemExit: an unknown field, or a value of the wrong type.
    """
    file, images = SIZES[size]
    config = _load(file)
    config.data.name, config.data.options = "synthetic", images
    for name, value in (("batch_size", batch_size), ("up_impl", up_impl), ("dtype", dtype)):
        if value is not None:
            config[name] = value
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals or name.partition(".")[0] not in config:
            raise SystemExit(f"error: --field takes name=value with a field of the configuration, not {field!r}.")
        try:
            config.update_from_flattened_dict({name: _as_type_of(_lookup(config, name), value)})
        except ValueError:
            raise SystemExit(f"error: --field={field} is not a valid value of {name}.") from None
    return parse_config(config)


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `build_workload`."""
    parser.add_argument("--size", choices=SIZES, required=True, help="networks, classes and regularisers")
    parser.add_argument("--batch_size", type=int, help="images over all devices")
    parser.add_argument("--up_impl", choices=("auto", "conv", "shift"), help="form of the convolutions")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="dtype of activations")
    parser.add_argument(
        "--field", action="append", default=[], metavar="NAME=VALUE", help="any other field; may be repeated"
    )


def _load(file: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(file, _CONFIGS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def _lookup(config: ConfigDict, name: str) -> object:
    node = config
    for part in name.split("."):
        if part not in node:
            raise SystemExit(f"error: there is no field {name} in the configuration.")
        node = node[part]
    return node


def _as_type_of(old: object, text: str) -> object:
    if isinstance(old, bool):
        return text.lower() in ("1", "true", "yes")
    return type(old)(text) if isinstance(old, (int, float)) else text
