"""Public state dicts of StyleGAN2 (StudioGAN, NoisyTwins, StyleGAN2-ADA for PyTorch) to Flax variables and back.

Both store raw parameters (no gain folded in, no kernel flipped), so a conversion only permutes axes, and a round trip is
bit-exact. `stylegan2.architecture` describes the keys.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from noisytwins_jax.interop.converted_network import ConvertedNetwork
from noisytwins_jax.interop.layouts import channels_first, pixels_first, to_jax_layout, to_torch_layout
from noisytwins_jax.interop.stylegan2.architecture import (
    EMBEDDING_OUTPUT,
    FILTER,
    OUTPUTS,
    WAY_OUT,
    Shape,
    Shapes,
    check_naming,
    detect_architecture,
    detect_naming,
    matches,
)
from noisytwins_jax.utils.errors import UserError

__all__ = ["matches", "read_parameters", "read_stylegan2", "write_parameters", "write_stylegan2"]

_FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64
_BUFFERS = ("w_avg", "noise_const")


def read_stylegan2(tensors: Mapping[str, np.ndarray]) -> ConvertedNetwork:
    """Convert the state dict of a StyleGAN2 generator or discriminator.

    Args:
      tensors: one network's tensors by key, in PyTorch's layout and any floating dtype.

    Raises:
      UserError: a tensor is missing, unknown or of a wrong shape or dtype (the first is named), or this project has no
        such network.
    """
    # StudioGAN has its own name for the class mapping of D2D-CE and 2C, which NoisyTwins names like the others.
    renamed = {
        f"mapping{key.removeprefix('embedding')}" if key.startswith("embedding.") else key: key for key in tensors
    }
    arrays = {key: np.asarray(tensors[original]) for key, original in renamed.items()}
    shapes = {key: value.shape for key, value in arrays.items()}
    architecture = detect_architecture(shapes)
    _check_shapes(architecture.role, shapes, architecture.shapes(detect_naming(shapes)))
    variables = {}
    for key, value in arrays.items():
        if value.dtype.kind != "f":
            raise UserError(
                f"The {architecture.role}'s {key} has numbers of type {value.dtype}, not floats; {WAY_OUT}."
            )
        if not key.endswith(FILTER):
            variables[_path(key)] = _to_jax(key, np.asarray(value, np.float32))
        elif not np.allclose(value, _FILTER, atol=1e-4):
            raise UserError(
                f"The {architecture.role}'s {key} is another filter than [1, 3, 3, 1], the only one that this "
                "project's networks have; take a network with that one."
            )
    return ConvertedNetwork(
        role=architecture.role,
        fields=architecture.fields(),
        num_classes=architecture.num_classes,
        channels=architecture.channels,
        variables=unflatten_dict(variables),
    )


def write_stylegan2(network: ConvertedNetwork, naming: str) -> dict[str, np.ndarray]:
    """Convert a network to a state dict: float32, in PyTorch's layout and order, with the filters.

    Args:
      network: only its variables are used; the architecture follows from them.
      naming: ``"studiogan"`` (also NoisyTwins' names) or ``"nvidia"`` (StyleGAN2-ADA for PyTorch).

    Raises:
      UserError: the naming does not exist, or has no name for one of the variables.
    """
    tensors, expected = _to_tensors(network, naming)
    return {key: np.array(_FILTER if key.endswith(FILTER) else tensors[key], order="C") for key in expected}


def read_parameters(tensors: Mapping[str, np.ndarray], network: ConvertedNetwork, naming: str) -> dict[str, Any]:
    """Convert tensors shaped like the network's parameters, such as Adam's moments, to a tree shaped like ``params``.

    Raises:
      UserError: as `write_stylegan2`; or a tensor is missing, unknown or of a wrong shape.
    """
    expected = _parameter_shapes(network, naming)
    _check_shapes(network.role, {key: np.shape(x) for key, x in tensors.items()}, expected)
    return unflatten_dict({_path(key)[1:]: _to_jax(key, np.asarray(tensors[key])) for key in expected})


def write_parameters(params: dict[str, Any], network: ConvertedNetwork, naming: str) -> dict[str, np.ndarray]:
    """Invert `read_parameters`, in the order of ``parameters()``, by which PyTorch's optimisers number parameters.

    Raises:
      UserError: as `write_stylegan2`.
    """
    flat = flatten_dict(params)
    return {key: _to_torch(key, np.asarray(flat[_path(key)[1:]])) for key in _parameter_shapes(network, naming)}


def _parameter_shapes(network: ConvertedNetwork, naming: str) -> dict[str, Shape]:
    _, expected = _to_tensors(network, naming)
    return {key: shape for key, shape in expected.items() if not key.endswith((FILTER, *_BUFFERS))}


def _to_tensors(network: ConvertedNetwork, naming: str) -> tuple[dict[str, np.ndarray], dict[str, Shape]]:
    """Return all tensors but the filters, in PyTorch's layout, and the shapes of the whole state dict, both by key."""
    check_naming(naming)
    tensors = {}
    for path, value in flatten_dict(dict(network.variables)).items():
        key = _key(path, naming)
        tensors[key] = _to_torch(key, np.asarray(value, np.float32))
    shapes = {key: value.shape for key, value in tensors.items()}
    architecture = detect_architecture(shapes)
    expected = architecture.shapes(naming)
    for key in tensors:
        if key not in expected:
            raise UserError(
                f"The {architecture.role} has {key}, for which public checkpoints of StyleGAN2 have no place; write a "
                "network without the parts of Transitional-cGAN, UTLO and Content–Style."
            )
    _check_shapes(
        architecture.role, shapes, {key: shape for key, shape in expected.items() if not key.endswith(FILTER)}
    )
    return tensors, expected


def _check_shapes(role: str, shapes: Shapes, expected: Shapes) -> None:
    """Raise a `UserError` that names the first missing, unknown or wrongly shaped tensor."""
    for key, shape in expected.items():
        if key not in shapes:
            raise UserError(f"The {role} lacks {key}; {WAY_OUT}.")
        if shapes[key] != shape:
            raise UserError(
                f"The {role}'s {key} has shape {list(shapes[key])} and should have {list(shape)}; {WAY_OUT}."
            )
    for key in shapes:
        if key not in expected:
            raise UserError(f"The {role} has {key}, which StyleGAN2 networks of its kind do not have; {WAY_OUT}.")


def _path(key: str) -> tuple[str, ...]:
    """Return the variable's collection and path."""
    for name, flax_name in (*((name, "output") for name in OUTPUTS.values()), (EMBEDDING_OUTPUT, "embedding_output")):
        key = key.replace(f"{name}.", f"{flax_name}.") if key.startswith(f"{name}.") else key
    return ("buffers" if key.endswith(_BUFFERS) else "params", *key.split("."))


def _key(path: tuple[str, ...], naming: str) -> str:
    """Invert `_path`."""
    first = {"output": OUTPUTS[naming], "embedding_output": EMBEDDING_OUTPUT}.get(path[1], path[1])
    return ".".join((first, *path[2:]))


def _to_jax(key: str, value: np.ndarray) -> np.ndarray:
    if key == "b4.fc.weight":  # its inputs are flattened 4×4 images
        return pixels_first(value.T)
    return value[..., None] if key.endswith("noise_const") else to_jax_layout(value)


def _to_torch(key: str, value: np.ndarray) -> np.ndarray:
    if key == "b4.fc.weight":
        return channels_first(value).T
    return value[..., 0] if key.endswith("noise_const") else to_torch_layout(value)
