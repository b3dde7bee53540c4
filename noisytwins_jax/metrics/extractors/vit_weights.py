"""Weights of vision transformers in PyTorch's naming schemes: expected shapes, configuration, and parameters.

Public files name the same tensors differently: each layout has its own `Names`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from noisytwins_jax.metrics.extractors.state_dict import Shapes, State, float32
from noisytwins_jax.metrics.extractors.vit import Variables, VitConfig
from noisytwins_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Names:
    """Names of a vision transformer's tensors in a public file, up to ``weight`` and ``bias``.

    Attributes:
      what: the network for messages, such as "CLIP image tower".
      class_token: whole name.
      positions: whole name.
      patch: the patch embedding, a convolution.
      block: prefix of the names within a block, with ``{}`` for the block's number.
      norm1: the attention's layer normalisation.
      qkv: queries, keys and values: one packed linear map, or three.
      attention_out: the linear map after the attention heads.
      norm2: the MLP's layer normalisation.
      mlp_in: the MLP's first linear map.
      mlp_out: the MLP's second linear map.
      output_norm: the last layer normalisation.
      input_norm: the layer normalisation before the blocks; empty if there is none.
      scales: layer scales of attention and MLP, whole names; empty if there are none.
      projection: the final linear map, whole name; empty if there is none.
      projection_in_first: whether that map is stored as ``[in, out]``, unlike PyTorch's linear maps.
      batch_axes: whether class token and positions are stored as ``[1, tokens, width]``.
      unused: prefixes of tensors that a file may contain and that are not needed.
    """

    what: str
    class_token: str
    positions: str
    patch: str
    block: str
    norm1: str
    qkv: tuple[str, ...]
    attention_out: str
    norm2: str
    mlp_in: str
    mlp_out: str
    output_norm: str
    input_norm: str = ""
    scales: tuple[str, ...] = ()
    projection: str = ""
    projection_in_first: bool = False
    batch_axes: bool = False
    unused: tuple[str, ...] = ()


def state_shapes(config: VitConfig, names: Names, stored_grid: int | None = None) -> Shapes:
    """Return the tensors needed, with their shapes in PyTorch.

    Args:
      config: the network.
      names: the file's names.
      stored_grid: patches per side of the file's positions, if not those of `config`.
    """
    width, size, hidden = config.width, config.patch_size, config.mlp_width
    tokens = (stored_grid or config.grid) ** 2 + 1
    shapes: Shapes = {
        names.class_token: (1, 1, width) if names.batch_axes else (width,),
        names.positions: (1, tokens, width) if names.batch_axes else (tokens, width),
        f"{names.patch}weight": (width, 3, size, size),
    }
    if config.patch_bias:
        shapes[f"{names.patch}bias"] = (width,)
    norms = [names.input_norm] if config.input_norm else []
    linear = {name: (3 * width // len(names.qkv), width) for name in names.qkv}
    linear |= {names.attention_out: (width, width), names.mlp_in: (hidden, width), names.mlp_out: (width, hidden)}
    for prefix in (names.block.format(i) for i in range(config.layers)):
        norms += [prefix + names.norm1, prefix + names.norm2]
        for name, shape in linear.items():
            shapes |= {f"{prefix}{name}weight": shape, f"{prefix}{name}bias": shape[:1]}
        shapes |= {prefix + name: (width,) for name in names.scales}
    for name in [*norms, names.output_norm]:
        shapes |= {f"{name}weight": (width,), f"{name}bias": (width,)}
    if config.projection_dim is not None:
        shape = (width, config.projection_dim)
        shapes[names.projection] = shape if names.projection_in_first else shape[::-1]
    return shapes


def find_layout(state: State, layouts: Mapping[str, Names]) -> str:
    """Find the layout of a file by the names of positions and patch embedding.

    Raises:
      UserError: it is none of `layouts`.
    """
    for layout, names in layouts.items():
        if names.positions in state and f"{names.patch}weight" in state:
            return layout
    names = next(iter(layouts.values()))
    raise UserError(f"The weights hold no {names.what} ({names.positions!r} is missing): convert the public file.")


def infer_config(state: State, names: Names, heads: int | None, **fixed: Any) -> VitConfig:
    """Infer the network from the shapes of a file's tensors, with the image size of its positions.

    Args:
      state: the file's tensors, in the layout of `names`.
      names: the file's names.
      heads: of the attention; None for a head dimension of 64, as in all public weights.
      fixed: fields of :class:`VitConfig` that shapes do not imply.

    Raises:
      UserError: the shapes belong to no network, or the heads do not divide the width.
    """
    patch, first = f"{names.patch}weight", f"{names.block.format(0)}{names.mlp_in}weight"
    for key, axes in {patch: 4, first: 2, names.projection: 2}.items():
        if key and (key not in state or state[key].ndim != axes):
            wrong = f"has shape {list(state[key].shape)}" if key in state else "is missing"
            raise UserError(f"The weights are of no {names.what} known here: {key!r} {wrong}; convert the public file.")
    width, _, _, patch_size = state[patch].shape
    if heads is None and width % 64:
        raise UserError(f"A {names.what} of width {width} has no heads of 64: say how many heads it has.")
    heads = width // 64 if heads is None else heads
    if heads < 1 or width % heads:
        raise UserError(f"A {names.what} of width {width} cannot have {heads} heads: give a number that divides it.")
    layers = 0
    while f"{names.block.format(layers)}{names.mlp_in}weight" in state:
        layers += 1
    if names.projection:
        fixed["projection_dim"] = state[names.projection].shape[1 if names.projection_in_first else 0]
    config = VitConfig(
        image_size=patch_size * stored_grid(state, names),
        patch_size=patch_size,
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=len(state[first]),
        **fixed,
    )
    _check(state, state_shapes(config, names), names)
    return config


def stored_grid(state: State, names: Names) -> int:
    """Return the patches per side of a file's positions."""
    return max(1, round((np.size(state[names.positions]) / len(state[f"{names.patch}weight"]) - 1) ** 0.5))


def _check(state: State, shapes: Shapes, names: Names) -> None:
    """Raise UserError that names the first tensor that is missing, of another shape, or unknown."""
    wrong = f"The weights do not fit a {names.what}"
    for key, shape in shapes.items():
        if key not in state:
            raise UserError(f"{wrong}: {key!r} is missing; convert the public file again.")
        if state[key].shape != shape:
            found, expected = list(state[key].shape), list(shape)
            raise UserError(f"{wrong}: {key!r} has shape {found}, not {expected}; convert the public file again.")
    for key in state:
        if key not in shapes and not key.startswith(names.unused):
            raise UserError(f"{wrong}: {key!r} is unknown; convert a public file of a variant without it.")


def params_from_state(state: State, config: VitConfig, names: Names) -> Variables:
    """Build the parameters of :class:`VisionTransformer`, float32, from tensors that `infer_config` has checked.

    The positions are those of the file.
    """
    params: Variables = {
        "class_token": float32(state[names.class_token]).reshape(-1),
        "positions": float32(state[names.positions]).reshape(-1, config.width),
        # [width, 3, row, column] → [(row, column, colour), width], the order of `_patches`
        "patch": {"kernel": float32(state[f"{names.patch}weight"]).transpose(2, 3, 1, 0).reshape(-1, config.width)},
        "output_norm": _norm_params(state, names.output_norm),
    }
    if config.patch_bias:
        params["patch"]["bias"] = float32(state[f"{names.patch}bias"])
    if config.input_norm:
        params["input_norm"] = _norm_params(state, names.input_norm)
    if config.projection_dim is not None:
        projection = float32(state[names.projection])
        params["projection"] = {"kernel": projection if names.projection_in_first else projection.T}
    for i in range(config.layers):
        params[f"block_{i}"] = _block_params(state, names, names.block.format(i))
    return params


def _block_params(state: State, names: Names, prefix: str) -> Variables:
    weights, biases = (
        np.concatenate([float32(state[prefix + name + kind]) for name in names.qkv]) for kind in ("weight", "bias")
    )
    width = weights.shape[1]
    # Layer scales are folded into the linear maps before them.
    scales = [np.asarray(state[prefix + name], np.float64) for name in names.scales] or [np.float64(1.0)] * 2
    return {
        "norm1": _norm_params(state, prefix + names.norm1),
        "query": {"kernel": weights[:width].T, "bias": biases[:width]},
        "key_value": {"kernel": weights[width:].T, "bias": biases[width:]},
        "attention_out": _linear_params(state, prefix + names.attention_out, scales[0]),
        "norm2": _norm_params(state, prefix + names.norm2),
        "mlp_in": _linear_params(state, prefix + names.mlp_in),
        "mlp_out": _linear_params(state, prefix + names.mlp_out, scales[1]),
    }


def _linear_params(state: State, name: str, scale: np.ndarray | float = 1.0) -> Variables:
    return {"kernel": float32(state[f"{name}weight"].T * scale), "bias": float32(state[f"{name}bias"] * scale)}


def _norm_params(state: State, name: str) -> Variables:
    return {"scale": float32(state[f"{name}weight"]), "bias": float32(state[f"{name}bias"])}
