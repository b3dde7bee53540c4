"""The variable names of DeepMind's BigGAN on TF-Hub, for reading an .npz of ``{variable name: array}``.

``biggan-{128,256,512}`` and ``biggan-deep-{128,256,512}``, generators. Arrays have Flax's layouts. Names may begin with
``module/`` and end in ``:0``. Where there is a moving average, ``…/ema_b999900`` or ``…/ema_0.9999``, it is used.
BatchNorm statistics are divided by their ``accumulation_counter``; they may have a row for each of several truncations
(see `biggan.statistics`). The names are those that public converters use; these have none for BigGAN-deep's BatchNorm
statistics, for which BigGAN's names are expected.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from noisytwins_jax.interop.biggan.architecture import Structure, find_structure
from noisytwins_jax.interop.biggan.layers import DERIVED_ROLES, Naming, Tensor, get_collection

_AVERAGE = re.compile(r"/ema_[^/]+$")
_BLOCK = re.compile(r"Generator/GBlock(?:_(\d+))?/")
_STATISTICS = (("accumulated_mean", "mean"), ("accumulated_var", "var"), ("accumulation_counter", "counter"))


def normalize_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Strip what a module adds to variable names, and replace variables by their moving averages.

    Variables that sampling does not need are dropped: second singular vectors ``u1`` and the global step.
    """
    names = {name: name.removesuffix(":0").removeprefix("module/") for name in tensors}
    ordered = sorted(tensors, key=lambda name: bool(_AVERAGE.search(names[name])))  # averages overwrite
    averaged = {_AVERAGE.sub("", names[name]): tensors[name] for name in ordered}
    return {name: x for name, x in averaged.items() if name.split("/")[-1] not in ("u1", "global_step")}


def tensors(s: Structure) -> Iterator[Tensor]:
    """Yield the variables of a network, from the first layer to the image."""
    yield Tensor("linear/w", ("params", "shared", "weight"), "table", "weight")
    yield from _weights(f"Generator/{'GenZ' if s.deep else 'G_Z'}/G_linear", ("linear",), "first")
    for i, block in enumerate(s.blocks):
        key, path = f"Generator/GBlock{_suffix(i)}", f"blocks_{i}"
        for j, name in enumerate(s.norms):
            affine = f"{key}/{'BatchNorm' if s.deep else 'HyperBN'}{_suffix(j)}"
            for tf_name, flax_name in zip(
                ("scale", "offset") if s.deep else ("gamma", "beta"), ("gain", "bias"), strict=True
            ):
                yield from _weights(f"{affine}/{tf_name}", (path, name, flax_name), "condition")
            statistics = affine if s.deep else f"{key}/CrossReplicaBN{_suffix(j)}"
            yield from _tensors(statistics, (path, name), "conditional", _STATISTICS)
        for j, name in enumerate(s.convolutions(block)):
            yield from _weights(f"{key}/{'conv_sc' if name == 'conv_sc' else f'conv{j}'}", (path, name), "affine")
        if block.attention:
            path = (path, "attention")
            yield Tensor("Generator/attention/gamma", ("params", *path, "gamma"), "gamma", "gamma")
            for tf_name, flax_name in (("theta", "theta"), ("phi", "phi"), ("g", "g"), ("o_conv", "o")):
                yield from _weights(f"Generator/attention/{tf_name}", (*path, flax_name), "linear")
    gain_and_bias = (("scale", "gain"), ("offset", "bias")) if s.deep else (("gamma", "gain"), ("beta", "bias"))
    norm = "Generator/BatchNorm" if s.deep else "Generator/ScaledCrossReplicaBN"
    yield from _tensors(norm, ("output_bn",), "norm", gain_and_bias)
    yield from _tensors(norm if s.deep else f"{norm}bn", ("output_bn",), "norm", _STATISTICS)
    yield from _weights(f"Generator/{'conv_to_rgb' if s.deep else 'conv_2d'}", ("output_conv",), "affine")


def _build_naming(deep: bool) -> Naming:
    return Naming(
        "tfhub",
        "TF-Hub's BigGAN",
        tensors,
        torch_layout=False,
        channels_first=False,
        latents_first=True,
        wide_rgb=deep,
        grid=True,
        fields={"biggan.spectral_norm_epsilon": 1e-4, "biggan.batch_norm_epsilon": 1e-4},  # the paper, appendix C
    )


_NAMINGS = {deep: _build_naming(deep) for deep in (False, True)}


def matches(keys: set[str]) -> bool:
    """Return whether variables have these names."""
    return any(key.removeprefix("module/").startswith("Generator/GBlock/") for key in keys)


def recognise(tensors: Mapping[str, np.ndarray]) -> tuple[Naming, Structure]:
    """Return the naming and the structure that follows from the names of `normalize_names`; attention is as published."""
    deep = "Generator/GBlock/conv3/w" in tensors
    count = len({m[1] for m in map(_BLOCK.match, tensors) if m})
    attended = None if "Generator/attention/gamma" in tensors else set()
    return _NAMINGS[deep], find_structure("generator", deep, count, attended)


def _weights(key: str, path: tuple[str, ...], kind: str) -> Iterator[Tensor]:
    bias = (("b", "bias"),) if kind in ("affine", "first") else ()
    yield from _tensors(key, path, kind, (("w", "weight"), *bias, ("u0", "u")))


def _tensors(key: str, path: tuple[str, ...], kind: str, leaves: tuple[tuple[str, str], ...]) -> Iterator[Tensor]:
    for name, role in leaves:
        variable = path if role in DERIVED_ROLES else (get_collection(role), *path, role)
        yield Tensor(f"{key}/{name}", variable, kind, role)


def _suffix(i: int) -> str:
    return f"_{i}" if i else ""
