"""CLIP's image tower (vision transformers): the features behind FID_CLIP, iFID_CLIP and CMMD.

The features are the projected embeddings of the images and are *not* L2-normalised; CMMD normalises them itself.

Sources: Radford et al., ICML 2021 (CLIP); Kynkäänniemi et al., ICLR 2023 (CLIP features in the Fréchet distance);
Jayasumana et al., CVPR 2024 (CMMD, with ViT-L/14 at 336 pixels).
"""

from typing import Any, Literal

import jax.numpy as jnp

from noisytwins_jax.metrics.extractors.base import FeatureExtractor
from noisytwins_jax.metrics.extractors.resize import resize, short_side_crop_uint8
from noisytwins_jax.metrics.extractors.state_dict import Shapes, State
from noisytwins_jax.metrics.extractors.vit import Preprocessing, Variables, VitConfig, vit_extractor
from noisytwins_jax.metrics.extractors.vit_weights import (
    Names,
    find_layout,
    infer_config,
    params_from_state,
    state_shapes,
)

Layout = Literal["openai", "huggingface"]

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
# OpenAI's weights use the quick GELU; networks that others trained with the exact one have the same shapes.
_FIXED: dict[str, Any] = {"epsilon": 1e-5, "activation": "quick_gelu", "input_norm": True, "patch_bias": False}

CONFIGS = {  # supported networks of OpenAI, by the names of this project
    "clip-vit-b32": VitConfig(224, 32, 768, 12, 12, 3072, projection_dim=512, **_FIXED),
    "clip-vit-l14": VitConfig(224, 14, 1024, 24, 16, 4096, projection_dim=768, **_FIXED),
    "clip-vit-l14-336": VitConfig(336, 14, 1024, 24, 16, 4096, projection_dim=768, **_FIXED),
}

LAYOUTS: dict[Layout, Names] = {
    "openai": Names(
        what="CLIP image tower",
        class_token="visual.class_embedding",
        positions="visual.positional_embedding",
        patch="visual.conv1.",
        input_norm="visual.ln_pre.",
        block="visual.transformer.resblocks.{}.",
        norm1="ln_1.",
        qkv=("attn.in_proj_",),
        attention_out="attn.out_proj.",
        norm2="ln_2.",
        mlp_in="mlp.c_fc.",
        mlp_out="mlp.c_proj.",
        output_norm="visual.ln_post.",
        projection="visual.proj",
        projection_in_first=True,
        unused=(
            *("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection"),
            *("logit_scale", "input_resolution", "context_length", "vocab_size"),
        ),
    ),
    "huggingface": Names(
        what="CLIP image tower",
        class_token="vision_model.embeddings.class_embedding",
        positions="vision_model.embeddings.position_embedding.weight",
        patch="vision_model.embeddings.patch_embedding.",
        input_norm="vision_model.pre_layrnorm.",  # as the files spell it
        block="vision_model.encoder.layers.{}.",
        norm1="layer_norm1.",
        qkv=("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
        attention_out="self_attn.out_proj.",
        norm2="layer_norm2.",
        mlp_in="mlp.fc1.",
        mlp_out="mlp.fc2.",
        output_norm="vision_model.post_layernorm.",
        projection="visual_projection.weight",
        unused=("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids"),
    ),
}

PREPROCESSINGS = {
    "noisytwins": Preprocessing(
        lambda images, size: resize(images.astype(jnp.float32), size, size, "torch_bicubic").clip(0, 255),
        "PyTorch's bicubic filter without antialiasing, straight to {size}x{size}, clipped to 0..255, not rounded",
    ),
    "openai": Preprocessing(
        lambda images, size: short_side_crop_uint8(images, size, "pillow_bicubic"),
        "Pillow's antialiased bicubic filter on 8 bits, shorter side to {size}, central square",
    ),
    "fidelity": Preprocessing(
        lambda images, size: resize(images.astype(jnp.float32), size, size, "tf1_bilinear"),
        "TensorFlow 1's bilinear filter, straight to {size}x{size}, not rounded",
    ),
}


def state_dict_shapes(config: VitConfig, layout: Layout) -> Shapes:
    """Return the tensors that `from_state_dict` needs, with their shapes in PyTorch.

    Tensors whose names begin with one of ``LAYOUTS[layout].unused`` may exist as well.

    Args:
      config: the network, such as one of `CONFIGS`.
      layout: the naming scheme: ``openai`` or ``huggingface``.
    """
    return state_shapes(config, LAYOUTS[layout])


def from_state_dict(state: State, heads: int | None = None) -> tuple[Variables, VitConfig]:
    """Build the variables of a network from the tensors of a public file, and infer its configuration.

    Args:
      state: tensors by their names in OpenAI's or Hugging Face's files, of any floating type, with or without the text
        tower.
      heads: of the attention; None for a head dimension of 64, as in all public weights.

    Returns:
      Variables of :class:`noisytwins_jax.metrics.extractors.vit.VisionTransformer` on the host, float32, and the
      configuration that the shapes imply.

    Raises:
      UserError: the file holds no such network; names the first tensor that is missing, of another shape or unknown.
    """
    names = LAYOUTS[find_layout(state, LAYOUTS)]
    config = infer_config(state, names, heads, **_FIXED)
    return {"params": params_from_state(state, config, names)}, config


def clip_extractor(
    variables: Variables, config: VitConfig, sha256: str, preprocessing: str = "noisytwins", origin: str = ""
) -> FeatureExtractor:
    """Build a feature extractor from CLIP's image tower: projected embeddings, not normalised, and no logits.

    Args:
      variables: from `from_state_dict`.
      config: likewise.
      sha256: of the weights, hexadecimal.
      preprocessing: applied to images before the colours are standardised. Fréchet distances with different ones cannot
        be compared.

        * ``noisytwins``: PyTorch's bicubic filter, not antialiased, directly to the square; clipped to 0..255.
        * ``openai``: Pillow's antialiased bicubic filter on 8 bits, shorter side, central square; also clean-fid's.
        * ``fidelity``: TensorFlow 1's bilinear filter, directly to the square, as in torch-fidelity.
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
        other=f"clip-vit-{config.width}x{config.layers}-p{config.patch_size}",
        features="features: projected embedding, not normalised",
        preprocessings=PREPROCESSINGS,
        mean=_MEAN,
        deviation=_DEVIATION,
    )
