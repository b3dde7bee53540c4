"""StyleGAN2's public state dicts (StudioGAN, NoisyTwins, StyleGAN2-ADA for PyTorch) to this project's layout and back.

Parameters are raw in either (no gain is folded in, no kernel is turned round), so that a tensor is the same numbers in
another order, and both ways together change no bit. See `stylegan2_architecture` for the keys.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from noisytwins_jax.interop.network import (
    ConvertedNetwork,
    channels_first,
    pixels_first,
    to_jax_layout,
    to_torch_layout,
)
from noisytwins_jax.interop.stylegan2.architecture import (
    EMBEDDING_OUTPUT,
    FILTER,
    OUTPUTS,
    WAY_OUT,
    Shape,
    Shapes,
    architecture_of,
    check_naming,
    matches,
    naming_of,
)
from noisytwins_jax.utils.errors import UserError

__all__ = ["matches", "parameter_keys", "read_parameters", "read_stylegan2", "write_parameters", "write_stylegan2"]

_FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64
_BUFFERS = ("w_avg", "noise_const")


def read_stylegan2(tensors: Mapping[str, np.ndarray]) -> ConvertedNetwork:
    """A generator or discriminator of StyleGAN2 from its state dict.

    Args:
      tensors: of one network by key, in PyTorch's layout and any floating type.

    Raises:
      UserError: a tensor is missing, unknown or of a wrong shape or type (the first is named), or the network is of a
        kind that this project does not have.
    """
    # StudioGAN's own name of the class mapping of D2D-CE and 2C, which NoisyTwins names like the others.
    renamed = {
        f"mapping{key.removeprefix('embedding')}" if key.startswith("embedding.") else key: key for key in tensors
    }
    arrays = {key: np.asarray(tensors[original]) for key, original in renamed.items()}
    shapes = {key: value.shape for key, value in arrays.items()}
    architecture = architecture_of(shapes)
    _check_shapes(architecture.role, shapes, architecture.shapes(naming_of(shapes)))
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
    """The state dict of a network: float32, in PyTorch's layout and order, the filters among it.

    Args:
      network: its variables alone count, and tell the architecture.
      naming: ``"studiogan"`` (also NoisyTwins' names) or ``"nvidia"`` (StyleGAN2-ADA for PyTorch).

    Raises:
      UserError: no such naming, or it has no name for one of the variables.
    """
    tensors, expected = _arranged(network, naming)
    return {key: np.array(_FILTER if key.endswith(FILTER) else tensors[key], order="C") for key in expected}


def parameter_keys(network: ConvertedNetwork, naming: str) -> list[str]:
    """Keys of the parameters in the order of the module's ``parameters()``, by which PyTorch's optimisers number them.

    Raises:
      UserError: as `write_stylegan2`.
    """
    return list(_parameter_shapes(network, naming))


def read_parameters(tensors: Mapping[str, np.ndarray], network: ConvertedNetwork, naming: str) -> dict[str, Any]:
    """The collection ``params`` from tensors like the network's parameters, such as Adam's moments, by their keys.

    Raises:
      UserError: as `write_stylegan2`; or a tensor is missing, unknown or of a wrong shape.
    """
    expected = _parameter_shapes(network, naming)
    _check_shapes(network.role, {key: np.shape(x) for key, x in tensors.items()}, expected)
    return unflatten_dict({_path(key)[1:]: _to_jax(key, np.asarray(tensors[key])) for key in expected})


def write_parameters(params: dict[str, Any], network: ConvertedNetwork, naming: str) -> dict[str, np.ndarray]:
    """The inverse of `read_parameters`, in the order of `parameter_keys`.

    Raises:
      UserError: as `write_stylegan2`.
    """
    flat = flatten_dict(params)
    return {key: _to_torch(key, np.asarray(flat[_path(key)[1:]])) for key in parameter_keys(network, naming)}


def _parameter_shapes(network: ConvertedNetwork, naming: str) -> dict[str, Shape]:
    _, expected = _arranged(network, naming)
    return {key: shape for key, shape in expected.items() if not key.endswith((FILTER, *_BUFFERS))}


def _arranged(network: ConvertedNetwork, naming: str) -> tuple[dict[str, np.ndarray], dict[str, Shape]]:
    """All tensors but the filters by key, in PyTorch's layout; and the keys and shapes of the whole state dict."""
    check_naming(naming)
    tensors = {}
    for path, value in flatten_dict(dict(network.variables)).items():
        key = _key(path, naming)
        tensors[key] = _to_torch(key, np.asarray(value, np.float32))
    shapes = {key: value.shape for key, value in tensors.items()}
    architecture = architecture_of(shapes)
    expected = architecture.shapes(naming)
    for key in tensors:
        if key not in expected:
            raise UserError(
                f"The {architecture.role} has {key}, for which public checkpoints of StyleGAN2 have no place; write a "
                "network without the parts of Transitional-cGAN and UTLO."
            )
    _check_shapes(
        architecture.role, shapes, {key: shape for key, shape in expected.items() if not key.endswith(FILTER)}
    )
    return tensors, expected


def _check_shapes(role: str, shapes: Shapes, expected: Shapes) -> None:
    """Refuses tensors that are not exactly the expected ones, and names the first."""
    for key, shape in expected.items():
        if key not in shapes:
            raise UserError(f"The {role} lacks {key}; {WAY_OUT}.")
        if shapes[key] != shape:
            raise UserError(
                f"The {role}'s {key} has shape {list(shapes[key])} and should have {list(shape)}; {WAY_OUT}."
            )
    for key in shapes:
        if key not in expected:
            raise UserError(f"The {role} has {key}, which StyleGAN2 networks of its kind have not; {WAY_OUT}.")


def _path(key: str) -> tuple[str, ...]:
    """Collection and path of a tensor among the variables."""
    for name, ours in (*((name, "output") for name in OUTPUTS.values()), (EMBEDDING_OUTPUT, "embedding_output")):
        key = key.replace(f"{name}.", f"{ours}.") if key.startswith(f"{name}.") else key
    return ("buffers" if key.endswith(_BUFFERS) else "params", *key.split("."))


def _key(path: tuple[str, ...], naming: str) -> str:
    """The inverse of `_path`."""
    first = {"output": OUTPUTS[naming], "embedding_output": EMBEDDING_OUTPUT}.get(path[1], path[1])
    return ".".join((first, *path[2:]))


def _to_jax(key: str, value: np.ndarray) -> np.ndarray:
    if key == "b4.fc.weight":  # its inputs are pixels
        return pixels_first(value.T)
    return value[..., None] if key.endswith("noise_const") else to_jax_layout(value)


def _to_torch(key: str, value: np.ndarray) -> np.ndarray:
    if key == "b4.fc.weight":
        return channels_first(value).T
    return value[..., 0] if key.endswith("noise_const") else to_torch_layout(value)
