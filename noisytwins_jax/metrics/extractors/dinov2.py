"""DINOv2's vision transformers: the features behind FD_DINOv2.

The features are the class token after the last layer normalisation.

The public weights (without register tokens) hold positions for 518 pixels. For other sizes they are interpolated when
the variables are built, as the publisher of the file does: with PyTorch's bicubic filter, at a scale that is off by a
tenth of a patch in facebookresearch's code (the model's ``interpolate_offset``) and exact in Hugging Face's.

Sources: Oquab et al., TMLR 2024 (DINOv2); Stein et al., NeurIPS 2023 (FD_DINOv2, dgm-eval); Karras et al., CVPR 2024
(EDM2).
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.metrics.extractors.resize import resize, resize_matrix, resize_uint8
from noisytwins_jax.metrics.extractors.state_dict import Shapes, State
from noisytwins_jax.metrics.extractors.vit import Preprocessing, Variables, VitConfig, vit_extractor
from noisytwins_jax.metrics.extractors.vit_weights import (
    Names,
    find_layout,
    infer_config,
    params_from_state,
    state_shapes,
    stored_grid,
)
from noisytwins_jax.utils.errors import UserError

Layout = Literal["facebookresearch", "huggingface"]

_MEAN = (0.485, 0.456, 0.406)  # ImageNet's
_DEVIATION = (0.229, 0.224, 0.225)
_FIXED: dict[str, Any] = {"epsilon": 1e-6, "activation": "gelu", "input_norm": False, "patch_bias": True}
_PUBLIC_GRID = 37  # 518 pixels in patches of 14
_OFFSETS = {"facebookresearch": 0.1, "huggingface": 0.0}  # added to the new number of patches, in the scale

CONFIGS = {  # the public networks, by the names of this project
    "dinov2-vits14": VitConfig(224, 14, 384, 12, 6, 1536, **_FIXED),
    "dinov2-vitb14": VitConfig(224, 14, 768, 12, 12, 3072, **_FIXED),
    "dinov2-vitl14": VitConfig(224, 14, 1024, 24, 16, 4096, **_FIXED),
}

LAYOUTS: dict[Layout, Names] = {
    "facebookresearch": Names(
        what="DINOv2 network",
        class_token="cls_token",
        positions="pos_embed",
        patch="patch_embed.proj.",
        block="blocks.{}.",
        norm1="norm1.",
        qkv=("attn.qkv.",),
        attention_out="attn.proj.",
        scales=("ls1.gamma", "ls2.gamma"),
        norm2="norm2.",
        mlp_in="mlp.fc1.",
        mlp_out="mlp.fc2.",
        output_norm="norm.",
        batch_axes=True,
        unused=("mask_token",),
    ),
    "huggingface": Names(
        what="DINOv2 network",
        class_token="embeddings.cls_token",
        positions="embeddings.position_embeddings",
        patch="embeddings.patch_embeddings.projection.",
        block="encoder.layer.{}.",
        norm1="norm1.",
        qkv=("attention.attention.query.", "attention.attention.key.", "attention.attention.value."),
        attention_out="attention.output.dense.",
        scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
        norm2="norm2.",
        mlp_in="mlp.fc1.",
        mlp_out="mlp.fc2.",
        output_norm="layernorm.",
        batch_axes=True,
        unused=("embeddings.mask_token",),
    ),
}

PREPROCESSINGS = {
    "dgm-eval": Preprocessing(
        lambda images, size: resize_uint8(images, size, size, "pillow_bicubic"),
        "Pillow's antialiased bicubic filter on 8 bits, straight to {size}x{size}",
    ),
    "edm2": Preprocessing(
        lambda images, size: resize(images.astype(jnp.float32), size, size, "pillow_bicubic"),
        "antialiased bicubic filter (a = -0.5), straight to {size}x{size}, neither rounded nor clipped",
    ),
}


def state_dict_shapes(config: VitConfig, layout: Layout, grid: int = _PUBLIC_GRID) -> Shapes:
    """Return the tensors that `from_state_dict` needs, with their shapes in PyTorch.

    Tensors whose names begin with one of ``LAYOUTS[layout].unused`` may exist as well.

    Args:
      config: the network, such as one of `CONFIGS`.
      layout: the naming scheme: ``facebookresearch`` or ``huggingface``.
      grid: patches per side of the file's positions.
    """
    return state_shapes(config, LAYOUTS[layout], grid)


def from_state_dict(state: State, heads: int | None = None, image_size: int = 224) -> tuple[Variables, VitConfig]:
    """Build the variables of a network from the tensors of a public file, and infer its configuration.

    Args:
      state: tensors by their names in facebookresearch's or Hugging Face's files, of any floating type.
      heads: of the attention; None for a head dimension of 64, as in all public weights.
      image_size: of the network's input, in pixels: a multiple of the patch size.

    Returns:
      Variables of :class:`noisytwins_jax.metrics.extractors.vit.VisionTransformer` on the host, float32, with positions
      for `image_size`, and the configuration that the shapes imply.

    Raises:
      UserError: the file holds no such network; names the first tensor that is missing, of another shape or unknown.
    """
    layout = find_layout(state, LAYOUTS)
    names = LAYOUTS[layout]
    config = infer_config(state, names, heads, **_FIXED)
    if image_size < config.patch_size or image_size % config.patch_size:
        raise UserError(
            f"DINOv2 cannot see images of {image_size} pixels: choose a multiple of its patches of {config.patch_size}."
        )
    params = params_from_state(state, config, names)
    config = dataclasses.replace(config, image_size=image_size)
    params["positions"] = _interpolate(params["positions"], stored_grid(state, names), config.grid, _OFFSETS[layout])
    return {"params": params}, config


def dinov2_extractor(
    variables: Variables, config: VitConfig, sha256: str, preprocessing: str = "dgm-eval", origin: str = ""
) -> FeatureExtractor:
    """Build a feature extractor from DINOv2: the class token after the last layer normalisation, and no logits.

    Args:
      variables: from `from_state_dict`.
      config: likewise.
      sha256: of the weights, hexadecimal.
      preprocessing: applied to images before the colours are standardised with ImageNet's mean and deviation.

        * ``dgm-eval``: Pillow's antialiased bicubic filter on 8 bits, directly to the square.
        * ``edm2``: the same filter in floating point, neither rounded nor clipped.
      origin: of the weights, for the description.

    Raises:
      UserError: an unknown preprocessing; on `apply`, images of another type or shape.
    """
    return vit_extractor(
        variables,
        config,
        sha256,
        preprocessing,
        origin,
        configs=CONFIGS,
        other=f"dinov2-vit-{config.width}x{config.layers}-p{config.patch_size}-{config.image_size}px",
        features="features: class token after the last layer normalisation",
        preprocessings=PREPROCESSINGS,
        mean=_MEAN,
        deviation=_DEVIATION,
    )


def _interpolate(positions: np.ndarray, size_in: int, size_out: int, offset: float) -> np.ndarray:
    """Resize positions float32 ``[1 + size_in², d]``, the class token's first, to a grid of `size_out` patches per side."""
    if size_in == size_out:
        return positions
    matrix = resize_matrix(size_in, size_out, "torch_bicubic", size_in / (size_out + offset))
    grid = positions[1:].astype(np.float64).reshape(size_in, size_in, -1)
    grid = np.einsum("oh,pw,hwd->opd", matrix, matrix, grid, optimize=True)
    return np.concatenate([positions[:1], grid.reshape(size_out**2, -1)]).astype(np.float32)
