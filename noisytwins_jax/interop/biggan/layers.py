"""Tensors of BigGAN in files: which there are in a naming, in which order, and how each differs from our variable.

What differs between files:

- layout: PyTorch's ``[out, in]`` and OIHW, or ours;
- the outputs of the generator's first layer, which is reshaped to 4×4: ordered (channel, y, x) or (y, x, channel), ours;
- the condition of BatchNorm and of BigGAN-deep's first layer: ``[embedding | latents]``, ours, or ``[latents | embedding]``;
- the shapes of vectors u and of attention's gamma;
- what else is kept: singular values, right singular vectors, counters.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from noisytwins_jax.interop.biggan.architecture import Architecture, Path, Shape, Structure
from noisytwins_jax.interop.network import channels_first, pixels_first, to_jax_layout, to_torch_layout

Leaves = tuple[tuple[str, str], ...]  # names in the file, and roles

OWN = {"weight", "bias", "gain", "gamma"}  # roles of parameters
# Roles of what no variable of ours corresponds to, so that a file may lack it. By them: σ and v of the singular value
# that u belongs to; the number of batches that moments are sums over; the number of batches ever seen.
DERIVED = {"sigma", "v", "counter", "batches"}


class Layer(NamedTuple):
    """One layer: its name in the file, its path in our networks, and what kind it is.

    Kinds: ``affine`` (convolution or dense, with bias) and ``first`` (the generator's first, with bias); ``linear``
    (without bias) and ``condition`` (of the condition, without bias); ``table`` of classes, not normalised, and
    ``embed``, normalised; ``conditional`` BatchNorm, ``norm`` with its own gain and bias; ``gamma``, a number.
    """

    key: str
    path: Path
    kind: str


class Tensor(NamedTuple):
    """One tensor: its name in the file, the path of its variable (of what is `DERIVED`: of what it belongs to)."""

    key: str
    path: Path
    kind: str  # of its layer
    role: str  # weight, bias, gain, gamma, u, mean, var, or one of `DERIVED`


@dataclass(frozen=True)
class Naming:
    """One kind of files.

    Attributes:
      name, title: for programs, for people.
      tensors: those of a structure, in the file's order.
      torch_layout, channels_first, latents_first, wide_rgb: see this module and `networks.biggan.Generator`.
      vector_shape, gamma_shape: of u, and of attention's gamma.
      grid: whether moments have a row for each of several truncations.
      fields: of the configuration that all such networks have and no tensor says.
    """

    name: str
    title: str
    tensors: Callable[[Structure], Iterator[Tensor]]
    torch_layout: bool = True
    channels_first: bool = True
    latents_first: bool = False
    wide_rgb: bool = False
    vector_shape: Shape = (-1,)
    gamma_shape: Shape = ()
    grid: bool = False
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TorchLeaves:
    """How PyTorch files name what layers consist of.

    Attributes:
      normalized: of a layer with spectral normalisation; without it there are ``weight`` and ``bias``.
      norm: of a BatchNorm with its own gain and bias.
      gain_and_bias: the layers of a conditional BatchNorm.
      moments: of a conditional BatchNorm.
      moments_first: whether they come before its layers.
    """

    normalized: Leaves
    norm: Leaves
    gain_and_bias: tuple[str, str]
    moments: Leaves
    moments_first: bool

    def tensors(self, layer: Layer, structure: Structure) -> Iterator[Tensor]:
        """Of a layer, in the file's order."""
        key, path, kind = layer
        if kind == "gamma":
            yield Tensor(key, ("params", *path), kind, "gamma")
        elif kind == "norm":
            yield from _named(layer, self.norm)
        elif kind == "conditional":
            moments = list(_named(layer, self.moments))
            kinds = "table" if structure.class_tables else "condition"
            suffix = "_table" if structure.class_tables else ""
            layers = [
                Layer(f"{key}.{name}", (*path, ours + suffix), kinds)
                for name, ours in zip(self.gain_and_bias, ("gain", "bias"), strict=True)
            ]
            yield from moments if self.moments_first else ()
            for dense in layers:
                yield from self.tensors(dense, structure)
            yield from () if self.moments_first else moments
        else:
            normalized = structure.spectral_norm and kind != "table"
            leaves = self.normalized if normalized else (("weight", "weight"), ("bias", "bias"))
            has_bias = kind in ("affine", "first")
            yield from _named(layer, tuple(leaf for leaf in leaves if has_bias or leaf[1] != "bias"))


def collection_of(role: str) -> str:
    """Where variables of a role are."""
    return {"u": "spectral", "mean": "batch_stats", "var": "batch_stats"}.get(role, "params")


def _named(layer: Layer, leaves: Leaves) -> Iterator[Tensor]:
    for name, role in leaves:
        path = layer.path if role in DERIVED else (collection_of(role), *layer.path, role)
        yield Tensor(f"{layer.key}.{name}", path, layer.kind, role)


def from_file(naming: Naming, tensor: Tensor, x: np.ndarray, architecture: Architecture) -> np.ndarray:
    """Our variable, float32, from a file's tensor (of moments: from one row)."""
    x = np.asarray(x, np.float32)
    if tensor.role in ("u", "bias", "gain"):
        x = x.reshape(-1)
    elif tensor.role == "gamma":
        x = x.reshape(())
    elif _is_turned(naming, tensor):
        x = to_jax_layout(x)
    if naming.channels_first and tensor.kind == "first":
        x = pixels_first(x.T).T
    if _has_condition_turned(naming, tensor, architecture):
        x = np.roll(x, architecture.embedding_dim, axis=0)
    return np.ascontiguousarray(x).reshape(x.shape)  # the first makes vectors of numbers


def to_file(naming: Naming, tensor: Tensor, x: np.ndarray, architecture: Architecture) -> np.ndarray:
    """The inverse of `from_file`."""
    x = np.asarray(x, np.float32)
    if _has_condition_turned(naming, tensor, architecture):
        x = np.roll(x, -architecture.embedding_dim, axis=0)
    if naming.channels_first and tensor.kind == "first":
        x = channels_first(x.T).T
    x = in_file_layout(naming, tensor, x)
    return np.ascontiguousarray(x).reshape(x.shape)


def in_file_layout(naming: Naming, tensor: Tensor, x: np.ndarray) -> np.ndarray:
    """In the shape that the file has."""
    if tensor.role == "u":
        return x.reshape(naming.vector_shape)
    if tensor.role == "gamma":
        return x.reshape(naming.gamma_shape)
    return to_torch_layout(x) if _is_turned(naming, tensor) else x


def our_shape(naming: Naming, tensor: Tensor, shape: Shape) -> Shape:
    """The shape of a weight in our layout."""
    x = np.broadcast_to(np.float32(0), shape)
    return to_jax_layout(x).shape if _is_turned(naming, tensor) else shape


def singular(weight: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The singular value and the right singular vector that belong to a left one, computed in float64.

    Args:
      weight: ``[out, ...]``.
      u: of length 1, with `out` entries in any shape.

    Returns:
      ``σ = uᵀWv`` as ``[1]`` and ``v = Wᵀu / ‖Wᵀu‖``, both float32.
    """
    product = weight.reshape(len(weight), -1).T.astype(np.float64) @ u.reshape(-1).astype(np.float64)
    length = np.linalg.norm(product)
    return np.float32([length]), (product / max(length, np.finfo(float).tiny)).astype(np.float32)


def _is_turned(naming: Naming, tensor: Tensor) -> bool:
    return naming.torch_layout and tensor.role == "weight" and tensor.kind not in ("table", "embed")


def _has_condition_turned(naming: Naming, tensor: Tensor, architecture: Architecture) -> bool:
    if not naming.latents_first or tensor.role != "weight":
        return False
    return tensor.kind == "condition" or (tensor.kind == "first" and architecture.structure.deep)
