"""Constructor options of NVIDIA's StyleGAN2 networks in PyTorch, from and to configuration fields.

StyleGAN2-ADA's generator takes the options of its synthesis network in ``synthesis_kwargs``; that of the repository of
StyleGAN3 (``--cfg=stylegan2``) takes them beside the others, and has another default of w_avg's decay.
"""

from collections.abc import Mapping
from typing import Any

from noisytwins_jax.interop.stylegan2.architecture import Architecture
from noisytwins_jax.utils.errors import UserError

# Options that are fixed in this project's networks, at that code's defaults.
_FIXED = {
    "activation": "lrelu",
    "lr_multiplier": 0.01,
    "use_noise": True,
    "kernel_size": 3,
    "resample_filter": [1, 3, 3, 1],
}


def config_fields(role: str, init_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that do not follow from tensors: clamps, w_avg's decay and the mbstd group size.

    A missing option has that code's default.

    Args:
      role: ``"generator"`` or ``"discriminator"``.
      init_kwargs: its constructor's arguments, such as ``{"img_resolution": 32, "synthesis_kwargs": {"conv_clamp": 256}}``.

    Returns:
      Configuration fields by dotted name.

    Raises:
      UserError: this project has no such network; the option is named.
    """
    for group in (init_kwargs, *(value for value in init_kwargs.values() if isinstance(value, Mapping))):
        for name, value in group.items():
            value = list(value) if isinstance(value, tuple) else value
            if name in _FIXED and value is not None and value != _FIXED[name]:
                raise _unsupported(role, name, value)
    clamp = (init_kwargs.get("synthesis_kwargs") or init_kwargs).get("conv_clamp")
    fields = {f"{role}.conv_clamp": None if clamp is None else float(clamp)}
    if role == "generator":
        decay = 0.995 if "synthesis_kwargs" in init_kwargs else 0.998
        return fields | {"generator.w_avg_decay": _group(init_kwargs, "mapping_kwargs").get("w_avg_beta", decay)}
    epilogue = _group(init_kwargs, "epilogue_kwargs")
    group_size = 1 if epilogue.get("mbstd_num_channels") == 0 else epilogue.get("mbstd_group_size", 4)
    if group_size is None:  # the whole batch
        raise _unsupported(role, "mbstd_group_size", group_size)
    return fields | {"discriminator.mbstd_group_size": group_size}


def init_kwargs(architecture: Architecture, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments of a network in StyleGAN2-ADA, the inverse of `config_fields`.

    Args:
      architecture: of the network.
      fields: the run's configuration by dotted name.
    """
    role = architecture.role
    images = {
        "c_dim": architecture.num_classes,
        "img_resolution": architecture.resolution,
        "img_channels": architecture.channels,
    }
    blocks = {
        "architecture": architecture.blocks,
        "channel_base": architecture.channel_base,
        "channel_max": architecture.channel_max,
        "num_fp16_res": 0,
        "conv_clamp": fields[f"{role}.conv_clamp"],
    }
    mapping = {"num_layers": architecture.mapping_layers}
    if role == "discriminator":
        epilogue = {
            "mbstd_group_size": fields["discriminator.mbstd_group_size"],
            "mbstd_num_channels": int(architecture.minibatch_stddev),
        }
        return images | blocks | {"mapping_kwargs": mapping, "epilogue_kwargs": epilogue}
    latents = {"z_dim": architecture.z_dim, "w_dim": architecture.w_dim}
    mapping["w_avg_beta"] = fields["generator.w_avg_decay"]
    return latents | images | {"mapping_kwargs": mapping, "synthesis_kwargs": blocks}


def _group(init_kwargs: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return init_kwargs.get(name) or {}


def _unsupported(role: str, name: str, value: Any) -> UserError:
    return UserError(
        f"The {role} was made with {name}={value!r}, which this project's networks do not have; take a model "
        "that was trained with the default."
    )
