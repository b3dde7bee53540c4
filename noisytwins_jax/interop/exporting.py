"""Export of a run as PyTorch files, which public code loads with ``strict=True`` and can continue training from."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from noisytwins_jax.config import RunConfig, flatten
from noisytwins_jax.generation.trained_generator import TrainedGenerator
from noisytwins_jax.interop.adam import adam_to_torch, get_moments
from noisytwins_jax.interop.biggan import state_dict as biggan
from noisytwins_jax.interop.biggan.statistics import NUM_TRUNCATIONS, StatisticsGrid
from noisytwins_jax.interop.converted_network import ConvertedNetwork
from noisytwins_jax.interop.importing import get_family
from noisytwins_jax.interop.public_checkpoint import EPSILONS
from noisytwins_jax.interop.studiogan_config import has_studiogan_widths, studiogan_config
from noisytwins_jax.interop.stylegan2 import state_dict as stylegan2
from noisytwins_jax.interop.stylegan2.nvidia_writer import write_nvidia_snapshot
from noisytwins_jax.interop.torch_writer import write_torch_file
from noisytwins_jax.models.biggan.architectures import generator_blocks
from noisytwins_jax.models.latents import Truncation
from noisytwins_jax.training.optimizer import lazy_rates
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.utils.errors import UserError, did_you_mean
from noisytwins_jax.utils.files import replacing
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
    """Write the networks of a run and, as far as the format has them, Adam's state and the training progress.

    Args:
      state: of the run, with all shards in this process.
      trained: the generator of the same checkpoint.
      directory: created if missing; files of the same names are replaced.
      naming: one of `FORMATS`; by default the network's first.
      as_safetensors: write only the networks, as ``.safetensors``, without training state.

    Returns:
      The written files.

    Raises:
      UserError: this network has no such format, or the format cannot express one of its options.
    """
    config = trained.config
    if config.network not in FORMATS:
        raise UserError(f"Networks of {config.network} are not written for PyTorch; write a sampler: convert to-jax.")
    formats = FORMATS[config.network]
    naming = naming or formats[0]
    if naming not in formats:
        raise UserError(f"{config.network} is not written as {naming!r}; {did_you_mean(naming, formats)} (--format)")
    if as_safetensors and naming == "nvidia_pkl":
        raise UserError("nvidia_pkl is a pickle; give --safetensors with --format=nvidia.")
    _print_epsilons(config, naming)
    networks = _get_networks(state, trained)
    write = stylegan2.write_stylegan2 if config.network == "stylegan2" else biggan.write_biggan
    directory = Path(directory)
    if naming == "huggingface":
        tensors = biggan.write_biggan(networks["G_ema"], naming, statistics=_compute_statistics_grid(trained))
        directory.mkdir(parents=True, exist_ok=True)
        return [
            *_write_networks({"pytorch_model": tensors}, directory, as_safetensors, ".bin"),
            _write_huggingface_config(trained, directory),
        ]
    tensors = {name: write(network, naming.removesuffix("_pkl")) for name, network in networks.items()}
    directory.mkdir(parents=True, exist_ok=True)
    if naming == "nvidia_pkl":
        path = directory / f"network-snapshot-{int(state.step):06d}.pkl"
        write_nvidia_snapshot(path, tensors, flatten(config), float(state.ada.p))
        return [path]
    if as_safetensors or naming == "nvidia":
        return _write_networks(tensors, directory, as_safetensors, ".pth")
    optimizers = {name: _convert_optimizer(name, state, networks[name], naming, config) for name in ("G", "D")}
    files = (_studiogan_files if naming == "studiogan" else _bigganpytorch_files)(state, tensors, optimizers, config)
    for name, content in files.items():
        write_torch_file(directory / name, content)
    written = [directory / name for name in files]
    return [*written, _write_studiogan_config(trained, directory)] if naming == "studiogan" else written


def get_epsilon(config: RunConfig, field: str) -> float:
    """Return an epsilon of the normalisations, by its field; None in the configuration means BatchNorm's."""
    options = config.biggan
    value = getattr(options, field.removeprefix("biggan."))
    return options.batch_norm_epsilon if value is None else value


def _print_epsilons(config: RunConfig, naming: str) -> None:
    """Print the epsilons that must be set in the public code: they are in its options or source, not in tensors."""
    if config.network == "stylegan2":
        return
    for field, default in biggan.published_epsilons(naming).items():
        if (value := get_epsilon(config, field)) != default:
            print_on_primary(f"{naming} has {field} = {default:g} by default, and this run {value:g}: set it there.")


def _get_networks(state: TrainState, trained: TrainedGenerator) -> dict[str, ConvertedNetwork]:
    """Return G, D and G_ema, a BigGAN's average with the BatchNorm statistics of samples without truncation."""

    def convert(role: str, variables: dict[str, Any]) -> ConvertedNetwork:
        variables = jax.tree.map(lambda x: np.asarray(x, np.float32), variables)
        return ConvertedNetwork(role, {}, len(trained.class_names), trained.channels, variables)

    return {
        "G": convert("generator", state.generator.variables),
        "D": convert("discriminator", state.discriminator.variables),
        "G_ema": convert("generator", trained.variables_with_statistics(None)),
    }


def _write_networks(
    tensors: dict[str, dict[str, np.ndarray]], directory: Path, as_safetensors: bool, suffix: str
) -> list[Path]:
    written = []
    for name, state_dict in tensors.items():
        written.append(directory / f"{name}{'.safetensors' if as_safetensors else suffix}")
        if as_safetensors:
            content = {key: np.require(x, requirements="C") for key, x in state_dict.items()}
            with replacing(written[-1]) as temporary:  # as any new file; save_file makes it readable by its owner alone
                temporary.write_bytes(safetensors.numpy.save(content))
        else:
            write_torch_file(written[-1], state_dict)
    return written


def _convert_optimizer(
    name: str, state: TrainState, network: ConvertedNetwork, naming: str, config: RunConfig
) -> dict[str, Any]:
    options = config.optimizer
    if name == "G":
        own, rate, interval = state.generator, options.generator_lr, config.path_length.interval
    else:
        own, rate, interval = state.discriminator, options.discriminator_lr, config.r1.interval
    rate, *betas = lazy_rates(rate, options.beta1, options.beta2, interval)
    moments = get_moments(jax.device_get(own.opt_state))
    return adam_to_torch(moments, network, naming, get_family(config.network), rate, tuple(betas), options.epsilon)


def _studiogan_files(state: TrainState, tensors: dict, optimizers: dict, config: RunConfig) -> dict[str, Any]:
    """Return the content of each file that StudioGAN's and NoisyTwins' code reads."""
    step = int(state.step)
    lecam = state.losses.get("lecam")
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


def _write_studiogan_config(trained: TrainedGenerator, directory: Path) -> Path:
    """Write the configuration that the public code's evaluation needs, and print its command."""
    config = trained.config
    path = directory / f"{config.name}.yaml"
    path.write_text(studiogan_config(config, len(trained.class_names), trained.channels), encoding="utf-8")
    code = "StudioGAN or NoisyTwins"
    if config.network == "stylegan2" and not has_studiogan_widths(config):
        code = "NoisyTwins (StudioGAN has no option for these widths)"
    print_on_primary(
        f"To evaluate with {code}: python src/main.py -metrics fid -cfg {path} -ckpt {directory} -data DATA -save OUT"
    )
    return path


def _bigganpytorch_files(state: TrainState, tensors: dict, optimizers: dict, config: RunConfig) -> dict[str, Any]:
    progress = {
        "itr": int(state.step),
        "epoch": 0,
        "save_num": 0,
        "save_best_num": 0,
        "best_IS": 0.0,
        "best_FID": 999999.0,
        "config": {"experiment_name": config.name}
        | {name: get_epsilon(config, field) for name, field in EPSILONS.items()},
    }
    files = {f"{name}.pth": state_dict for name, state_dict in tensors.items()}
    return files | {f"{name}_optim.pth": content for name, content in optimizers.items()} | {"state_dict.pth": progress}


def _compute_statistics_grid(trained: TrainedGenerator) -> StatisticsGrid:
    """Compute BatchNorm statistics at the truncations of Hugging Face's generator: factors of normals cut off at ±2."""
    truncations, grids = np.linspace(0, 1, NUM_TRUNCATIONS), []
    with images_bar("BatchNorm statistics for 51 truncations", NUM_TRUNCATIONS) as bar:
        for strength in truncations:
            variables = trained.variables_with_statistics(Truncation("scaled", float(strength)))
            grids.append(StatisticsGrid.repeated(variables["batch_stats"], rows=1))
            bar.update()
    means, variances = (
        {path: np.concatenate([getattr(grid, name)[path] for grid in grids]) for path in getattr(grids[0], name)}
        for name in ("means", "variances")
    )
    return StatisticsGrid(truncations, means, variances)


def _write_huggingface_config(trained: TrainedGenerator, directory: Path) -> Path:
    """Write ``config.json``; its layers say whether a block upsamples, and its channels in multiples of the width."""
    generator = trained.model.generator
    blocks = generator_blocks(generator.resolution, True, generator.attention)
    content = {
        "output_dim": generator.resolution,
        "z_dim": generator.z_dim,
        "class_embed_dim": generator.embedding_dim,
        "channel_width": generator.width,
        "num_classes": generator.num_classes,
        "layers": [[block.resample, block.in_channels, block.out_channels] for block in blocks],
        "attention_layer_position": next((i + 1 for i, block in enumerate(blocks) if block.attention), -1),
        "eps": generator.bn_epsilon,
        "n_stats": NUM_TRUNCATIONS,
    }
    path = directory / "config.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
