"""The key names of Hugging Face's BigGAN-deep (pytorch-pretrained-BigGAN): generators converted from TF-Hub's.

``biggan-deep-{128,256,512}-pytorch_model.bin``. Attention counts as a layer. BatchNorm has statistics for 51 truncations
(see `biggan.statistics`). The last convolution has `width` outputs, the first three of which are the image.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from noisytwins_jax.interop.biggan.architecture import Structure, find_structure
from noisytwins_jax.interop.biggan.layers import Layer, Naming, Tensor, TorchLeaves

_STATISTICS = (("running_means", "mean"), ("running_vars", "var"))
_LEAVES = TorchLeaves(
    normalized=(("bias", "bias"), ("weight_orig", "weight"), ("weight_u", "u"), ("weight_v", "v")),
    norm=(("weight", "gain"), ("bias", "bias"), *_STATISTICS),
    gain_and_bias=("scale", "offset"),
    statistics=_STATISTICS,
    statistics_first=True,
)
_ATTENTION = {name: f"snconv1x1_{name}" for name in ("theta", "phi", "g")} | {"o": "snconv1x1_o_conv"}
_LAYER = re.compile(r"generator\.layers\.(\d+)\.(gamma$)?")


def layers(s: Structure) -> Iterator[Layer]:
    """Yield the layers of a network, in the order of the state dict."""
    yield Layer("generator.gen_z", ("linear",), "first")
    outer = 0
    for i, block in enumerate(s.blocks):
        key, path = f"generator.layers.{outer}", f"blocks_{i}"
        for j, (norm, convolution) in enumerate(zip(s.norms, s.convolutions(block), strict=True)):
            yield Layer(f"{key}.bn_{j}", (path, norm), "conditional")
            yield Layer(f"{key}.conv_{j}", (path, convolution), "affine")
        outer += 1
        if block.attention:
            key, path = f"generator.layers.{outer}", (path, "attention")
            yield Layer(f"{key}.gamma", (*path, "gamma"), "gamma")
            for name, key_name in _ATTENTION.items():
                yield Layer(f"{key}.{key_name}", (*path, name), "linear")
            outer += 1
    yield Layer("generator.bn", ("output_bn",), "norm")
    yield Layer("generator.conv_to_rgb", ("output_conv",), "affine")


def tensors(s: Structure) -> Iterator[Tensor]:
    """Yield the tensors of a network, in the order of the state dict."""
    # A dense layer of one-hot labels, [features, classes], without spectral normalisation.
    yield Tensor("embeddings.weight", ("params", "shared", "weight"), "linear", "weight")
    for layer in layers(s):
        yield from _LEAVES.tensors(layer, s)


NAMING = Naming(
    "huggingface",
    "Hugging Face's BigGAN-deep",
    tensors,
    channels_first=False,
    latents_first=True,
    wide_rgb=True,
    gamma_shape=(1,),
    grid=True,
    fields={"biggan.spectral_norm_epsilon": 1e-4, "biggan.batch_norm_epsilon": 1e-4},  # of all published files
)


def matches(keys: set[str]) -> bool:
    """Return whether the keys of a state dict are these names."""
    return any(key.startswith("generator.layers.0.conv_0.") for key in keys)


def recognise(tensors: Mapping[str, np.ndarray]) -> tuple[Naming, Structure]:
    """Return the naming and the structure that follows from the names."""
    matched = [m for m in map(_LAYER.match, tensors) if m]
    attention = sorted({int(m[1]) for m in matched if m[2]})
    count = len({m[1] for m in matched}) - len(attention)
    attended = {outer - i - 1 for i, outer in enumerate(attention)}
    return NAMING, find_structure("generator", True, count, attended)
