"""The public networks whose features the metrics use, and recognition of a publisher's file by its tensors."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from noisytwins_jax.metrics.extractors import clip, dinov2, inception
from noisytwins_jax.metrics.extractors.state_dict import float32
from noisytwins_jax.metrics.extractors.vit_weights import Names
from noisytwins_jax.utils.download import RemoteFile
from noisytwins_jax.utils.errors import UserError

State = dict[str, np.ndarray]


class Network(NamedTuple):
    """Public network and its publisher's file.

    Attributes:
      what: name for messages.
      file: the publisher's.
    """

    what: str
    file: RemoteFile


_FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
_OPENAI = "https://openaipublic.azureedge.net/clip/models/"
_DINOV2 = "https://dl.fbaipublicfiles.com/dinov2/"


def _openai(what: str, file: str, size: int, sha256: str) -> Network:
    """Build a network of OpenAI, whose addresses contain the SHA-256."""
    terms = "MIT, https://github.com/openai/CLIP"
    return Network(what, RemoteFile(f"{_OPENAI}{sha256}/{file}", size, sha256, terms))


def _dinov2(letter: str, size: int, sha256: str) -> Network:
    name = f"dinov2_vit{letter}14"
    terms = "Apache-2.0, https://github.com/facebookresearch/dinov2"
    return Network(
        f"DINOv2 ViT-{letter.upper()}/14", RemoteFile(f"{_DINOV2}{name}/{name}_pretrain.pth", size, sha256, terms)
    )


# Where the publishers do not give the SHA-256 (DINOv2's), it is the one that independent repositories agree on.
NETWORKS = {
    "inception": Network(
        "FID's InceptionV3",
        RemoteFile(
            f"{_FID}pt_inception-2015-12-05-6726825d.pth",
            95_628_359,
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            "Apache-2.0, https://github.com/mseitzer/pytorch-fid",
        ),
    ),
    "clip-vit-b32": _openai(
        "CLIP ViT-B/32", "ViT-B-32.pt", 353_976_522, "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
    ),
    "clip-vit-l14": _openai(
        "CLIP ViT-L/14", "ViT-L-14.pt", 932_768_134, "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
    ),
    "clip-vit-l14-336": _openai(
        "CLIP ViT-L/14 for 336 pixels",
        "ViT-L-14-336px.pt",
        934_088_680,
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    ),
    "dinov2-vits14": _dinov2("s", 88_283_115, "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
    "dinov2-vitb14": _dinov2("b", 346_378_731, "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
    "dinov2-vitl14": _dinov2("l", 1_217_586_395, "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
}


def recognise(path: Path, tensors: Mapping[str, np.ndarray]) -> tuple[str, State]:
    """Recognise the network of a file's tensors, check all of them, and return its state dict in this project's layout.

    Args:
      path: of the file, for messages; a ``config.json`` beside it is read too.
      tensors: of the file.

    Returns:
      One of `NETWORKS`, and ``{key: float32 array}``.

    Raises:
      UserError: they are none of the networks, or not the whole of one; the message names the first difference.
    """
    if other := _other_network(tensors):
        raise UserError(
            f"{path} is {other}; give the publisher's file of one of: "
            f"{', '.join(network.file.name for network in NETWORKS.values())}."
        )
    if "Conv2d_1a_3x3.conv.weight" in tensors:
        shapes = inception.state_dict_shapes()
        optional = tuple(key for key in shapes if inception.is_optional(key))
        _check(path, "inception", tensors, {key: shapes[key] for key in shapes if key not in optional}, optional)
        return "inception", {key: float32(tensors[key]) for key in shapes if key not in optional}
    for family, canonical in ((clip, "openai"), (dinov2, "facebookresearch")):
        for layout, names in family.LAYOUTS.items():
            if f"{names.patch}weight" not in tensors:
                continue
            network = _transformer(path, tensors, family, layout)
            config = family.CONFIGS[network]
            _check(path, network, tensors, family.state_dict_shapes(config, layout), names.unused)
            if (family, layout) == (clip, "huggingface"):
                _check_activation(path)
            state = _rename(tensors, config.layers, names, family.LAYOUTS[canonical])
            return network, {key: float32(state[key]) for key in family.state_dict_shapes(config, canonical)}
    raise UserError(
        f"{path} is of none of the networks that measure here (its first tensor is {next(iter(tensors))!r}); give the "
        f"publisher's file of one of: {', '.join(network.file.name for network in NETWORKS.values())}."
    )


def _other_network(tensors: Mapping[str, np.ndarray]) -> str:
    """Describe tensors that resemble a network of `NETWORKS` but are another one's; empty otherwise."""
    prefixes = {key.split(".")[0] for key in tensors}
    has_clip_tower = "visual.class_embedding" in tensors
    if "Conv2d_1a_3x3.conv.weight" in tensors and tensors.get("fc.weight", np.empty(0)).shape[:1] == (1000,):
        return "torchvision's InceptionV3 of 1000 classes, not FID's with 1008"
    if "module" in prefixes and any(key.startswith("module.visual.") for key in tensors):
        return "a checkpoint of open_clip, not OpenAI's file"
    if any(key.startswith("visual.trunk.") for key in tensors):
        return "a network of open_clip with an image tower of timm, not OpenAI's CLIP"
    if "visual.conv1.weight" in tensors and not has_clip_tower:
        return "CLIP with a ResNet as image tower, not a vision transformer"
    if has_clip_tower and "input_resolution" not in tensors:
        # OpenAI's names and shapes, but networks of open_clip differ in the activation function.
        return "a file of open_clip, or one that was saved again and no longer tells that it is OpenAI's"
    if prefixes & {"text_model", "token_embedding"} and not prefixes & {"vision_model", "visual"}:
        return "the text tower of CLIP without the image tower"
    if any("register_tokens" in key for key in tensors):
        return "DINOv2 with register tokens, not the one without"
    if "patch_embed.proj.weight" in tensors and "mask_token" not in tensors:
        return "a vision transformer of timm, not the file of DINOv2's publisher"
    if "embeddings.cls_token" in tensors and "encoder.layer.0.layer_scale1.lambda1" not in tensors:
        return "a vision transformer of transformers that is not DINOv2"
    return ""


def _transformer(path: Path, tensors: Mapping[str, np.ndarray], family: Any, layout: Any) -> str:
    """Find the network of CLIP or DINOv2 by the shapes of patch embedding and positions.

    Raises:
      UserError: it is none of them.
    """
    names: Names = family.LAYOUTS[layout]
    keys = (f"{names.patch}weight", names.positions)
    found = tuple(tensors[key].shape if key in tensors else None for key in keys)
    for network, config in family.CONFIGS.items():
        shapes = family.state_dict_shapes(config, layout)
        if found == tuple(shapes[key] for key in keys):
            return network
    described = ", ".join(
        f"{key} is missing" if shape is None else f"{key} is {_format_shape(shape)}"
        for key, shape in zip(keys, found, strict=True)
    )
    offered = ", ".join(NETWORKS[network].file.name for network in family.CONFIGS)
    raise UserError(
        f"{path} is a {names.what} of a size that is not offered here ({described}); give one of: {offered}."
    )


def _check(
    path: Path,
    network: str,
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    unused: tuple[str, ...],
) -> None:
    """Check the tensors of a file against those of a network.

    Args:
      path: of the file, for messages.
      network: one of `NETWORKS`.
      tensors: of the file.
      shapes: of all tensors that it must have.
      unused: prefixes of others that it may have.

    Raises:
      UserError: they differ; the message names the first difference.
    """
    what = NETWORKS[network].what
    way_out = f"give its publisher's file {NETWORKS[network].file.name}"
    for key, shape in shapes.items():
        if key not in tensors:
            raise UserError(f"{path} is not {what}: {key} is missing; {way_out}.")
        if tensors[key].shape != shape:
            raise UserError(
                f"{path} is not {what}: {key} is {_format_shape(tensors[key].shape)}, not {_format_shape(shape)}; {way_out}."
            )
        dtype = tensors[key].dtype
        if dtype.kind != "f" and dtype.name != "bfloat16":
            raise UserError(f"{path} is not {what}: {key} is of type {dtype}, not of floating point; {way_out}.")
    for key in tensors:
        if key not in shapes and not key.startswith(unused):
            raise UserError(f"{path} is not {what}: {key} is no part of it; {way_out}.")


def _format_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _check_activation(path: Path) -> None:
    """Refuse networks that others trained with CLIP's shapes, if the publisher's configuration is there to tell.

    In Hugging Face's layout only the activation tells: OpenAI's networks use the quick GELU, most others the exact one.
    """
    try:
        settings = json.loads((path.parent / "config.json").read_text())
        activation = settings.get("vision_config", settings).get("hidden_act", "quick_gelu")
    except (OSError, ValueError, AttributeError):
        return
    if activation != "quick_gelu":
        raise UserError(
            f"{path} is not OpenAI's CLIP: the config.json beside it has the activation function {activation}; give the "
            "file of a repository of openai."
        )


def _rename(tensors: Mapping[str, np.ndarray], layers: int, old: Names, new: Names) -> State:
    """Rename a transformer's tensors to another layout, in which queries, keys and values are packed."""
    if old is new:
        return dict(tensors)
    state = {
        f"{after}{kind}": tensors[f"{before}{kind}"]
        for before, after in _name_pairs(layers, old, new)
        for kind in ("", "weight", "bias")
        if f"{before}{kind}" in tensors
    }
    if old.projection_in_first != new.projection_in_first:
        state[new.projection] = state[new.projection].T
    for i in range(layers):
        for kind in ("weight", "bias"):
            parts = [tensors[f"{old.block.format(i)}{name}{kind}"] for name in old.qkv]
            state[f"{new.block.format(i)}{new.qkv[0]}{kind}"] = np.concatenate(parts)
    return state


def _name_pairs(layers: int, old: Names, new: Names) -> Iterator[tuple[str, str]]:
    for field in ("class_token", "positions", "patch", "input_norm", "output_norm", "projection"):
        if getattr(old, field):
            yield getattr(old, field), getattr(new, field)
    within = [
        (getattr(old, field), getattr(new, field)) for field in ("norm1", "attention_out", "norm2", "mlp_in", "mlp_out")
    ]
    for i in range(layers):
        for before, after in [*within, *zip(old.scales, new.scales, strict=True)]:
            yield old.block.format(i) + before, new.block.format(i) + after
