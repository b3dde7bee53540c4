"""The workloads that both benchmarks measure: one configuration each, on synthetic images."""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from noisytwins_jax.config import RunConfig, default_config, parse_config

SIZES = ("digits", "cifar10_lt", "inat19_64")
_DIGITS = Path(__file__).resolve().parents[2] / "configs" / "digits_lt.py"


def workload(
    size: str,
    batch_size: int | None = None,
    up_impl: str | None = None,
    dtype: str | None = None,
    fields: Sequence[str] = (),
) -> RunConfig:
    """The configuration of a size, with its data replaced by synthetic images of the same shape and classes.

    Args:
      size: ``digits`` (configs/digits_lt.py), ``cifar10_lt`` (32 px, 10 classes) or ``inat19_64`` (64 px, 1010);
        the last two are the published NoisyTwins configurations, without ADA and LeCam.
      batch_size, up_impl, dtype: replace the size's own where given.
      fields: further fields as ``name=value``, for example ``path_length.batch_fraction=1``.

    Raises:
      UserError: a field or value that a configuration does not take.
      SystemExit: a field that there is not, or a value of the wrong type.
    """
    config = {"digits": _digits, "cifar10_lt": _cifar10_lt, "inat19_64": _inat19_64}[size]()
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
            raise SystemExit(f"error: --field={field} does not give {name} a value that it can take.") from None
    return parse_config(config)


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `workload`."""
    parser.add_argument("--size", choices=SIZES, required=True, help="networks, classes and regularisers")
    parser.add_argument("--batch_size", type=int, help="images over all devices")
    parser.add_argument("--up_impl", choices=("conv", "phase"), help="form of the resampling convolutions")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="dtype of activations")
    parser.add_argument(
        "--field", action="append", default=[], metavar="NAME=VALUE", help="any other field; may be repeated"
    )


def _digits() -> ConfigDict:
    spec = importlib.util.spec_from_file_location("digits_lt", _DIGITS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.data.name = "synthetic"
    config.data.options = {"num_classes": 10, "channels": 1, "num_images": 1024}
    return config


def _cifar10_lt() -> ConfigDict:
    config = default_config()
    config.name = "cifar10_lt"
    config.data.resolution = 32
    config.data.name, config.data.options = "synthetic", {"num_classes": 10, "num_images": 1024}
    config.generator.mapping_layers = 8
    config.discriminator.architecture = "orig"
    config.discriminator.mbstd_group_size = 32
    config.augment.diffaugment = "color,translation,cutout"
    config.r1.gamma = 0.01
    config.noisytwins.sigma, config.noisytwins.alpha = 0.75, 0.99
    config.noisytwins.weight, config.noisytwins.gamma = 0.01, 0.05
    return config


def _inat19_64() -> ConfigDict:
    config = default_config()
    config.name = "inat19_64"
    config.data.resolution = 64
    config.data.name, config.data.options = "synthetic", {"num_classes": 1010, "num_images": 1010}
    config.generator.mapping_layers = 2
    config.discriminator.architecture = "resnet"
    config.discriminator.mbstd_group_size = 8
    config.style_mixing = 0.9
    config.r1.gamma = 0.2048
    config.path_length.weight = 2.0
    config.noisytwins.sigma, config.noisytwins.alpha = 0.1, 0.0
    config.noisytwins.weight, config.noisytwins.gamma = 0.001, 0.005
    return config


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
