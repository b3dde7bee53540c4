"""A run of this project as files of PyTorch, which public code loads with ``strict=True`` and trains on from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from noisytwins_jax.config import RunConfig
from noisytwins_jax.generation.trained_generator import TrainedGenerator
from noisytwins_jax.interop.adam import adam_to_torch, moments_of
from noisytwins_jax.interop.biggan import conversion as biggan
from noisytwins_jax.interop.biggan.statistics import ROWS, StatisticsGrid
from noisytwins_jax.interop.importing import family_of
from noisytwins_jax.interop.network import ConvertedNetwork
from noisytwins_jax.interop.public_checkpoint import EPSILONS
from noisytwins_jax.interop.stylegan2 import conversion as stylegan2
from noisytwins_jax.interop.stylegan2.nvidia_writer import write_nvidia_snapshot
from noisytwins_jax.interop.torch_writer import write_torch_file
from noisytwins_jax.models.biggan.architectures import generator_blocks
from noisytwins_jax.models.latents import Truncation
from noisytwins_jax.training.optimizer import lazy_rates
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.utils.errors import UserError, did_you_mean
from noisytwins_jax.utils.multihost import print_on_primary
from noisytwins_jax.utils.progress_bar import images_bar

FORMATS = {
    "stylegan2": ("studiogan", "nvidia", "nvidia_pkl"),
    "biggan": ("bigganpytorch", "studiogan"),
    "biggan_deep": ("bigganpytorch", "studiogan", "huggingface"),
}


def export_run(
    state: TrainState, trained: TrainedGenerator, directory: str | Path, naming: str = "", as_safetensors: bool = False
) -> list[Path]:
    """Writes a state's networks, and where the format has places for them Adam's state and what else goes on.

    Args:
      state: of the run, whole in this process.
      trained: the generator of the same checkpoint.
      directory: where to; made if need be, files of the same names are replaced.
      naming: of `FORMATS`; by default the network's first.
      as_safetensors: bare networks as ``.safetensors``, without anything that training needs.

    Returns:
      The files.

    Raises:
      UserError: there is no such format for this network, or the format has no place for something that it is.
    """
    config = trained.config
    known = FORMATS[config.network]
    naming = naming or known[0]
    if naming not in known:
        raise UserError(f"{config.network} is not written as {naming!r}; {did_you_mean(naming, known)} (--format)")
    if as_safetensors and naming == "nvidia_pkl":
        raise UserError("nvidia_pkl is a pickle; give --safetensors with --format=nvidia.")
    _say_epsilons(config, naming)
    networks = _networks(state, trained)
    write = stylegan2.write_stylegan2 if config.network == "stylegan2" else biggan.write_biggan
    directory = Path(directory)
    if naming == "huggingface":
        tensors = biggan.write_biggan(networks["G_ema"], naming, statistics=_grid(trained))
        directory.mkdir(parents=True, exist_ok=True)
        return [
            *_bare({"pytorch_model": tensors}, directory, as_safetensors, ".bin"),
            _huggingface_config(trained, directory),
        ]
    tensors = {name: write(network, naming.removesuffix("_pkl")) for name, network in networks.items()}
    directory.mkdir(parents=True, exist_ok=True)
    if naming == "nvidia_pkl":
        path = directory / f"network-snapshot-{int(state.step):06d}.pkl"
        write_nvidia_snapshot(path, tensors, float(state.ada.p))
        return [path]
    if as_safetensors or naming == "nvidia":
        return _bare(tensors, directory, as_safetensors, ".pth")
    optimizers = {name: _optimizer(name, state, networks[name], naming, config) for name in ("G", "D")}
    files = (_studiogan if naming == "studiogan" else _bigganpytorch)(state, tensors, optimizers, config)
    for name, content in files.items():
        write_torch_file(directory / name, content)
    return [directory / name for name in files]


def epsilon_of(config: RunConfig, field: str) -> float:
    """An epsilon of the normalisations by its field's name, where it may be that of another."""
    options = config.biggan
    value = getattr(options, field.removeprefix("biggan."))
    return options.batch_norm_epsilon if value is None else value


def _say_epsilons(config: RunConfig, naming: str) -> None:
    """The epsilons with which public code makes a BigGAN are in its options or its source, and in no tensor."""
    if config.network == "stylegan2":
        return
    for field, theirs in biggan.published_epsilons(naming).items():
        if theirs is not None and (ours := epsilon_of(config, field)) != theirs:
            print_on_primary(
                f"{naming} has {field} = {theirs:g} where nothing else is said, and this run {ours:g}: say it there."
            )


def _networks(state: TrainState, trained: TrainedGenerator) -> dict[str, ConvertedNetwork]:
    """G, D and G_ema; BigGAN's average with the moments that its samples have without truncation."""

    def network(role: str, variables: dict[str, Any]) -> ConvertedNetwork:
        variables = jax.tree.map(lambda x: np.asarray(x, np.float32), variables)
        return ConvertedNetwork(role, {}, len(trained.class_names), trained.channels, variables)

    return {
        "G": network("generator", state.generator.variables),
        "D": network("discriminator", state.discriminator.variables),
        "G_ema": network("generator", trained.variables_with_statistics(None)),
    }


def _bare(tensors: dict[str, dict[str, np.ndarray]], directory: Path, as_safetensors: bool, suffix: str) -> list[Path]:
    written = []
    for name, state_dict in tensors.items():
        written.append(directory / f"{name}{'.safetensors' if as_safetensors else suffix}")
        if as_safetensors:
            safetensors.numpy.save_file(
                {key: np.require(x, requirements="C") for key, x in state_dict.items()}, written[-1]
            )
        else:
            write_torch_file(written[-1], state_dict)
    return written


def _optimizer(
    name: str, state: TrainState, network: ConvertedNetwork, naming: str, config: RunConfig
) -> dict[str, Any]:
    options = config.optimizer
    if name == "G":
        own, rate, interval = state.generator, options.generator_lr, config.path_length.interval
    else:
        own, rate, interval = state.discriminator, options.discriminator_lr, config.r1.interval
    rate, *betas = lazy_rates(rate, options.beta1, options.beta2, interval)
    moments = moments_of(jax.device_get(own.opt_state))
    return adam_to_torch(moments, network, naming, family_of(config.network), rate, tuple(betas), options.epsilon)


def _studiogan(state: TrainState, tensors: dict, optimizers: dict, config: RunConfig) -> dict[str, Any]:
    """Names and content as StudioGAN's and NoisyTwins' code reads them."""
    step = int(state.step)
    lecam = state.objectives.get("lecam")
    progress = {
        "seed": config.seed,
        "run_name": config.name,
        "step": step,
        "epoch": 0,
        "topk": config.batch_size,
        "aa_p": float(state.ada.p),
        "best_step": step,
        "best_fid": None,
        "best_fid_ckpt": None,
        "lecam_emas": None
        if lecam is None
        else {
            **dict.fromkeys(("G_loss", "D_loss_real", "D_loss_fake"), 0.0),
            "D_real": float(lecam.real),
            "D_fake": float(lecam.fake),
            "decay": config.lecam.decay,
            "start_itr": config.lecam.start_step,
        },
    }
    content = {
        "G": {"state_dict": tensors["G"], "optimizer": optimizers["G"]},
        "G_ema": {"state_dict": tensors["G_ema"]},
        "D": {"state_dict": tensors["D"], "optimizer": optimizers["D"], **progress},
    }
    return {f"model={name}-current-weights-step={step}.pth": part for name, part in content.items()}


def _bigganpytorch(state: TrainState, tensors: dict, optimizers: dict, config: RunConfig) -> dict[str, Any]:
    progress = {
        "itr": int(state.step),
        "epoch": 0,
        "save_num": 0,
        "save_best_num": 0,
        "best_IS": 0.0,
        "best_FID": 999999.0,
        "config": {"experiment_name": config.name}
        | {name: epsilon_of(config, field) for name, field in EPSILONS.items()},
    }
    files = {f"{name}.pth": state_dict for name, state_dict in tensors.items()}
    return files | {f"{name}_optim.pth": content for name, content in optimizers.items()} | {"state_dict.pth": progress}


def _grid(trained: TrainedGenerator) -> StatisticsGrid:
    """Moments for the truncations that Hugging Face's generator has rows for: factors of normals cut off at 2."""
    truncations, rows = np.linspace(0, 1, ROWS), []
    with images_bar("Moments for 51 truncations", ROWS) as bar:
        for strength in truncations:
            rows.append(trained.variables_with_statistics(Truncation("scaled", float(strength)))["batch_stats"])
            bar.update()
    one = [StatisticsGrid.repeated(row, rows=1) for row in rows]

    def stacked(of: Callable[[StatisticsGrid], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {path: np.concatenate([of(grid)[path] for grid in one]) for path in of(one[0])}

    return StatisticsGrid(truncations, stacked(lambda grid: grid.means), stacked(lambda grid: grid.variances))


def _huggingface_config(trained: TrainedGenerator, directory: Path) -> Path:
    """``config.json``, with the table of blocks: whether one doubles the resolution, its inputs and outputs in widths."""
    generator = trained.model.generator
    table = generator_blocks(generator.resolution, True, generator.attention)
    content = {
        "output_dim": generator.resolution,
        "z_dim": generator.z_dim,
        "class_embed_dim": generator.embedding_dim,
        "channel_width": generator.width,
        "num_classes": generator.num_classes,
        "layers": [[block.resample, block.in_channels, block.out_channels] for block in table],
        "attention_layer_position": next((i + 1 for i, block in enumerate(table) if block.attention), -1),
        "eps": generator.bn_epsilon,
        "n_stats": ROWS,
    }
    path = directory / "config.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
