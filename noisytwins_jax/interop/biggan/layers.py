"""BigGAN's tensors in files: their names and order in each naming, and their conversion to Flax variables and back.

Files differ in:

- the layout: PyTorch's ``[out, in]`` and OIHW, or Flax's;
- the outputs of the generator's first layer, which is reshaped to 4×4: (channel, y, x), or (y, x, channel) as in Flax;
- the condition of BatchNorm and of BigGAN-deep's first layer: ``[embedding | latents]``, as in Flax, or
  ``[latents | embedding]``;
- the shapes of the vectors u and of attention's gamma;
- the redundant tensors that they store: singular values, right singular vectors, counters.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from noisytwins_jax.interop.biggan.architecture import Architecture, Path, Shape, Structure
from noisytwins_jax.interop.layouts import channels_first, pixels_first, to_jax_layout, to_torch_layout

Leaves = tuple[tuple[str, str], ...]  # names in the file, and roles

PARAMETER_ROLES = {"weight", "bias", "gain", "gamma"}
# Roles of tensors without a Flax variable, which a file may lack: the singular value and the right singular vector that
# belong to u; the number of batches that BatchNorm statistics are sums over; the number of batches processed in training.
DERIVED_ROLES = {"sigma", "v", "counter", "batches"}


class Layer(NamedTuple):
    """One layer: its name in the file, its path in the Flax network, and its kind.

    Kinds: ``affine`` (convolution or dense, with bias) and ``first`` (the generator's first layer, with bias);
    ``linear`` (without bias) and ``condition`` (a layer of the condition, without bias); ``table``, a class embedding
    without spectral normalisation, and ``embed``, with it; ``conditional`` BatchNorm, ``norm`` with its own gain and
    bias; ``gamma``, a scalar.
    """

    key: str
    path: Path
    kind: str


class Tensor(NamedTuple):
    """One tensor: its name in the file, and the path of its variable, or of its layer for `DERIVED_ROLES`."""

    key: str
    path: Path
    kind: str  # of its layer
    role: str  # weight, bias, gain, gamma, u, mean, var, or one of `DERIVED_ROLES`


@dataclass(frozen=True)
class Naming:
    """A public file format.

    Attributes:
      name: identifier.
      title: for messages.
      tensors: yields the tensors of a structure, in the file's order.
      torch_layout, channels_first, latents_first, wide_rgb: see this module and `models.biggan.Generator`.
      vector_shape, gamma_shape: of u, and of attention's gamma.
      grid: whether BatchNorm statistics have a row for each of several truncations.
      fields: configuration fields that all such networks have and that do not follow from tensors.
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
    """The names of the tensors of a layer in PyTorch files.

    Attributes:
      normalized: of a layer with spectral normalisation; without it there are ``weight`` and ``bias``.
      norm: of a BatchNorm with its own gain and bias.
      gain_and_bias: the layers of a conditional BatchNorm.
      statistics: the stored statistics of a conditional BatchNorm.
      statistics_first: whether they come before its layers.
    """

    normalized: Leaves
    norm: Leaves
    gain_and_bias: tuple[str, str]
    statistics: Leaves
    statistics_first: bool

    def tensors(self, layer: Layer, structure: Structure) -> Iterator[Tensor]:
        """Yield the tensors of a layer, in the file's order."""
        key, path, kind = layer
        if kind == "gamma":
            yield Tensor(key, ("params", *path), kind, "gamma")
        elif kind == "norm":
            yield from _named(layer, self.norm)
        elif kind == "conditional":
            statistics = list(_named(layer, self.statistics))
            dense_kind = "table" if structure.class_tables else "condition"
            suffix = "_table" if structure.class_tables else ""
            layers = [
                Layer(f"{key}.{name}", (*path, flax_name + suffix), dense_kind)
                for name, flax_name in zip(self.gain_and_bias, ("gain", "bias"), strict=True)
            ]
            yield from statistics if self.statistics_first else ()
            for dense in layers:
                yield from self.tensors(dense, structure)
            yield from () if self.statistics_first else statistics
        else:
            normalized = structure.spectral_norm and kind != "table"
            leaves = self.normalized if normalized else (("weight", "weight"), ("bias", "bias"))
            has_bias = kind in ("affine", "first")
            yield from _named(layer, tuple(leaf for leaf in leaves if has_bias or leaf[1] != "bias"))


def get_collection(role: str) -> str:
    """Return the Flax collection of variables of a role."""
    return {"u": "spectral", "mean": "batch_stats", "var": "batch_stats"}.get(role, "params")


def _named(layer: Layer, leaves: Leaves) -> Iterator[Tensor]:
    for name, role in leaves:
        path = layer.path if role in DERIVED_ROLES else (get_collection(role), *layer.path, role)
        yield Tensor(f"{layer.key}.{name}", path, layer.kind, role)


def to_variable(naming: Naming, tensor: Tensor, x: np.ndarray, architecture: Architecture) -> np.ndarray:
    """Convert a file's tensor (one row of it, for BatchNorm statistics) to a Flax variable, float32."""
    x = np.asarray(x, np.float32)
    if tensor.role in ("u", "bias", "gain"):
        x = x.reshape(-1)
    elif tensor.role == "gamma":
        x = x.reshape(())
    elif _is_transposed(naming, tensor):
        x = to_jax_layout(x)
    if naming.channels_first and tensor.kind == "first":
        x = pixels_first(x.T).T
    if _has_latents_first(naming, tensor, architecture):
        x = np.roll(x, architecture.embedding_dim, axis=0)
    return np.ascontiguousarray(x).reshape(x.shape)  # ascontiguousarray gives a scalar an axis


def to_tensor(naming: Naming, tensor: Tensor, x: np.ndarray, architecture: Architecture) -> np.ndarray:
    """Invert `to_variable`."""
    x = np.asarray(x, np.float32)
    if _has_latents_first(naming, tensor, architecture):
        x = np.roll(x, -architecture.embedding_dim, axis=0)
    if naming.channels_first and tensor.kind == "first":
        x = channels_first(x.T).T
    x = to_file_layout(naming, tensor, x)
    return np.ascontiguousarray(x).reshape(x.shape)


def to_file_layout(naming: Naming, tensor: Tensor, x: np.ndarray) -> np.ndarray:
    """Transpose or reshape a variable to the file's shape."""
    if tensor.role == "u":
        return x.reshape(naming.vector_shape)
    if tensor.role == "gamma":
        return x.reshape(naming.gamma_shape)
    return to_torch_layout(x) if _is_transposed(naming, tensor) else x


def get_jax_shape(naming: Naming, tensor: Tensor, shape: Shape) -> Shape:
    """Return the shape of a weight in Flax's layout."""
    x = np.broadcast_to(np.float32(0), shape)
    return to_jax_layout(x).shape if _is_transposed(naming, tensor) else shape


def compute_sigma_and_v(weight: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the singular value and the right singular vector that belong to a left one, in float64.

    Args:
      weight: ``[out, ...]``.
      u: of length 1, with `out` entries in any shape.

    Returns:
      ``σ = uᵀWv`` as ``[1]`` and ``v = Wᵀu / ‖Wᵀu‖``, both float32.
    """
    product = weight.reshape(len(weight), -1).T.astype(np.float64) @ u.reshape(-1).astype(np.float64)
    length = np.linalg.norm(product)
    return np.float32([length]), (product / max(length, np.finfo(float).tiny)).astype(np.float32)


def _is_transposed(naming: Naming, tensor: Tensor) -> bool:
    return naming.torch_layout and tensor.role == "weight" and tensor.kind not in ("table", "embed")


def _has_latents_first(naming: Naming, tensor: Tensor, architecture: Architecture) -> bool:
    if not naming.latents_first or tensor.role != "weight":
        return False
    return tensor.kind == "condition" or (tensor.kind == "first" and architecture.structure.deep)
