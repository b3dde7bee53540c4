"""Constructor options of StyleGAN2-ADA for PyTorch as configuration fields."""

from collections.abc import Mapping
from typing import Any

from noisytwins_jax.utils.errors import UserError

# Options that are fixed in this project's networks, at that code's defaults.
_FIXED = {
    "activation": "lrelu",
    "lr_multiplier": 0.01,
    "use_noise": True,
    "kernel_size": 3,
    "mbstd_num_channels": 1,
    "resample_filter": [1, 3, 3, 1],
}


def config_fields(class_name: str, init_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that do not follow from tensors: clamps, w_avg's decay, the mbstd group size, channel base.

    A missing option has that code's default.

    Args:
      class_name: ``"Generator"`` or ``"Discriminator"``; any other has no fields.
      init_kwargs: arguments of that class, such as ``{"img_resolution": 32, "synthesis_kwargs": {"conv_clamp": 256}}``.

    Returns:
      Configuration fields by dotted name.

    Raises:
      UserError: this project has no such network; the option is named.
    """
    if class_name not in ("Generator", "Discriminator"):
        return {}
    for group in (init_kwargs, *(value for value in init_kwargs.values() if isinstance(value, Mapping))):
        for name, value in group.items():
            value = list(value) if isinstance(value, tuple) else value
            if name in _FIXED and value is not None and value != _FIXED[name]:
                raise _unsupported(class_name, name, value)
    role = class_name.lower()
    blocks = _group(init_kwargs, "synthesis_kwargs") if role == "generator" else init_kwargs
    clamp = blocks.get("conv_clamp")
    fields = {
        f"{role}.channel_base": blocks.get("channel_base", 32768),
        f"{role}.channel_max": blocks.get("channel_max", 512),
        f"{role}.conv_clamp": None if clamp is None else float(clamp),
    }
    if role == "generator":
        return fields | {"generator.w_avg_decay": _group(init_kwargs, "mapping_kwargs").get("w_avg_beta", 0.995)}
    group_size = _group(init_kwargs, "epilogue_kwargs").get("mbstd_group_size", 4)
    if group_size is None:  # the whole batch
        raise _unsupported(class_name, "mbstd_group_size", group_size)
    return fields | {"discriminator.mbstd_group_size": group_size}


def _group(init_kwargs: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return init_kwargs.get(name) or {}


def _unsupported(class_name: str, name: str, value: Any) -> UserError:
    return UserError(
        f"The {class_name} was made with {name}={value!r}, which this project's networks do not have; take a model "
        "that was trained with the default."
    )
