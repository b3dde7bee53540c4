"""The public networks that measure images: their publishers' files, converted once and found again by name.

    python -m noisytwins_jax.metrics.weights convert --from=FILE [--to=DIR] [--force]
    python -m noisytwins_jax.metrics.weights list [--to=DIR]

PyTorch's files (also TorchScript) and .safetensors are read, without PyTorch. Which network a file holds is told from its
tensors, and all that belong to it are checked. What is written is ``<network>.safetensors``: float32, PyTorch's names and
layouts, one naming for each network (OpenAI's for CLIP, facebookresearch's for DINOv2), so that equal weights of different
publishers have the same SHA-256 and give the same features.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import safetensors
import safetensors.numpy

from noisytwins_jax.errors import UserError, did_you_mean, first_line
from noisytwins_jax.interop.torch_file import read_torch_file
from noisytwins_jax.metrics import clip, dinov2, inception
from noisytwins_jax.metrics.vit import Names
from noisytwins_jax.metrics.weights_file import weights_sha256

State = dict[str, np.ndarray]

DEFAULT_DIRECTORY = "~/.cache/noisytwins_jax/weights"
DIRECTORY_VARIABLE = "NOISYTWINS_WEIGHTS"
VERSION = "1"  # of the files written here
_RECORD = ("network", "origin", "sha256", "source_file", "source_sha256", "version")
_COMMAND = "python -m noisytwins_jax.metrics.weights convert --from="


class Network(NamedTuple):
    """A network and its publisher's file.

    Attributes:
      what: it is, in words.
      public_file: the publisher's name of the file.
      public_sha256: how that file's SHA-256 begins; empty if it is not known here.
    """

    what: str
    public_file: str
    public_sha256: str = ""


# FID's file has the beginning of its SHA-256 in its name, OpenAI's have it whole in their addresses.
NETWORKS = {
    "inception": Network("FID's InceptionV3", "pt_inception-2015-12-05-6726825d.pth", "6726825d"),
    "clip-vit-b32": Network(
        "CLIP ViT-B/32", "ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
    ),
    "clip-vit-l14": Network(
        "CLIP ViT-L/14", "ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
    ),
    "clip-vit-l14-336": Network("CLIP ViT-L/14 for 336 pixels", "ViT-L-14-336px.pt"),
    "dinov2-vits14": Network("DINOv2 ViT-S/14", "dinov2_vits14_pretrain.pth"),
    "dinov2-vitb14": Network("DINOv2 ViT-B/14", "dinov2_vitb14_pretrain.pth"),
    "dinov2-vitl14": Network("DINOv2 ViT-L/14", "dinov2_vitl14_pretrain.pth"),
}


def find_network(network: str, directory: str | None = None) -> Path:
    """Where the converted weights of a network are; their content is not looked at.

    Args:
      network: one of `NETWORKS`.
      directory: of converted weights; by default that of ``$NOISYTWINS_WEIGHTS``, or `DEFAULT_DIRECTORY`.

    Raises:
      UserError: there is no such network, or its weights are not there; which public file they are made from is said.
    """
    if network not in NETWORKS:
        raise UserError(f"There is no network {network!r}; {did_you_mean(network, NETWORKS)}")
    path = _path(network, directory)
    if not path.is_file():
        raise UserError(
            f"The weights of {NETWORKS[network].what} are not in {path.parent}; get its publisher's file "
            f"{NETWORKS[network].public_file} and run: {_command(network, directory)}"
        )
    return path


def load_network(network: str, directory: str | None = None) -> tuple[State, dict[str, str]]:
    """The converted weights of a network.

    Args:
      network: one of `NETWORKS`.
      directory: as for `find_network`.

    Returns:
      ``{key: float32 array}``, names and layouts as PyTorch's, read-only or not; and where it comes from:
      ``{"network", "origin": in words, "sha256": of the weights, "source_file", "source_sha256": of the whole file,
      "version": of the format}``.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = find_network(network, directory)
    problem = f"{path} is damaged or not one of this version; convert it again: {_command(network, directory)}"
    try:
        info = _record(path)
        state = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError):
        raise UserError(problem) from None
    if (info["network"], info["version"]) != (network, VERSION) or weights_sha256({network: state}) != info["sha256"]:
        raise UserError(problem)
    return state, info


def convert(source: str | Path, directory: str | None = None, force: bool = False) -> str:
    """Converts a publisher's file.

    Args:
      source: the file.
      directory: to write to, as for `find_network`.
      force: whether other weights of the same network that are there already are replaced.

    Returns:
      What the file is and what was written, for people.

    Raises:
      UserError: the file cannot be read, is of no known network or not the whole of one; or what it gives cannot be
        written, or is kept from being overwritten.
    """
    source = Path(source).expanduser()
    tensors = read_tensors(source)
    network, state = recognise(source, tensors)
    with source.open("rb") as file:
        source_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    what, public_file, public_sha256 = NETWORKS[network]
    if not public_sha256 or _is_safetensors(source):
        verdict = "a file whose SHA-256 is not known here"
    elif source_sha256.startswith(public_sha256):
        verdict = f"the known public file {public_file}"
    else:
        verdict = f"not the known public file {public_file}, whose SHA-256 begins with {public_sha256[:8]}"
    found = f"{source.name}: {what}, SHA-256 {source_sha256}, {verdict}."
    info = {
        "network": network,
        "origin": f"{source.name}, SHA-256 {source_sha256}, {verdict}",
        "sha256": weights_sha256({network: state}),
        "source_file": source.name,
        "source_sha256": source_sha256,
        "version": VERSION,
    }
    target = _path(network, directory)
    there = _weights_there(network, directory)
    if there == info["sha256"]:
        return f"{found}\nThe same weights are in {target} already."
    if there and not force:
        raise UserError(
            f"{target} holds other weights of {what} (SHA-256 {there[:8]}, those of {source} {info['sha256'][:8]}); give "
            "another --to, or --force to replace them."
        )
    _write(target, state, info)
    return f"{found}\nWritten to {target}; SHA-256 of the weights {info['sha256']}."


def read_tensors(path: Path) -> State:
    """The tensors of a file of PyTorch or of safetensors; those of the state dict, where it is an entry among others.

    Raises:
      UserError: it is no such file, or holds no tensors by name.
    """
    tree: Any
    if _is_safetensors(path):
        try:
            if _is_converted(path):
                raise UserError(f"{path} is converted already; copy it to the directory of converted weights as it is.")
            tree = safetensors.numpy.load_file(path)
        except UserError:
            raise
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged or incomplete ({first_line(error)}); download it again.") from None
    else:
        tree = read_torch_file(path)
    for name in ("state_dict", "model"):
        if isinstance(tree, dict) and isinstance(tree.get(name), dict):
            tree = tree[name]
    found = {k: v for k, v in tree.items() if isinstance(v, np.ndarray)} if isinstance(tree, dict) else {}
    if not found:
        raise UserError(f"{path} holds no tensors by name; give the file of a network's state dict.")
    return found


def recognise(path: Path, tensors: Mapping[str, np.ndarray]) -> tuple[str, State]:
    """Which network tensors are, and its state dict as it is written here.

    Args:
      path: of the file, for messages; a ``config.json`` beside it is looked at.
      tensors: of the file.

    Returns:
      One of `NETWORKS`, and ``{key: float32 array}``.

    Raises:
      UserError: they are none of the networks, or not the whole of one; the first difference is named.
    """
    if other := _other_network(tensors):
        raise UserError(
            f"{path} is {other}; give the publisher's file of one of: "
            f"{', '.join(network.public_file for network in NETWORKS.values())}."
        )
    if "Conv2d_1a_3x3.conv.weight" in tensors:
        shapes = inception.state_dict_shapes()
        optional = tuple(key for key in shapes if inception.is_optional(key))
        _check(path, "inception", tensors, {key: shapes[key] for key in shapes if key not in optional}, optional)
        return "inception", _float32({key: tensors[key] for key in shapes if key not in optional})
    for family, canonical in ((clip, "openai"), (dinov2, "facebookresearch")):
        for layout, names in family.LAYOUTS.items():
            if f"{names.patch}weight" not in tensors:
                continue
            network = _transformer(path, tensors, family, layout)
            config = family.CONFIGS[network]
            _check(path, network, tensors, family.state_dict_shapes(config, layout), names.unused)
            if (family, layout) == (clip, "huggingface"):
                _check_activation(path)
            state = _renamed(tensors, config.layers, names, family.LAYOUTS[canonical])
            return network, _float32({key: state[key] for key in family.state_dict_shapes(config, canonical)})
    raise UserError(
        f"{path} is of none of the networks that measure here (its first tensor is {next(iter(tensors))!r}); give the "
        f"publisher's file of one of: {', '.join(network.public_file for network in NETWORKS.values())}."
    )


def _other_network(tensors: Mapping[str, np.ndarray]) -> str:
    """What the tensors are if they resemble a network of `NETWORKS` and are not; empty otherwise."""
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
        # The tensors have OpenAI's names and shapes, but networks of open_clip differ in the activation function.
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
    """Which network of CLIP or DINOv2, told by patches and positions.

    Raises:
      UserError: none of them.
    """
    names: Names = family.LAYOUTS[layout]
    keys = (f"{names.patch}weight", names.positions)
    networks = [network for network in family.CONFIGS if network in NETWORKS]
    found = tuple(tensors[key].shape if key in tensors else None for key in keys)
    for network in networks:
        shapes = family.state_dict_shapes(family.CONFIGS[network], layout)
        if found == tuple(shapes[key] for key in keys):
            return network
    described = ", ".join(
        f"{key} is missing" if shape is None else f"{key} is {_words(shape)}"
        for key, shape in zip(keys, found, strict=True)
    )
    offered = ", ".join(NETWORKS[network].public_file for network in networks)
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
    """Compares with the tensors that a network has.

    Args:
      path: of the file, for messages.
      network: one of `NETWORKS`.
      tensors: of the file.
      shapes: of all tensors that it must have.
      unused: how the names of others begin that it may have.

    Raises:
      UserError: names the first difference.
    """
    what, public_file, _ = NETWORKS[network]
    way_out = f"give its publisher's file {public_file}"
    for key, shape in shapes.items():
        if key not in tensors:
            raise UserError(f"{path} is not {what}: {key} is missing; {way_out}.")
        if tensors[key].shape != shape:
            raise UserError(
                f"{path} is not {what}: {key} is {_words(tensors[key].shape)}, not {_words(shape)}; {way_out}."
            )
        dtype = tensors[key].dtype
        if dtype.kind != "f" and dtype.name != "bfloat16":
            raise UserError(f"{path} is not {what}: {key} is of type {dtype}, not of floating point; {way_out}.")
    for key in tensors:
        if key not in shapes and not key.startswith(unused):
            raise UserError(f"{path} is not {what}: {key} is no part of it; {way_out}.")


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _check_activation(path: Path) -> None:
    """Refuses networks that others trained with CLIP's shapes, where the publisher's configuration tells.

    In Hugging Face's naming nothing else does: OpenAI's networks have the quick GELU, most others the exact one.
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


def _renamed(tensors: Mapping[str, np.ndarray], layers: int, old: Names, new: Names) -> State:
    """A transformer's tensors by the names of another layout, in which queries, keys and values are packed."""
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


def _float32(state: Mapping[str, np.ndarray]) -> State:
    return {key: np.ascontiguousarray(value, np.float32) for key, value in state.items()}


def _path(network: str, directory: str | None) -> Path:
    return _directory(directory) / f"{network}.safetensors"


def _directory(directory: str | None) -> Path:
    return Path(directory or os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY).expanduser()


def _command(network: str, directory: str | None) -> str:
    return f"{_COMMAND}{NETWORKS[network].public_file}{f' --to={directory}' if directory else ''}"


def _record(path: Path) -> dict[str, str]:
    """What a converted file says about itself.

    Raises:
      SafetensorError, OSError, KeyError: it is damaged, or of another kind.
    """
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
    return {key: metadata[key] for key in _RECORD}


def _is_converted(path: Path) -> bool:
    with safetensors.safe_open(path, framework="np") as file:
        return set(_RECORD) <= set(file.metadata() or {})


def _is_safetensors(path: Path) -> bool:
    """Whether the content begins like it: the length of a header, and the brace that opens it."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False  # for the other reader to say


def _weights_there(network: str, directory: str | None) -> str:
    """SHA-256 of the weights that are there already; empty if they are missing or damaged."""
    try:
        return load_network(network, directory)[1]["sha256"]
    except UserError:
        return ""


def _write(target: Path, state: State, info: dict[str, str]) -> None:
    """Writes the whole file or nothing."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(state, temporary, info)
        os.replace(temporary, target)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{target} cannot be written ({first_line(error)}); give a --to that you can write to."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def describe_networks(directory: str | None = None) -> str:
    """A line for each network: whether its weights are there, and where they come from."""
    lines = [f"In {_directory(directory)}:"]
    for network, (what, public_file, _) in NETWORKS.items():
        path = _path(network, directory)
        try:
            state = _record(path)["origin"] if path.is_file() else f"missing; convert {public_file}"
        except (safetensors.SafetensorError, OSError, KeyError):
            state = f"damaged; convert {public_file} again"
        lines.append(f"  {network:<17} {what:<29} {state}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command; mistakes end with one sentence and status 2."""
    try:
        parser = _Parser(
            prog="python -m noisytwins_jax.metrics.weights",
            description=__doc__.partition("\n\n")[2].partition("\n\n")[2],
        )
        commands = parser.add_subparsers(dest="command", required=True, metavar="convert|list")
        one = commands.add_parser("convert", help="a publisher's file into one that evaluations find")
        one.add_argument("--from", dest="source", required=True, metavar="FILE", help="the publisher's file")
        one.add_argument("--force", action="store_true", help="replace other weights of the same network")
        every = commands.add_parser("list", help="the networks, and which are there")
        for command in (one, every):
            command.add_argument(
                "--to", metavar="DIR", help=f"of converted files (${DIRECTORY_VARIABLE}, or {DEFAULT_DIRECTORY})"
            )
        arguments = parser.parse_args(argv)
        if arguments.command == "list":
            print(describe_networks(arguments.to))
        else:
            print(convert(arguments.source, arguments.to, arguments.force))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[0].upper()}{message[1:]}; see --help.")


if __name__ == "__main__":
    main()
