"""The vision transformer behind CLIP's and DINOv2's features.

Pre-norm blocks of attention and MLP, with a class token whose last state is the feature. :class:`VitConfig` holds the
differences between the two networks. Everything is float32 at precision "highest". `vit_weights` reads the public weights.

Sources: Dosovitskiy et al., ICLR 2021 (ViT); Radford et al., ICML 2021 (CLIP); Oquab et al., TMLR 2024 (DINOv2).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.utils.errors import UserError, did_you_mean

Array = jax.Array
Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """Configuration of a vision transformer.

    Attributes:
      image_size: height and width of its input, in pixels: a multiple of `patch_size`.
      patch_size: height and width of a patch, in pixels.
      width: of the tokens.
      layers: number of blocks.
      heads: attention heads, a divisor of `width`.
      mlp_width: of the MLPs' hidden layer.
      epsilon: of the layer normalisations.
      activation: ``quick_gelu`` is x·sigmoid(1.702 x), ``gelu`` the exact one.
      input_norm: whether the tokens are normalised before the first block.
      patch_bias: whether the patches' linear map has a bias.
      projection_dim: output width of the final linear map, which has no bias; None if there is none.
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
        """Return the patches per side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Return the number of tokens: patches and the class token."""
        return self.grid**2 + 1

    @property
    def feature_dim(self) -> int:
        """Return the width of the features."""
        return self.width if self.projection_dim is None else self.projection_dim


_dense = functools.partial(nn.Dense, precision="highest")
# The fast variance, E[x²] - E[x]², loses digits where the mean is large.
_norm = functools.partial(nn.LayerNorm, use_fast_variance=False)


class VisionTransformer(nn.Module):
    """Vision transformer whose output is the class token, projected if the configuration says so."""

    config: VitConfig

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Map images float32 ``[n, image_size, image_size, 3]``, scaled for the network, to features ``[n, feature_dim]``."""
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
    """Attention, then an MLP, each with a residual connection; with `only_class_token`, computed for that token alone."""

    config: VitConfig
    only_class_token: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map tokens float32 ``[n, t, width]`` to the same shape, or ``[n, 1, width]`` with `only_class_token`."""
        c = self.config
        normed = _norm(c.epsilon, name="norm1")(x)
        queries = slice(1) if self.only_class_token else slice(None)
        query = _dense(c.width, name="query")(normed[:, queries])
        key, value = jnp.split(_dense(2 * c.width, name="key_value")(normed), 2, axis=-1)
        x = x[:, queries] + _dense(c.width, name="attention_out")(_attention(query, key, value, c.heads))
        hidden = _dense(c.mlp_width, name="mlp_in")(_norm(c.epsilon, name="norm2")(x))
        return x + _dense(c.width, name="mlp_out")(_ACTIVATIONS[c.activation](hidden))


_ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": lambda x: x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)),  # nn.gelu's erfc is slower on CPUs
}


def _patches(images: Array, size: int) -> Array:
    """Cut ``[n, H, W, 3]`` into ``[n, patches, 3 size²]``, each patch flattened as (row, column, colour)."""
    n, height, width, colours = images.shape
    patches = images.reshape(n, height // size, size, width // size, size, colours).swapaxes(2, 3)
    return patches.reshape(n, -1, size * size * colours)


def _attention(query: Array, key: Array, value: Array, heads: int) -> Array:
    """Apply softmax attention: queries ``[n, q, width]``, keys and values ``[n, t, width]`` → ``[n, q, width]``."""
    # [n, heads, tokens, width / heads]: on CPUs batched matrix products take 3/4 of the time of the einsum.
    query, key, value = (x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for x in (query, key, value))
    logits = jnp.matmul(query * query.shape[-1] ** -0.5, key.swapaxes(2, 3), precision="highest")
    mixed = jnp.matmul(nn.softmax(logits), value, precision="highest").swapaxes(1, 2)
    return mixed.reshape(*mixed.shape[:2], -1)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resizing of images before the network.

    Attributes:
      resize: (images uint8 ``[n, H, W, C]``, size) → ``[n, size, size, C]`` in the units of 0..255.
      description: in words, for ``evaluation.json``, with ``{size}``.
    """

    resize: Callable[[Array, int], Array]
    description: str


def vit_extractor(
    variables: Variables,
    config: VitConfig,
    sha256: str,
    preprocessing: str,
    origin: str,
    *,
    configs: Mapping[str, VitConfig],
    other: str,
    features: str,
    preprocessings: Mapping[str, Preprocessing],
    mean: tuple[float, float, float],
    deviation: tuple[float, float, float],
) -> FeatureExtractor:
    """Build a feature extractor from a vision transformer.

    Args:
      variables: of :class:`VisionTransformer`.
      config: the network.
      sha256: of the weights, hexadecimal.
      preprocessing: one of `preprocessings`.
      origin: of the weights.
      configs: the public networks, by their short names.
      other: short name if the network is none of them.
      features: description of the features, for ``evaluation.json``.
      preprocessings: by name.
      mean: of red, green and blue in 0..1, with which images are standardised.
      deviation: their standard deviation.

    Raises:
      UserError: an unknown preprocessing; on `apply`, images of another type or shape.
    """
    network = next((name for name, public in configs.items() if public == config), other)
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
        "preprocessing": f"{preprocessing}: {chosen.description.format(size=config.image_size)}",
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
