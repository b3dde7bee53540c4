"""The key names of BigGAN-PyTorch (github.com/ajbrock/BigGAN-PyTorch): ``G.pth``, ``G_ema.pth`` and ``D.pth``.

Attention follows its block in the same inner list, and so do the two blocks of a resolution of BigGAN-deep's
discriminator. BatchNorm stores its statistics in one of three variants: ``plain`` (PyTorch's own batch normalisation),
``mybn`` (sums over `accumulation_counter` batches, or running means while that is 0) and ``cross_replica``.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from noisytwins_jax.interop.biggan.architecture import Structure, find_structure
from noisytwins_jax.interop.biggan.layers import Layer, Naming, Tensor, TorchLeaves

_STATISTICS = {
    "plain": (("stored_mean", "mean"), ("stored_var", "var")),
    "mybn": (("bn.stored_mean", "mean"), ("bn.stored_var", "var"), ("bn.accumulation_counter", "counter")),
    "cross_replica": (("bn.running_mean", "mean"), ("bn.running_var", "var"), ("bn.num_batches_tracked", "batches")),
}
_INNER = re.compile(r"blocks\.(\d+)\.(\d+)\.")


def layers(s: Structure) -> Iterator[Layer]:
    """Yield the layers of a network, in the order of the state dict."""
    if s.is_generator:
        if not s.class_tables:
            yield Layer("shared", ("shared",), "table")
        yield Layer("linear", ("linear",), "first")
    elif s.deep:
        yield Layer("input_conv", ("input_conv",), "affine")
    for i, block in enumerate(s.blocks):
        outer, inner = divmod(i, 2) if _in_pairs(s) else (i, 0)
        key, path = f"blocks.{outer}.{inner}", f"blocks_{i}"
        for name in s.convolutions(block):
            yield Layer(f"{key}.{name}", (path, name), "affine")
        for name in s.norms:
            yield Layer(f"{key}.{name}", (path, name), "conditional")
        if block.attention:
            key, path = f"blocks.{outer}.{inner + 1}", (path, "attention")
            yield Layer(f"{key}.gamma", (*path, "gamma"), "gamma")
            for name in ("theta", "phi", "g", "o"):
                yield Layer(f"{key}.{name}", (*path, name), "linear")
    if s.is_generator:
        yield Layer("output_layer.0", ("output_bn",), "norm")
        yield Layer("output_layer.2", ("output_conv",), "affine")
    else:
        yield Layer("linear", ("linear",), "affine")
        yield Layer("embed", ("embed",), "embed")


def _build_naming(variant: str) -> Naming:
    statistics = _STATISTICS[variant]
    leaves = TorchLeaves(
        normalized=(("weight", "weight"), ("bias", "bias"), ("u0", "u"), ("sv0", "sigma")),
        norm=(("gain", "gain"), ("bias", "bias"), *statistics),
        gain_and_bias=("gain", "bias"),
        statistics=statistics,
        statistics_first=variant == "plain",
    )

    def tensors(s: Structure) -> Iterator[Tensor]:
        for layer in layers(s):
            yield from leaves.tensors(layer, s)

    return Naming(
        "bigganpytorch",
        "BigGAN-PyTorch",
        tensors,
        vector_shape=(1, -1),
        # From its training scripts and published networks; the last BatchNorm's is fixed.
        fields={
            "biggan.spectral_norm_epsilon": 1e-6,
            "biggan.batch_norm_epsilon": 1e-5,
            "biggan.output_batch_norm_epsilon": 1e-5,
        },
    )


NAMINGS = {variant: _build_naming(variant) for variant in _STATISTICS}


def matches(keys: set[str]) -> bool:
    """Return whether the keys of a state dict are these names."""
    return "blocks.0.0.conv1.weight" in keys


def recognise(tensors: Mapping[str, np.ndarray]) -> tuple[Naming, Structure]:
    """Return the naming's variant and the structure that follows from the names."""
    keys = set(tensors)
    role = "generator" if any(key.startswith("output_layer.") for key in keys) else "discriminator"
    deep = "blocks.0.0.conv4.weight" in keys
    depth = 2 if deep and role == "discriminator" else 1
    inner = {(int(m[1]), int(m[2])) for m in map(_INNER.match, keys) if m}
    blocks = {depth * i + j for i, j in inner if j < depth}
    options = {
        "spectral_norm": any(key.endswith(".u0") for key in keys),
        "class_tables": role == "generator" and "shared.weight" not in keys,
    }
    attended = {depth * (i + 1) - 1 for i, j in inner if j >= depth}
    variant = "mybn" if any(key.endswith(".bn.stored_mean") for key in keys) else "plain"
    variant = "cross_replica" if any(key.endswith(".bn.running_mean") for key in keys) else variant
    return NAMINGS[variant], find_structure(role, deep, len(blocks), attended, **options)


def _in_pairs(s: Structure) -> bool:
    return s.deep and not s.is_generator
