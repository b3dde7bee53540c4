"""Files of public checkpoints, put together: which of them is the generator, its average, the discriminator, Adam's state.

What a file is, is told by its content. Only whether a generator is the moving average must be in its name ("ema"), as the
two have the same tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from noisytwins_jax.interop.biggan import conversion as biggan
from noisytwins_jax.interop.biggan.statistics import StatisticsGrid
from noisytwins_jax.interop.network import ConvertedNetwork
from noisytwins_jax.interop.stylegan2 import conversion as stylegan2
from noisytwins_jax.interop.stylegan2.architecture import naming_of
from noisytwins_jax.interop.stylegan2.nvidia_pickle import NUMBERS, read_nvidia_pickle
from noisytwins_jax.utils.errors import UserError, first_line
from noisytwins_jax.utils.torch_file import read_torch_file

GENERATOR, EMA, DISCRIMINATOR = "generator", "ema", "discriminator"
EPSILONS = {  # in the configuration that BigGAN-PyTorch saves; its output BatchNorm's is fixed, the last is ours
    "BN_eps": "biggan.batch_norm_epsilon",
    "SN_eps": "biggan.spectral_norm_epsilon",
    "output_BN_eps": "biggan.output_batch_norm_epsilon",
}
_TITLES = {GENERATOR: "a generator", EMA: "the moving average of a generator", DISCRIMINATOR: "a discriminator"}
_SUFFIXES = (".pth", ".pt", ".bin", ".pkl", ".npz", ".safetensors")


@dataclass
class PublicCheckpoint:
    """What some files hold together.

    Attributes:
      naming: ``"studiogan"``, ``"nvidia"``, ``"bigganpytorch"``, ``"huggingface"`` or ``"tfhub"``.
      networks: by part, ``"generator"``, ``"ema"`` and ``"discriminator"``; those that are there.
      optimizers: states of PyTorch's Adam, by part.
      fields: of the configuration, which no tensor tells.
      step: generator updates done; None where the files do not say.
      ada_p: probability of ADA's augmentations, None where there is none.
      lecam: LeCam's averages of logits of real and of generated images, None where there are none.
      statistics: moments for several truncations, of Hugging Face's and TF-Hub's generators.
    """

    naming: str = ""
    networks: dict[str, ConvertedNetwork] = field(default_factory=dict)
    optimizers: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    ada_p: float | None = None
    lecam: tuple[float, float] | None = None
    statistics: StatisticsGrid | None = None

    def add_network(self, tensors: Mapping[str, np.ndarray], path: Path, averaged: bool) -> str:
        """Takes a state dict; returns its part.

        Raises:
          UserError: it is of no known network, or one of this kind is there already, or in another naming.
        """
        naming, network = read_network(tensors, path)
        if self.naming and naming and naming != self.naming:
            raise UserError(
                f"{path} has the names of {naming}, and another of the files those of {self.naming}; give files of one checkpoint."
            )
        averaged = averaged or naming in ("huggingface", "tfhub")  # which publish the average alone
        part = DISCRIMINATOR if network.role == "discriminator" else EMA if averaged else GENERATOR
        if part in self.networks:
            way_out = ' (the average\'s name must have "ema" in it)' if part == GENERATOR else ""
            raise UserError(f"{path} is {_TITLES[part]}, and so is another of the files; give one of them{way_out}.")
        self.naming, self.networks[part] = naming or self.naming, network
        if naming in ("huggingface", "tfhub"):
            self.statistics = biggan.read_statistics(tensors)
        return part


def read_network(tensors: Mapping[str, np.ndarray], path: Path) -> tuple[str, ConvertedNetwork]:
    """Naming and network of a state dict; the naming of a StyleGAN2 generator is empty, as it is the same everywhere.

    Raises:
      UserError: it is of no known network, or one that this project's cannot be; the first difference is named.
    """
    keys = [str(key) for key in tensors]
    try:
        if stylegan2.matches(keys):
            network = stylegan2.read_stylegan2(tensors)
            return naming_of(keys) if network.role == "discriminator" else "", network
        if naming := biggan.matches(keys):
            return naming, biggan.read_biggan(tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    raise UserError(
        f"{path} is no network that is known here (its tensors are {shown or 'none'}); give a StyleGAN2 of StudioGAN, "
        "NoisyTwins or NVIDIA, or a BigGAN of BigGAN-PyTorch, StudioGAN, Hugging Face or TF-Hub."
    )


def read_public_checkpoint(paths: Sequence[str | Path]) -> PublicCheckpoint:
    """Reads files, or the files of a folder, of one checkpoint.

    Raises:
      UserError: a file is missing, damaged, of another kind, or would run code; two files are the same part; or there is
        no generator.
    """
    found = PublicCheckpoint()
    optimizers: list[tuple[Path, Mapping[str, Any]]] = []
    for path in _files(paths):
        if path.suffix == ".pkl":
            _add_nvidia(found, path)
            continue
        content = _read(path)
        averaged = "ema" in path.name.lower()
        if _is_optimizer(content):
            optimizers.append((path, content))
        elif "state_dict" in content:
            part = found.add_network(_tensors(content["state_dict"], path), path, averaged)
            if _is_optimizer(content.get("optimizer")):
                found.optimizers[part] = content["optimizer"]
            _add_progress(found, content, path)
        elif "itr" in content and not any(isinstance(x, np.ndarray) and x.ndim for x in content.values()):
            _add_progress(found, {"step": content["itr"]}, path)
            options = content.get("config")
            if isinstance(options, Mapping):
                found.fields |= {field: float(options[name]) for name, field in EPSILONS.items() if name in options}
        else:
            found.add_network(_tensors(content, path), path, averaged)
    for path, state in optimizers:
        part = DISCRIMINATOR if path.name.startswith("D") else GENERATOR
        if part not in found.networks:
            raise UserError(f"{path} is the optimiser of {_TITLES[part]}, which is not among the files; give that too.")
        found.optimizers[part] = state
    if not {GENERATOR, EMA} & found.networks.keys():
        what = _TITLES[DISCRIMINATOR] if found.networks else "nothing that is known"
        raise UserError(f"The files hold {what} and no generator; give the generator's file too.")
    found.naming = found.naming or "studiogan"
    _check_same(found)
    return found


def _files(paths: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"There is no file {path}; give the files of a checkpoint, or the folder that they are in.")
        inside = sorted(x for x in path.iterdir() if x.suffix in _SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"The folder {path} has no {', '.join(_SUFFIXES)} file; give the folder of a checkpoint.")
        files += inside
    return files


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix in (".npz", ".safetensors"):
        try:
            if path.suffix == ".npz":
                with np.load(path) as arrays:  # refuses pickled objects
                    return dict(arrays)
            return safetensors.numpy.load_file(path)
        except Exception as error:  # of zip archives, of NumPy and of safetensors: many types
            raise UserError(
                f"{path} cannot be read ({first_line(error)}); it is damaged, or of another kind."
            ) from None
    content = read_torch_file(path, NUMBERS)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__} and no state dict; give files of a checkpoint.")
    return content


def _tensors(content: Any, path: Path) -> dict[str, np.ndarray]:
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} has a {type(content).__name__} where a state dict should be; give files of a checkpoint."
        )
    for key, value in content.items():
        if not isinstance(value, np.ndarray):
            raise UserError(f"{path} has a {type(value).__name__} at {key}, where a tensor should be.")
    keys = list(content)
    wrapped = bool(keys) and all(str(key).startswith("module.") for key in keys)  # by DataParallel
    return {str(key).removeprefix("module.") if wrapped else str(key): x for key, x in content.items()}


def _is_optimizer(content: Any) -> bool:
    return isinstance(content, Mapping) and {"state", "param_groups"} <= content.keys()


def _add_progress(found: PublicCheckpoint, content: Mapping[str, Any], path: Path) -> None:
    """Step, ADA's p and LeCam's averages, as StudioGAN writes them beside the discriminator."""

    def number(name: str, *others: str) -> float | None:
        for value in (content.get(key) for key in (name, *others)):
            if isinstance(value, bool | int | float) or (isinstance(value, np.ndarray) and value.ndim == 0):
                return float(value)
        return None

    step, p = number("step"), number("aa_p", "ada_p")
    if step is not None:
        if step < 0 or step != int(step):
            raise UserError(f"{path} says step {step:g}, which is no number of updates; the file is damaged.")
        found.step = int(step)
    found.ada_p = found.ada_p if p is None else p
    averages = content.get("lecam_emas")
    if isinstance(averages, Mapping) and {"D_real", "D_fake"} <= averages.keys():
        found.lecam = float(averages["D_real"]), float(averages["D_fake"])


def _add_nvidia(found: PublicCheckpoint, path: Path) -> None:
    snapshot = read_nvidia_pickle(path)
    for name, averaged in (("G", False), ("G_ema", True), ("D", False)):
        if module := snapshot.modules.get(name):
            found.add_network(module.tensors, path, averaged)
            found.fields |= module.fields()
    found.naming = "nvidia"
    pipe = snapshot.modules.get("augment_pipe")
    if pipe is not None and "p" in pipe.tensors:
        found.ada_p = float(pipe.tensors["p"])


def _check_same(found: PublicCheckpoint) -> None:
    """That the networks are of each other."""
    first, *others = (
        (part, found.networks[part]) for part in (EMA, GENERATOR, DISCRIMINATOR) if part in found.networks
    )
    for part, network in others:
        for name in ("num_classes", "channels"):
            if getattr(network, name) != getattr(first[1], name):
                raise UserError(
                    f"The files are not of one run: {_TITLES[first[0]]} has {name} {getattr(first[1], name)}, and "
                    f"{_TITLES[part]} {getattr(network, name)}; give the files of one checkpoint."
                )
        shared = {
            name for name in network.fields.keys() & first[1].fields.keys() if not name.startswith("biggan.attention")
        }
        for name in sorted(shared):
            if network.fields[name] != first[1].fields[name]:
                raise UserError(
                    f"The files are not of one run: {_TITLES[first[0]]} has {name} {first[1].fields[name]}, and "
                    f"{_TITLES[part]} {network.fields[name]}; give the files of one checkpoint."
                )
