"""A public checkpoint as a run of this project: a workdir that samples at once and, where all is there, trains on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from noisytwins_jax.config import RunConfig, flatten, parse_flat
from noisytwins_jax.config.presets import BIGGAN
from noisytwins_jax.data.registry import load_data
from noisytwins_jax.generation.stored_statistics import StoredStatistics, write_stored_moments
from noisytwins_jax.interop.adam import Family, adam_to_jax, with_moments
from noisytwins_jax.interop.biggan import state_dict as biggan
from noisytwins_jax.interop.converted_network import ConvertedNetwork
from noisytwins_jax.interop.public_checkpoint import DISCRIMINATOR, EMA, GENERATOR, PublicCheckpoint
from noisytwins_jax.interop.stylegan2 import state_dict as stylegan2
from noisytwins_jax.losses.lecam import LogitAverages
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.checkpoint import Checkpoints
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.training.workdir import open_workdir, write_classes, write_config
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.multihost import print_on_primary
from noisytwins_jax.utils.sharding import Layout

NO_DATA = "none"  # the data set of a run that was converted without a configuration
_NOT_IN_SHAPES = ("epsilon", "conv_clamp")  # fields with these in their names change images, and no tensor's shape


def family_of(network: str) -> Family:
    """The module that reads and writes parameters of ``config.network``."""
    return stylegan2 if network == "stylegan2" else biggan


def import_run(found: PublicCheckpoint, workdir: str | Path, config: RunConfig | None = None) -> Path:
    """Writes a workdir with one checkpoint.

    Without a discriminator, or without Adam's state, those begin anew from the configuration's seed; that is said.

    Args:
      found: what the files hold.
      workdir: a new directory.
      config: what to train on with; by default what the files tell, which is enough for samples.

    Raises:
      UserError: the workdir has checkpoints already, or the networks are not those of the configuration.
    """
    source = found.networks.get(EMA) or found.networks[GENERATOR]
    given = config is not None
    config = config if config is not None else config_of(found)
    if (Path(workdir) / "checkpoints").exists():
        raise UserError(f"{Path(workdir).absolute()} has checkpoints already; give another --workdir.")
    if given:
        _check_fields(found, config)
    names = _class_names(config, source, given)
    model = build_model(config, source.channels, len(names))
    step = TrainingStep(config, model)
    abstract = step.abstract_state(Layout().state_shardings)
    _check_shapes(found, abstract)
    state = jax.jit(step.init, static_argnums=0)(config.seed)
    state = _with_networks(state, found)
    state = _with_optimizers(state, found)
    state = _with_averages(state, found)
    updates = found.step or 0
    workdir = open_workdir(workdir, config)
    write_config(workdir, config)
    write_classes(workdir, source.channels, names)
    if model.needs_standing_statistics:
        write_stored_moments(workdir, updates, _moments(found, source))
    with Checkpoints(workdir, writable=True) as checkpoints:
        position = {"next_index": updates * config.optimizer.discriminator_updates}
        checkpoints.save(updates, state, position, flatten(config), wait=True)
    return workdir


def config_of(found: PublicCheckpoint) -> RunConfig:
    """The configuration that the files tell; what they do not say is the published runs'."""
    fields: dict[str, Any] = {"name": f"converted-{found.naming}", "data.name": NO_DATA}
    merged: dict[str, Any] = {}
    for part in (DISCRIMINATOR, GENERATOR, EMA):  # of both, the generator's attention
        if part in found.networks:
            merged |= found.networks[part].fields
    if merged["network"] != "stylegan2":
        fields |= BIGGAN
    fields |= merged | found.fields
    if found.ada_p is not None and found.naming == "nvidia":
        fields["ada.operations"] = "bgc"
    return parse_flat({name: value for name, value in fields.items() if name in flatten(RunConfig())})


def _class_names(config: RunConfig, source: ConvertedNetwork, given: bool) -> tuple[str, ...]:
    plain = tuple(f"class {i}" for i in range(source.num_classes))
    if not given:
        return plain
    try:
        train = load_data(config.data).train
    except UserError as error:
        print_on_primary(f"The classes have no names, as the images are not there: {error}")
        return plain
    if (train.num_classes, train.channels) != (source.num_classes, source.channels):
        raise UserError(
            f"The generator is of {source.num_classes} classes and {source.channels} channels, and config.data has "
            f"{train.num_classes} and {train.channels}; give the data set that it was trained on."
        )
    return tuple(train.class_names)


def _check_fields(found: PublicCheckpoint, config: RunConfig) -> None:
    have = flatten(config)
    if have["biggan.output_batch_norm_epsilon"] is None:
        have["biggan.output_batch_norm_epsilon"] = have["biggan.batch_norm_epsilon"]
    for network in found.networks.values():
        for name, value in {**network.fields, **found.fields}.items():
            exact = name in ("network", "data.resolution") or any(word in name for word in _NOT_IN_SHAPES)
            if exact and have.get(name) != value:
                raise UserError(
                    f"The files have {name} = {value!r}, and the configuration {have.get(name)!r}; give --config.{name}={value}."
                )


def _check_shapes(found: PublicCheckpoint, abstract: TrainState) -> None:
    parts = {
        GENERATOR: abstract.generator.variables,
        EMA: abstract.ema,
        DISCRIMINATOR: abstract.discriminator.variables,
    }
    for part, network in found.networks.items():
        ours, theirs = (
            {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape) for path, x in leaves}
            for leaves in map(jax.tree_util.tree_leaves_with_path, (parts[part], network.variables))
        )
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                shapes = [list(x) if x is not None else "absent" for x in (theirs.get(name), ours.get(name))]
                raise UserError(
                    f"The files are of another architecture than the configuration: {name} of the {network.role} is "
                    f"{shapes[0]} there and {shapes[1]} here; give the configuration that it was trained with."
                )


def _with_networks(state: TrainState, found: PublicCheckpoint) -> TrainState:
    networks = found.networks
    average = (networks.get(EMA) or networks[GENERATOR]).variables
    current = (networks.get(GENERATOR) or networks[EMA]).variables
    if EMA not in networks:
        print_on_primary("There is no moving average among the files: the generator itself is taken for it.")
    elif GENERATOR not in networks:
        print_on_primary("There is only the moving average of the generator: training would go on from it.")
    updates = np.int32(found.step or 0)
    params, stats = _split(current)
    state = state.replace(
        ema=jax.tree.map(lambda x: np.asarray(x, np.float32), average),
        generator=state.generator.replace(params=params, stats=stats, updates=updates),
    )
    if DISCRIMINATOR not in networks:
        print_on_primary(
            "There is no discriminator among the files: a fresh one is written, which samples do not need."
        )
        return state
    params, stats = _split(networks[DISCRIMINATOR].variables)
    return state.replace(discriminator=state.discriminator.replace(params=params, stats=stats))


def _split(variables: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    return variables["params"], {name: tree for name, tree in variables.items() if name != "params"}


def _with_optimizers(state: TrainState, found: PublicCheckpoint) -> TrainState:
    missing = []
    for part in (GENERATOR, DISCRIMINATOR):
        if part not in found.networks:
            continue
        if part not in found.optimizers:
            missing.append(part)
            continue
        network, own = found.networks[part], getattr(state, part)
        moments = adam_to_jax(found.optimizers[part], network, found.naming, family_of(network.fields["network"]))
        counts = max(jax.tree.leaves(moments.counts), default=0)
        replaced = own.replace(opt_state=with_moments(own.opt_state, moments))
        if part == DISCRIMINATOR:
            replaced = replaced.replace(updates=np.int32(found.step or counts))
        state = state.replace(**{part: replaced})
    if missing:
        print_on_primary(
            f"There is no state of Adam for the {' and the '.join(missing)}: training would go on with fresh moments."
        )
    return state


def _with_averages(state: TrainState, found: PublicCheckpoint) -> TrainState:
    if found.ada_p is not None:
        state = state.replace(ada=state.ada._replace(p=np.float32(found.ada_p)))
    if found.lecam is not None and "lecam" in state.objectives:
        averages = LogitAverages(*map(np.float32, found.lecam))
        state = state.replace(objectives={**state.objectives, "lecam": averages})
    return state


def _moments(found: PublicCheckpoint, source: ConvertedNetwork) -> StoredStatistics:
    if found.statistics is None:
        return StoredStatistics(
            None, np.ones(1), {"batch_stats": jax.tree.map(lambda x: x[None], source.variables["batch_stats"])}
        )
    rows = [found.statistics.at(t) for t in found.statistics.truncations]
    return StoredStatistics(
        "scaled", found.statistics.truncations, {"batch_stats": jax.tree.map(lambda *x: np.stack(x), *rows)}
    )
