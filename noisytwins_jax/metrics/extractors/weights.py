"""Weights of the public networks whose features the metrics use: publishers' files, converted once and found by name.

Files are recognised by their tensors, all of which are checked. Converted files have one naming for each network, so that
equal weights of different publishers have the same SHA-256 and give the same features; see `metrics.weights`.
"""

import contextlib
import hashlib
import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from noisytwins_jax.metrics.extractors.public_networks import NETWORKS, State, recognise
from noisytwins_jax.metrics.extractors.weights_file import weights_sha256
from noisytwins_jax.utils.download import download, locked
from noisytwins_jax.utils.errors import UserError, did_you_mean, first_line
from noisytwins_jax.utils.torch_file import read_torch_file

DEFAULT_DIRECTORY = "~/.cache/noisytwins_jax/weights"
DIRECTORY_VARIABLE = "NOISYTWINS_WEIGHTS"
VERSION = "1"  # of the converted files
_RECORD = ("network", "origin", "sha256", "source_file", "source_sha256", "version")
_COMMAND = "python -m noisytwins_jax.metrics.weights "


def check(networks: Iterable[str], directory: str | None = None) -> None:
    """Check that the converted weights of networks all exist, without reading their content.

    Args:
      networks: each one of `NETWORKS`.
      directory: as for `find_network`.

    Raises:
      UserError: there is no such network, a file may not be read, or some are missing: the message lists all of them, and
        the command that gets them.
    """
    if missing := find_missing(networks, directory):
        files = ", ".join(NETWORKS[network].what for network in missing)
        raise UserError(
            f"{_directory(directory)} lacks the weights of {files}; add --config.evaluation.download=True, or get them: "
            f"{_command('get ' + ' '.join(missing), directory)}"
        )


def find_missing(networks: Iterable[str], directory: str | None = None) -> list[str]:
    """Return those of `NETWORKS` whose converted weights do not exist; arguments and errors are those of `check`."""
    return [network for network in dict.fromkeys(networks) if not _exists(_path(network, directory))]


def get(networks: Iterable[str], directory: str | None = None) -> Iterator[str]:
    """Download and convert the weights of networks unless they exist; the publishers' files are removed then.

    Args:
      networks: each one of `NETWORKS`.
      directory: as for `find_network`.

    Yields:
      For each network, a message that says what the file is and what was written.

    Raises:
      UserError: a file cannot be downloaded, is another one than the publisher's, or cannot be written. Networks before it
        remain.
    """
    paths = {network: _path(network, directory) for network in networks}
    for network, path in paths.items():
        if _existing_sha256(network, directory):
            yield f"{NETWORKS[network].what} is in {path} already."
            continue
        with locked(path.parent):
            if not _existing_sha256(network, directory):  # another process may have been first
                by_hand = f"run: {_command(f'convert --from={NETWORKS[network].file.name}', directory)}"
                file = download(NETWORKS[network].file, path.parent / "downloads", by_hand)
                message = convert(file, directory)
                file.unlink()
                yield message


def find_network(network: str, directory: str | None = None) -> Path:
    """Return the path of the converted weights of a network, without reading their content.

    Args:
      network: one of `NETWORKS`.
      directory: of converted weights; by default that of ``$NOISYTWINS_WEIGHTS``, or `DEFAULT_DIRECTORY`.

    Raises:
      UserError: there is no such network, or its file may not be read or does not exist; the message has the command
        that gets it.
    """
    path = _path(network, directory)
    if not _exists(path):
        raise UserError(
            f"The weights of {NETWORKS[network].what} are not in {path.parent}; get them: "
            f"{_command(f'get {network}', directory)}"
        )
    return path


def load_network(network: str, directory: str | None = None) -> tuple[State, dict[str, str]]:
    """Load the converted weights of a network.

    Args:
      network: one of `NETWORKS`.
      directory: as for `find_network`.

    Returns:
      ``{key: float32 array}`` in PyTorch's names and layouts, possibly read-only; and its origin:
      ``{"network", "origin": in words, "sha256": of the weights, "source_file", "source_sha256": of the whole file,
      "version": of the format}``.

    Raises:
      UserError: the file is missing, may not be read, or is damaged.
    """
    path = find_network(network, directory)
    problem = f"{path} is damaged or not one of this version; get it again: "
    problem += _command(f"get {network}", directory)
    try:
        info = _record(path)
        state = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError):
        raise UserError(problem) from None
    if (info["network"], info["version"]) != (network, VERSION) or weights_sha256({network: state}) != info["sha256"]:
        raise UserError(problem)
    return state, info


def convert(source: str | Path, directory: str | None = None, force: bool = False) -> str:
    """Convert a publisher's file.

    Args:
      source: the file.
      directory: to write to, as for `find_network`.
      force: whether to replace other weights of the same network.

    Returns:
      A message that says what the file is and what was written.

    Raises:
      UserError: the file cannot be read, is of no known network or not the whole of one; or the target cannot be
        written, or has other weights and `force` is not set.
    """
    source = Path(source).expanduser()
    tensors = read_tensors(source)
    network, state = recognise(source, tensors)
    with source.open("rb") as file:
        source_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    what, public = NETWORKS[network]
    if not public.sha256 or _is_safetensors(source):
        verdict = "a file whose SHA-256 is not known here"
    elif source_sha256 == public.sha256:
        verdict = f"the known public file {public.name}"
    else:
        verdict = f"not the known public file {public.name}, whose SHA-256 begins with {public.sha256[:8]}"
    summary = f"{source.name}: {what}, SHA-256 {source_sha256}, {verdict}."
    info = {
        "network": network,
        "origin": f"{source.name}, SHA-256 {source_sha256}, {verdict}",
        "sha256": weights_sha256({network: state}),
        "source_file": source.name,
        "source_sha256": source_sha256,
        "version": VERSION,
    }
    target = _path(network, directory)
    existing = _existing_sha256(network, directory)
    if existing == info["sha256"]:
        return f"{summary}\nThe same weights are in {target} already."
    if existing and not force:
        raise UserError(
            f"{target} holds other weights of {what} (SHA-256 {existing[:8]}, those of {source} {info['sha256'][:8]}); give "
            "another --to, or --force to replace them."
        )
    _write(target, state, info)
    return f"{summary}\nWritten to {target}; SHA-256 of the weights {info['sha256']}."


def read_tensors(path: Path) -> State:
    """Read the tensors of a PyTorch or safetensors file; those of the state dict if that is an entry among others.

    Raises:
      UserError: it is no such file, or contains no tensors by name.
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
    tensors = {k: v for k, v in tree.items() if isinstance(v, np.ndarray)} if isinstance(tree, dict) else {}
    if not tensors:
        raise UserError(f"{path} holds no tensors by name; give the file of a network's state dict.")
    return tensors


def _path(network: str, directory: str | None) -> Path:
    if network not in NETWORKS:
        raise UserError(f"There is no network {network!r}; {did_you_mean(network, NETWORKS)}")
    return _directory(directory) / f"{network}.safetensors"


def _directory(directory: str | None) -> Path:
    return Path(directory or os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY).expanduser()


def _command(what: str, directory: str | None) -> str:
    return f"{_COMMAND}{what}{f' --to={shlex.quote(str(directory))}' if directory else ''}"


def _exists(path: Path) -> bool:
    """Return whether a file exists.

    Raises:
      UserError: it exists, or may exist, and cannot be read.
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
    """Read the metadata of a converted file.

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
    """Return whether the content begins like safetensors: the length of a header, and the brace that opens it."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False  # the other reader reports it


def _existing_sha256(network: str, directory: str | None) -> str:
    """Return the SHA-256 of the weights converted before; empty if they are missing or damaged.

    Raises:
      UserError: the file cannot be read.
    """
    if not _exists(_path(network, directory)):
        return ""
    try:
        return load_network(network, directory)[1]["sha256"]
    except UserError:
        return ""


def _write(target: Path, state: State, info: dict[str, str]) -> None:
    """Write the file atomically."""
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
    """Return a line for each network: whether its weights exist, and where they come from."""
    lines = [f"In {_directory(directory)}:"]
    for network, (what, file) in NETWORKS.items():
        path = _path(network, directory)
        try:
            state = _record(path)["origin"] if _exists(path) else f"missing; its publisher's file: {file.address}"
        except UserError:
            state = "cannot be read; have its owner make it readable to you"
        except (safetensors.SafetensorError, OSError, KeyError):
            state = f"damaged; get it again from {file.address}"
        lines.append(f"  {network:<17} {what:<29} {state}")
    return "\n".join(lines)
