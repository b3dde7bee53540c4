"""The key names of BigGAN in PyTorch-StudioGAN (big_resnet, big_resnet_deep_legacy), which counts attention as a block."""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from noisytwins_jax.interop.biggan.architecture import Structure, find_structure
from noisytwins_jax.interop.biggan.layers import Layer, Naming, Tensor, TorchLeaves
from noisytwins_jax.utils.errors import UserError

_RUNNING = (("running_mean", "mean"), ("running_var", "var"), ("num_batches_tracked", "batches"))
_LEAVES = TorchLeaves(
    normalized=(("bias", "bias"), ("weight_orig", "weight"), ("weight_u", "u"), ("weight_v", "v")),
    norm=(("weight", "gain"), ("bias", "bias"), *_RUNNING),
    gain_and_bias=("gain", "bias"),
    statistics=tuple((f"bn.{name}", role) for name, role in _RUNNING),
    statistics_first=True,
)
_CONVOLUTIONS = {"conv_sc": "conv2d0"} | {f"conv{i}": f"conv2d{i}" for i in (1, 2, 3, 4)}
_ATTENTION = {"theta": "conv1x1_theta", "phi": "conv1x1_phi", "g": "conv1x1_g", "o": "conv1x1_attn"}
_OUTER = re.compile(r"blocks\.(\d+)\.0\.(sigma$)?")


def layers(s: Structure) -> Iterator[Layer]:
    """Yield the layers of a network, in the order of the state dict."""
    if s.is_generator:
        first = [Layer("shared", ("shared",), "table"), Layer("linear0", ("linear",), "first")]
        yield from first if s.deep else reversed(first)
    elif s.deep:
        yield Layer("input_conv", ("input_conv",), "affine")
    outer = 0
    for i, block in enumerate(s.blocks):
        key, path = f"blocks.{outer}.0", f"blocks_{i}"
        for name in s.norms:
            yield Layer(f"{key}.{name}", (path, name), "conditional")
        convolutions = s.convolutions(block)
        for name in convolutions if s.deep else sorted(convolutions, key=_CONVOLUTIONS.get):
            yield Layer(f"{key}.{_CONVOLUTIONS[name]}", (path, name), "affine")
        outer += 1
        if block.attention:
            key, path = f"blocks.{outer}.0", (path, "attention")
            yield Layer(f"{key}.sigma", (*path, "gamma"), "gamma")
            for name, key_name in _ATTENTION.items():
                yield Layer(f"{key}.{key_name}", (*path, name), "linear")
            outer += 1
    if s.is_generator:
        yield Layer("bn4", ("output_bn",), "norm")
        yield Layer("conv2d5", ("output_conv",), "affine")
    else:
        yield Layer("linear1", ("linear",), "affine")
        yield Layer("embedding", ("embed",), "embed")


def tensors(s: Structure) -> Iterator[Tensor]:
    """Yield the tensors of a network, in the order of the state dict."""
    for layer in layers(s):
        yield from _LEAVES.tensors(layer, s)


NAMING = Naming(
    "studiogan",
    "StudioGAN",
    tensors,
    gamma_shape=(1,),
    fields={"biggan.spectral_norm_epsilon": 1e-6, "biggan.batch_norm_epsilon": 1e-4},  # fixed in its code
)


def matches(keys: set[str]) -> bool:
    """Return whether the keys of a state dict are these names."""
    return any(re.match(r"blocks\.0\.0\.conv2d1\.weight(_orig)?$", key) for key in keys)


def recognise(tensors: Mapping[str, np.ndarray]) -> tuple[Naming, Structure]:
    """Return the naming and the structure that follows from the names.

    Raises:
      UserError: it is StudioGAN's own variant of BigGAN-deep, or has a number of blocks that no BigGAN has.
    """
    keys = set(tensors)
    role = "generator" if any(key.startswith("conv2d5.") for key in keys) else "discriminator"
    deep = any(key.startswith("blocks.0.0.conv2d4.") for key in keys)
    matched = [m for m in map(_OUTER.match, keys) if m]
    attention = sorted({int(m[1]) for m in matched if m[2]})
    count = len({m[1] for m in matched}) - len(attention)
    attended = {outer - i - 1 for i, outer in enumerate(attention)}  # indices without the attention blocks before
    if deep and _has_full_shortcuts(tensors, role):
        raise UserError(
            "The checkpoint is StudioGAN's big_resnet_deep_studiogan, whose blocks add a 1×1 convolution of all their "
            "inputs where BigGAN-deep's add the inputs themselves; give a network of big_resnet_deep_legacy or big_resnet."
        )
    normalized = any(key.endswith(".weight_orig") for key in keys)
    return NAMING, find_structure(role, deep, count, attended, spectral_norm=normalized)


def _has_full_shortcuts(tensors: Mapping[str, np.ndarray], role: str) -> bool:
    """Return whether shortcut convolutions have all of a block's outputs; BigGAN-deep has them only in D, for new channels."""
    for name in ("bias", "weight", "weight_orig"):
        for key, shortcut in tensors.items():
            if key.endswith(f".conv2d0.{name}"):
                last = tensors.get(key.replace("conv2d0", "conv2d4"))
                if role == "generator" or (last is not None and last.shape[:1] == shortcut.shape[:1]):
                    return True
    return False
