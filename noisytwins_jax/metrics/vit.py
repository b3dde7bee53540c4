"""The vision transformer behind CLIP's and DINOv2's features, and its weights by their names in PyTorch.

Pre-norm blocks of attention and MLP, with a class token whose last state is the feature. What tells the two networks
apart is in :class:`VitConfig`. Everything is float32 at precision "highest".

Sources: Dosovitskiy et al., ICLR 2021 (ViT); Radford et al., ICML 2021 (CLIP); Oquab et al., TMLR 2024 (DINOv2).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from noisytwins_jax.errors import UserError, did_you_mean
from noisytwins_jax.metrics.extractor import FeatureExtractor

Array = jax.Array
State = Mapping[str, np.ndarray]  # a file's tensors, by their names in PyTorch
Shapes = dict[str, tuple[int, ...]]
Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """A vision transformer.

    Attributes:
      image_size: height and width of its images, in pixels: a multiple of `patch_size`.
      patch_size: height and width of a patch, in pixels.
      width: of the tokens.
      layers: blocks.
      heads: of the attention; they divide `width`.
      mlp_width: of the MLPs' hidden layer.
      epsilon: of the layer normalisations.
      activation: ``quick_gelu`` is x·sigmoid(1.702 x), ``gelu`` the exact one.
      input_norm: whether the tokens are normalised before the first block.
      patch_bias: whether the patches' linear map has a bias.
      projection_dim: width of the linear map (without bias) at the end; None if there is none.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    epsilon: float
    activation: Literal["quick_gelu", "gelu"]
    input_norm: bool
    patch_bias: bool
    projection_dim: int | None = None

    @property
    def grid(self) -> int:
        """Patches on a side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return self.grid**2 + 1

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.width if self.projection_dim is None else self.projection_dim


_dense = functools.partial(nn.Dense, precision="highest")
# The fast variance, E[x²] - E[x]², loses digits where the mean is large.
_norm = functools.partial(nn.LayerNorm, use_fast_variance=False)


class VisionTransformer(nn.Module):
    """``__call__``: images float32 ``[n, image_size, image_size, 3]``, as the network wants them scaled → features
    float32 ``[n, feature_dim]``.
    """

    config: VitConfig

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """See the class."""
        c = self.config
        class_token = self.param("class_token", nn.initializers.normal(0.02), (c.width,))
        positions = self.param("positions", nn.initializers.normal(0.02), (c.tokens, c.width))
        patches = _dense(c.width, use_bias=c.patch_bias, name="patch")(_patches(images, c.patch_size))
        x = jnp.concatenate([jnp.broadcast_to(class_token, (len(images), 1, c.width)), patches], axis=1) + positions
        if c.input_norm:
            x = _norm(c.epsilon, name="input_norm")(x)
        for i in range(c.layers):
            x = Block(c, only_class_token=i == c.layers - 1, name=f"block_{i}")(x)
        x = _norm(c.epsilon, name="output_norm")(x[:, 0])
        return x if c.projection_dim is None else _dense(c.projection_dim, use_bias=False, name="projection")(x)


class Block(nn.Module):
    """Attention, then an MLP, each added to its input: tokens float32 ``[n, t, width]`` → the same shape.

    With `only_class_token` the result is ``[n, 1, width]``, the class token's: all that is read after the last block.
    """

    config: VitConfig
    only_class_token: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """See the class."""
        c = self.config
        every = _norm(c.epsilon, name="norm1")(x)
        kept = slice(1) if self.only_class_token else slice(None)
        query = _dense(c.width, name="query")(every[:, kept])
        key, value = jnp.split(_dense(2 * c.width, name="key_value")(every), 2, axis=-1)
        x = x[:, kept] + _dense(c.width, name="attention_out")(_attention(query, key, value, c.heads))
        hidden = _dense(c.mlp_width, name="mlp_in")(_norm(c.epsilon, name="norm2")(x))
        return x + _dense(c.width, name="mlp_out")(_ACTIVATIONS[c.activation](hidden))


_ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": lambda x: x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)),  # nn.gelu's erfc is slower on CPUs
}


def _patches(images: Array, size: int) -> Array:
    """``[n, H, W, 3]`` → ``[n, patches, 3 size²]``, each patch flattened as (row, column, colour)."""
    n, height, width, colours = images.shape
    patches = images.reshape(n, height // size, size, width // size, size, colours).swapaxes(2, 3)
    return patches.reshape(n, -1, size * size * colours)


def _attention(query: Array, key: Array, value: Array, heads: int) -> Array:
    """Softmax attention: queries ``[n, q, width]``, keys and values ``[n, t, width]`` → ``[n, q, width]``."""
    # [n, heads, tokens, width / heads]: on CPUs a batch of plain products takes 3/4 of the time of the einsum.
    query, key, value = (x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for x in (query, key, value))
    logits = jnp.matmul(query * query.shape[-1] ** -0.5, key.swapaxes(2, 3), precision="highest")
    mixed = jnp.matmul(nn.softmax(logits), value, precision="highest").swapaxes(1, 2)
    return mixed.reshape(*mixed.shape[:2], -1)


@dataclasses.dataclass(frozen=True)
class Names:
    """Where a public file keeps a vision transformer's tensors: names up to ``weight`` and ``bias``.

    Attributes:
      what: the network, as "CLIP image tower", for messages.
      class_token: whole name.
      positions: whole name.
      patch: the patches' linear map, a convolution.
      block: what precedes the names within a block, with ``{}`` for the block's number.
      norm1: the attention's layer normalisation.
      qkv: queries, keys and values: one packed linear map, or three.
      attention_out: the linear map that mixes the heads.
      norm2: the MLP's layer normalisation.
      mlp_in: the MLP's first linear map.
      mlp_out: the MLP's second linear map.
      output_norm: the last layer normalisation.
      input_norm: the layer normalisation before the blocks; empty if there is none.
      scales: factors on what attention and MLP add, whole names; none if empty.
      projection: the linear map at the end, whole name; empty if there is none.
      projection_in_first: whether that map is stored as ``[in, out]``, unlike PyTorch's linear maps.
      batch_axes: whether class token and positions are stored as ``[1, tokens, width]``.
      unused: beginnings of the names of tensors that may be there as well and are of no use here.
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
    """The tensors needed, with their shapes in PyTorch.

    Args:
      config: the network.
      names: the file's.
      stored_grid: patches on a side of the file's positions, if not those of `config`.
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
    """The layout of a file, told by the names of positions and patches.

    Raises:
      UserError: it is none of `layouts`.
    """
    for layout, names in layouts.items():
        if names.positions in state and f"{names.patch}weight" in state:
            return layout
    names = next(iter(layouts.values()))
    raise UserError(f"The weights hold no {names.what} ({names.positions!r} is missing): convert the public file.")


def infer_config(state: State, names: Names, heads: int | None, **fixed: Any) -> VitConfig:
    """The network that the shapes of a file's tensors tell, with images of the size that its positions are for.

    Args:
      state: the file's tensors, in the layout of `names`.
      names: the file's.
      heads: of the attention; None for heads of 64, as all public weights have them.
      fixed: fields of :class:`VitConfig` that shapes do not tell.

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
    """Patches on a side of a file's positions."""
    return max(1, round((np.size(state[names.positions]) / len(state[f"{names.patch}weight"]) - 1) ** 0.5))


def _check(state: State, shapes: Shapes, names: Names) -> None:
    """Names the first tensor that is missing, of another shape, or unknown."""
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
    """The parameters of :class:`VisionTransformer`, float32, from the tensors that `infer_config` has seen.

    The positions are those of the file.
    """
    params: Variables = {
        "class_token": _float32(state[names.class_token]).reshape(-1),
        "positions": _float32(state[names.positions]).reshape(-1, config.width),
        # [width, 3, row, column] → [(row, column, colour), width], the order of `_patches`
        "patch": {"kernel": _float32(state[f"{names.patch}weight"]).transpose(2, 3, 1, 0).reshape(-1, config.width)},
        "output_norm": _norm_params(state, names.output_norm),
    }
    if config.patch_bias:
        params["patch"]["bias"] = _float32(state[f"{names.patch}bias"])
    if config.input_norm:
        params["input_norm"] = _norm_params(state, names.input_norm)
    if config.projection_dim is not None:
        projection = _float32(state[names.projection])
        params["projection"] = {"kernel": projection if names.projection_in_first else projection.T}
    for i in range(config.layers):
        params[f"block_{i}"] = _block_params(state, names, names.block.format(i))
    return params


def _block_params(state: State, names: Names, prefix: str) -> Variables:
    weights, biases = (
        np.concatenate([_float32(state[prefix + name + kind]) for name in names.qkv]) for kind in ("weight", "bias")
    )
    width = weights.shape[1]
    # A factor on what a layer adds is a part of the linear map that makes it.
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
    return {"kernel": _float32(state[f"{name}weight"].T * scale), "bias": _float32(state[f"{name}bias"] * scale)}


def _norm_params(state: State, name: str) -> Variables:
    return {"scale": _float32(state[f"{name}weight"]), "bias": _float32(state[f"{name}bias"])}


def _float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to images before the network.

    Attributes:
      resize: (images uint8 ``[n, H, W, C]``, size) → ``[n, size, size, C]`` in the units of 0..255.
      words: the same in words, for ``evaluation.json``, with ``{size}``.
    """

    resize: Callable[[Array, int], Array]
    words: str


def vit_extractor(
    network: str,
    features: str,
    variables: Variables,
    config: VitConfig,
    sha256: str,
    preprocessing: str,
    preprocessings: Mapping[str, Preprocessing],
    mean: tuple[float, float, float],
    deviation: tuple[float, float, float],
    origin: str,
) -> FeatureExtractor:
    """A vision transformer as a feature extractor.

    Args:
      network: its short name.
      features: what its features are, for ``evaluation.json``.
      variables: of :class:`VisionTransformer`.
      config: the network.
      sha256: of the weights, hexadecimal.
      preprocessing: one of `preprocessings`.
      preprocessings: by name.
      mean: of red, green and blue in 0..1, which the images are standardised with.
      deviation: their standard deviation.
      origin: where the weights come from.

    Raises:
      UserError: an unknown preprocessing; on `apply`, images of another type or shape.
    """
    if preprocessing not in preprocessings:
        offered = did_you_mean(preprocessing, preprocessings)
        raise UserError(f"The network {network} has no preprocessing {preprocessing!r}; {offered}")
    chosen = preprocessings[preprocessing]
    model = VisionTransformer(config)

    @jax.jit
    def apply(variables: Variables, images: Array) -> tuple[Array, Array]:
        if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise UserError(
                f"The network {network} takes uint8 images of shape [n, H, W, C] with C = 1 or 3, got {images.dtype} "
                f"{list(images.shape)}: give it grey or RGB images."
            )
        resized = chosen.resize(images, config.image_size).astype(jnp.float32) / 255
        # A grey image becomes three equal colours here.
        standardised = (resized - jnp.asarray(mean, jnp.float32)) / jnp.asarray(deviation, jnp.float32)
        return model.apply(variables, standardised), jnp.zeros((len(images), 0), jnp.float32)

    description = {
        "architecture": f"{network}: vision transformer, {config.layers} layers of width {config.width}, "
        f"{config.heads} heads, patches of {config.patch_size} of {config.image_size} pixels; {features}",
        "preprocessing": f"{preprocessing}: {chosen.words.format(size=config.image_size)}",
        "origin": origin,
    }
    return FeatureExtractor(
        name=f"{network}-{preprocessing}-{sha256[:8]}",
        sha256=sha256,
        description=description,
        feature_dim=config.feature_dim,
        variables=variables,
        apply=apply,
    )
