"""What the networks of StyleGAN2-ADA for PyTorch were made with, as fields of this project's configuration."""

from collections.abc import Mapping
from typing import Any

from noisytwins_jax.utils.errors import UserError

# Options of layers that this project's networks have at one value, which is that code's default, too.
_ONLY = {
    "activation": "lrelu",
    "lr_multiplier": 0.01,
    "use_noise": True,
    "kernel_size": 3,
    "mbstd_num_channels": 1,
    "resample_filter": [1, 3, 3, 1],
}


def config_fields(class_name: str, init_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that tensors do not tell, by dotted name: clamps, w_avg's decay, the mbstd group, the channels' base.

    An option that was not given has that code's default.

    Args:
      class_name: ``"Generator"`` or ``"Discriminator"``; any other has no fields.
      init_kwargs: arguments of that class, such as ``{"img_resolution": 32, "synthesis_kwargs": {"conv_clamp": 256}}``.

    Raises:
      UserError: they are of a network that this project does not have; the option is named.
    """
    if class_name not in ("Generator", "Discriminator"):
        return {}
    for group in (init_kwargs, *(value for value in init_kwargs.values() if isinstance(value, Mapping))):
        for name, value in group.items():
            value = list(value) if isinstance(value, tuple) else value
            if name in _ONLY and value is not None and value != _ONLY[name]:
                raise _unlike(class_name, name, value)
    role = class_name.lower()
    blocks = _group(init_kwargs, "synthesis_kwargs") if role == "generator" else init_kwargs
    clamp = blocks.get("conv_clamp")
    found = {
        f"{role}.channel_base": blocks.get("channel_base", 32768),
        f"{role}.channel_max": blocks.get("channel_max", 512),
        f"{role}.conv_clamp": None if clamp is None else float(clamp),
    }
    if role == "generator":
        return found | {"generator.w_avg_decay": _group(init_kwargs, "mapping_kwargs").get("w_avg_beta", 0.995)}
    group_size = _group(init_kwargs, "epilogue_kwargs").get("mbstd_group_size", 4)
    if group_size is None:  # the whole batch
        raise _unlike(class_name, "mbstd_group_size", group_size)
    return found | {"discriminator.mbstd_group_size": group_size}


def _group(init_kwargs: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return init_kwargs.get(name) or {}


def _unlike(class_name: str, name: str, value: Any) -> UserError:
    return UserError(
        f"The {class_name} was made with {name}={value!r}, which this project's networks do not have; take a model "
        "that was trained with the default."
    )
