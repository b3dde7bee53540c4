"""A reader for the files of a public checkpoint: the generator, its moving average, the discriminator, Adam's state.

What a file holds is detected from its content, with one exception: the moving average of a generator has the same tensors
as the generator, and must have "ema" in its file name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from noisytwins_jax.interop.biggan import state_dict as biggan
from noisytwins_jax.interop.biggan.statistics import StatisticsGrid
from noisytwins_jax.interop.converted_network import ConvertedNetwork
from noisytwins_jax.interop.stylegan2 import state_dict as stylegan2
from noisytwins_jax.interop.stylegan2.architecture import detect_naming
from noisytwins_jax.interop.stylegan2.nvidia_options import config_fields
from noisytwins_jax.interop.stylegan2.nvidia_pickle import NUMPY_SCALARS, read_nvidia_pickle
from noisytwins_jax.utils.errors import UserError, first_line
from noisytwins_jax.utils.torch_file import read_torch_file

GENERATOR, EMA, DISCRIMINATOR = "generator", "ema", "discriminator"
EPSILONS = {  # keys in the configuration that BigGAN-PyTorch saves; the last, which is fixed there, is this project's
    "BN_eps": "biggan.batch_norm_epsilon",
    "SN_eps": "biggan.spectral_norm_epsilon",
    "output_BN_eps": "biggan.output_batch_norm_epsilon",
}
_TITLES = {GENERATOR: "a generator", EMA: "the moving average of a generator", DISCRIMINATOR: "a discriminator"}
_SUFFIXES = (".pth", ".pt", ".bin", ".pkl", ".npz", ".safetensors")


@dataclass
class PublicCheckpoint:
    """The content of the files of one checkpoint.

    Attributes:
      naming: ``"studiogan"``, ``"nvidia"``, ``"bigganpytorch"``, ``"huggingface"`` or ``"tfhub"``.
      networks: by part, ``"generator"``, ``"ema"`` and ``"discriminator"``, as far as the files have them.
      optimizers: states of PyTorch's Adam, by part.
      fields: configuration fields that do not follow from tensors.
      step: generator updates so far; None if the files do not say.
      ada_p: probability of ADA's augmentations, None without ADA.
      lecam: LeCam's averages of the logits of real and fake images, None without LeCam.
      statistics: BatchNorm statistics for several truncations, of Hugging Face's and TF-Hub's generators.
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
        """Add a network from its state dict, and return its part.

        Raises:
          UserError: the network is unknown, its part is there already, or it has another naming.
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
    """Return naming and network of a state dict; the naming is empty for StyleGAN2 generators, whose keys never differ.

    Raises:
      UserError: the network is unknown, or this project has no such network; the first difference is named.
    """
    keys = [str(key) for key in tensors]
    try:
        if stylegan2.matches(keys):
            network = stylegan2.read_stylegan2(tensors)
            return detect_naming(keys) if network.role == "discriminator" else "", network
        if naming := biggan.matches(keys):
            return naming, biggan.read_biggan(tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    examples = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    raise UserError(
        f"{path} is no network that is known here (its tensors are {examples or 'none'}); give a StyleGAN2 of StudioGAN, "
        "NoisyTwins or NVIDIA, or a BigGAN of BigGAN-PyTorch, StudioGAN, Hugging Face or TF-Hub."
    )


def read_public_checkpoint(paths: Sequence[str | Path]) -> PublicCheckpoint:
    """Load one checkpoint from files or from the files of a folder.

    Raises:
      UserError: a file is missing, damaged, of another kind, or would run code; two files are the same part; or there is
        no generator.
    """
    checkpoint = PublicCheckpoint()
    optimizers: list[tuple[Path, Mapping[str, Any]]] = []
    for path in _files(paths):
        if path.suffix == ".pkl":
            _add_nvidia(checkpoint, path)
            continue
        content = _read(path)
        averaged = "ema" in path.name.lower()
        if _is_optimizer(content):
            optimizers.append((path, content))
        elif "state_dict" in content:
            part = checkpoint.add_network(_tensors(content["state_dict"], path), path, averaged)
            if _is_optimizer(content.get("optimizer")):
                checkpoint.optimizers[part] = content["optimizer"]
            _add_progress(checkpoint, content, path)
        elif "itr" in content and not any(isinstance(x, np.ndarray) and x.ndim for x in content.values()):
            _add_progress(checkpoint, {"step": content["itr"]}, path)
            options = content.get("config")
            if isinstance(options, Mapping):
                checkpoint.fields |= {
                    field: float(options[name]) for name, field in EPSILONS.items() if name in options
                }
        else:
            checkpoint.add_network(_tensors(content, path), path, averaged)
    for path, state in optimizers:
        part = DISCRIMINATOR if path.name.startswith("D") else GENERATOR
        if part not in checkpoint.networks:
            raise UserError(f"{path} is the optimiser of {_TITLES[part]}, which is not among the files; give that too.")
        checkpoint.optimizers[part] = state
    if not {GENERATOR, EMA} & checkpoint.networks.keys():
        what = _TITLES[DISCRIMINATOR] if checkpoint.networks else "nothing that is known"
        raise UserError(f"The files hold {what} and no generator; give the generator's file too.")
    checkpoint.naming = checkpoint.naming or "studiogan"
    _check_consistent(checkpoint)
    return checkpoint


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
        except Exception as error:  # zipfile, NumPy and safetensors raise many types
            raise UserError(
                f"{path} cannot be read ({first_line(error)}); it is damaged, or of another kind."
            ) from None
    content = read_torch_file(path, NUMPY_SCALARS)
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


def _add_progress(checkpoint: PublicCheckpoint, content: Mapping[str, Any], path: Path) -> None:
    """Add step, ADA's p and LeCam's averages, which StudioGAN stores with the discriminator."""

    def number(name: str, *others: str) -> float | None:
        for value in (content.get(key) for key in (name, *others)):
            if isinstance(value, bool | int | float) or (isinstance(value, np.ndarray) and value.ndim == 0):
                return float(value)
        return None

    step, p = number("step"), number("aa_p", "ada_p")
    if step is not None:
        if step < 0 or step != int(step):
            raise UserError(f"{path} says step {step:g}, which is no number of updates; the file is damaged.")
        checkpoint.step = int(step)
    checkpoint.ada_p = checkpoint.ada_p if p is None else p
    averages = content.get("lecam_emas")
    if isinstance(averages, Mapping) and {"D_real", "D_fake"} <= averages.keys():
        checkpoint.lecam = float(averages["D_real"]), float(averages["D_fake"])


def _add_nvidia(checkpoint: PublicCheckpoint, path: Path) -> None:
    snapshot = read_nvidia_pickle(path)
    for name, averaged in (("G", False), ("G_ema", True), ("D", False)):
        if module := snapshot.modules.get(name):
            part = checkpoint.add_network(module.tensors, path, averaged)
            if module.init_kwargs:
                checkpoint.fields |= config_fields(checkpoint.networks[part].role, module.init_kwargs)
    checkpoint.naming = "nvidia"
    pipe = snapshot.modules.get("augment_pipe")
    if pipe is not None and "p" in pipe.tensors:
        checkpoint.ada_p = float(pipe.tensors["p"])


def _check_consistent(checkpoint: PublicCheckpoint) -> None:
    """Check that the networks belong together."""
    first, *others = (
        (part, checkpoint.networks[part]) for part in (EMA, GENERATOR, DISCRIMINATOR) if part in checkpoint.networks
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
