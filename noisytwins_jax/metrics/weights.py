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
import os
import shlex
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors
import safetensors.numpy

from noisytwins_jax.metrics.extractors.public_networks import NETWORKS, Network, State, recognise
from noisytwins_jax.metrics.extractors.weights_file import weights_sha256
from noisytwins_jax.utils.errors import UserError, did_you_mean, first_line
from noisytwins_jax.utils.platform import expect_no_tpu, has_tpu
from noisytwins_jax.utils.torch_file import read_torch_file

__all__ = [
    "DEFAULT_DIRECTORY",
    "DIRECTORY_VARIABLE",
    "NETWORKS",
    "VERSION",
    "Network",
    "State",
    "check",
    "convert",
    "describe_networks",
    "find_network",
    "load_network",
    "main",
    "read_tensors",
    "recognise",
]

DEFAULT_DIRECTORY = "~/.cache/noisytwins_jax/weights"
DIRECTORY_VARIABLE = "NOISYTWINS_WEIGHTS"
VERSION = "1"  # of the files written here
_RECORD = ("network", "origin", "sha256", "source_file", "source_sha256", "version")
_COMMAND = "python -m noisytwins_jax.metrics.weights convert --from="


def check(networks: Iterable[str], directory: str | None = None) -> None:
    """Looks whether the converted weights of networks are all there; their content is not looked at.

    Args:
      networks: each one of `NETWORKS`.
      directory: as for `find_network`.

    Raises:
      UserError: there is no such network, a file may not be read, or some are missing: all of them, with the addresses
        of the public files they are made from, and the command that converts one.
    """
    missing = [network for network in dict.fromkeys(networks) if not _is_there(_path(network, directory))]
    if missing:
        files = ", ".join(f"{NETWORKS[network].what} ({NETWORKS[network].address})" for network in missing)
        raise UserError(
            f"{_directory(directory)} lacks the weights of {files}; get the publisher's file of each and run: "
            f"{_command('FILE', directory)}"
        )


def find_network(network: str, directory: str | None = None) -> Path:
    """Where the converted weights of a network are; their content is not looked at.

    Args:
      network: one of `NETWORKS`.
      directory: of converted weights; by default that of ``$NOISYTWINS_WEIGHTS``, or `DEFAULT_DIRECTORY`.

    Raises:
      UserError: there is no such network, its file may not be read, or is not there; the address of the public file it
        is made from is said.
    """
    path = _path(network, directory)
    if not _is_there(path):
        what, address, _ = NETWORKS[network]
        raise UserError(
            f"The weights of {what} are not in {path.parent}; get its publisher's file {address} and run: "
            f"{_command(NETWORKS[network].public_file, directory)}"
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
      UserError: the file is missing, may not be read, or is damaged.
    """
    path = find_network(network, directory)
    problem = f"{path} is damaged or not one of this version; convert it again: "
    problem += _command(NETWORKS[network].public_file, directory)
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
    what, _, public_sha256 = NETWORKS[network]
    public_file = NETWORKS[network].public_file
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


def _path(network: str, directory: str | None) -> Path:
    if network not in NETWORKS:
        raise UserError(f"There is no network {network!r}; {did_you_mean(network, NETWORKS)}")
    return _directory(directory) / f"{network}.safetensors"


def _directory(directory: str | None) -> Path:
    return Path(directory or os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY).expanduser()


def _command(file: str, directory: str | None) -> str:
    return f"{_COMMAND}{file}{f' --to={shlex.quote(str(directory))}' if directory else ''}"


def _is_there(path: Path) -> bool:
    """Whether there is a file.

    Raises:
      UserError: there is, or may be, and it cannot be read.
    """
    try:
        with path.open("rb"):
            return True
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); have its owner make it readable to you, or choose another "
            "directory of converted weights."
        ) from None


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
    """SHA-256 of the weights that are there already; empty if they are missing or damaged.

    Raises:
      UserError: there is a file that cannot be read.
    """
    if not _is_there(_path(network, directory)):
        return ""
    try:
        return load_network(network, directory)[1]["sha256"]
    except UserError:
        return ""


def _write(target: Path, state: State, info: dict[str, str]) -> None:
    """Writes the whole file or nothing."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)  # of any new file there; safetensors makes its own 0600
        safetensors.numpy.save_file(state, temporary, info)
        temporary.chmod(mode)
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
    for network, (what, address, _) in NETWORKS.items():
        path = _path(network, directory)
        try:
            state = _record(path)["origin"] if _is_there(path) else f"missing; its publisher's file: {address}"
        except UserError:
            state = "cannot be read; have its owner make it readable to you"
        except (safetensors.SafetensorError, OSError, KeyError):
            state = f"damaged; convert it again from {address}"
        lines.append(f"  {network:<17} {what:<29} {state}")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
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
            "--to",
            metavar="DIR",
            help=f"the directory of converted files (default: ${DIRECTORY_VARIABLE}, or {DEFAULT_DIRECTORY})",
        )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command; mistakes end with one sentence and status 2."""
    if not has_tpu():
        expect_no_tpu()
    try:
        arguments = build_parser().parse_args(argv)
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
