"""Import of a public checkpoint as a run: a workdir that can sample and, if the files have all it needs, train."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from noisytwins_jax.config import RunConfig, flatten, parse_flat
from noisytwins_jax.config.presets import BIGGAN
from noisytwins_jax.data.registry import load_data
from noisytwins_jax.generation.stored_statistics import StoredStatistics, write_stored_statistics
from noisytwins_jax.interop.adam import Family, adam_to_jax, set_moments
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
_NOT_IN_SHAPES = ("epsilon", "conv_clamp")  # fields with these in their names change images but no tensor's shape


def get_family(network: str) -> Family:
    """Return the module that converts parameters of ``config.network``."""
    return stylegan2 if network == "stylegan2" else biggan


def import_run(public: PublicCheckpoint, workdir: str | Path, config: RunConfig | None = None) -> Path:
    """Write a workdir with one checkpoint.

    A missing discriminator or Adam state is initialised from the configuration's seed, and a message says so.

    Args:
      public: the content of the files.
      workdir: a new directory.
      config: for further training; by default what follows from the files, which is enough for sampling.

    Returns:
      The workdir.

    Raises:
      UserError: the workdir has checkpoints already, or the networks do not fit the configuration.
    """
    source = public.networks.get(EMA) or public.networks[GENERATOR]
    given = config is not None
    config = config if config is not None else build_config(public)
    if (Path(workdir) / "checkpoints").exists():
        raise UserError(f"{Path(workdir).absolute()} has checkpoints already; give another --workdir.")
    if given:
        _check_fields(public, config)
    names = _class_names(config, source, given)
    model = build_model(config, source.channels, len(names))
    step = TrainingStep(config, model)
    abstract = step.abstract_state(Layout().state_shardings)
    _check_shapes(public, abstract)
    state = jax.jit(step.init, static_argnums=0)(config.seed)
    state = _with_networks(state, public)
    state = _with_optimizers(state, public)
    state = _with_averages(state, public)
    updates = public.step or 0
    workdir = open_workdir(workdir, config)
    write_config(workdir, config)
    write_classes(workdir, source.channels, names)
    if model.needs_standing_statistics:
        write_stored_statistics(workdir, updates, _stored_statistics(public, source))
    with Checkpoints(workdir, writable=True) as checkpoints:
        position = {"next_index": updates * config.optimizer.discriminator_updates}
        checkpoints.save(updates, state, position, flatten(config), wait=True)
    return workdir


def build_config(public: PublicCheckpoint) -> RunConfig:
    """Build the configuration that follows from the files, with the published runs' values for the rest."""
    fields: dict[str, Any] = {"name": f"converted-{public.naming}", "data.name": NO_DATA}
    merged: dict[str, Any] = {}
    for part in (DISCRIMINATOR, GENERATOR, EMA):  # the generator's attention overrides the discriminator's
        if part in public.networks:
            merged |= public.networks[part].fields
    if merged["network"] != "stylegan2":
        fields |= BIGGAN
    fields |= merged | public.fields
    if public.ada_p is not None and public.naming == "nvidia":
        fields["ada.operations"] = "bgc"
    return parse_flat({name: value for name, value in fields.items() if name in flatten(RunConfig())})


def _class_names(config: RunConfig, source: ConvertedNetwork, given: bool) -> tuple[str, ...]:
    plain = tuple(f"class {i}" for i in range(source.num_classes))
    if not given:
        return plain
    try:
        train = load_data(config.data).train
    except UserError as error:
        print_on_primary(f"The classes have no names, because the images are missing: {error}")
        return plain
    if (train.num_classes, train.channels) != (source.num_classes, source.channels):
        raise UserError(
            f"The generator is of {source.num_classes} classes and {source.channels} channels, and config.data has "
            f"{train.num_classes} and {train.channels}; give the data set that it was trained on."
        )
    return tuple(train.class_names)


def _check_fields(public: PublicCheckpoint, config: RunConfig) -> None:
    fields = flatten(config)
    if fields["biggan.output_batch_norm_epsilon"] is None:
        fields["biggan.output_batch_norm_epsilon"] = fields["biggan.batch_norm_epsilon"]
    for network in public.networks.values():
        for name, value in {**network.fields, **public.fields}.items():
            exact = name in ("network", "data.resolution") or any(word in name for word in _NOT_IN_SHAPES)
            if exact and fields.get(name) != value:
                raise UserError(
                    f"The files have {name} = {value!r}, and the configuration {fields.get(name)!r}; give --config.{name}={value}."
                )


def _check_shapes(public: PublicCheckpoint, abstract: TrainState) -> None:
    parts = {
        GENERATOR: abstract.generator.variables,
        EMA: abstract.ema,
        DISCRIMINATOR: abstract.discriminator.variables,
    }
    for part, network in public.networks.items():
        expected, actual = (
            {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape) for path, x in leaves}
            for leaves in map(jax.tree_util.tree_leaves_with_path, (parts[part], network.variables))
        )
        for name in sorted(expected.keys() | actual.keys()):
            if expected.get(name) != actual.get(name):
                shapes = [list(x) if x is not None else "absent" for x in (actual.get(name), expected.get(name))]
                raise UserError(
                    f"The files are of another architecture than the configuration: {name} of the {network.role} is "
                    f"{shapes[0]} there and {shapes[1]} here; give the configuration that it was trained with."
                )


def _with_networks(state: TrainState, public: PublicCheckpoint) -> TrainState:
    networks = public.networks
    average = (networks.get(EMA) or networks[GENERATOR]).variables
    current = (networks.get(GENERATOR) or networks[EMA]).variables
    if EMA not in networks:
        print_on_primary("There is no moving average among the files: the generator itself is taken for it.")
    elif GENERATOR not in networks:
        print_on_primary("There is only the moving average of the generator: training would continue from it.")
    updates = np.int32(public.step or 0)
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


def _with_optimizers(state: TrainState, public: PublicCheckpoint) -> TrainState:
    missing = []
    for part in (GENERATOR, DISCRIMINATOR):
        if part not in public.networks:
            continue
        if part not in public.optimizers:
            missing.append(part)
            continue
        network, own = public.networks[part], getattr(state, part)
        moments = adam_to_jax(public.optimizers[part], network, public.naming, get_family(network.fields["network"]))
        counts = max(jax.tree.leaves(moments.counts), default=0)
        replaced = own.replace(opt_state=set_moments(own.opt_state, moments))
        if part == DISCRIMINATOR:
            replaced = replaced.replace(updates=np.int32(public.step or counts))
        state = state.replace(**{part: replaced})
    if missing:
        print_on_primary(
            f"There is no state of Adam for the {' and the '.join(missing)}: training would continue with fresh moments."
        )
    return state


def _with_averages(state: TrainState, public: PublicCheckpoint) -> TrainState:
    if public.ada_p is not None:
        state = state.replace(ada=state.ada._replace(p=np.float32(public.ada_p)))
    if public.lecam is not None and "lecam" in state.losses:
        averages = LogitAverages(*map(np.float32, public.lecam))
        state = state.replace(losses={**state.losses, "lecam": averages})
    return state


def _stored_statistics(public: PublicCheckpoint, source: ConvertedNetwork) -> StoredStatistics:
    if public.statistics is None:
        return StoredStatistics(
            None, np.ones(1), {"batch_stats": jax.tree.map(lambda x: x[None], source.variables["batch_stats"])}
        )
    rows = [public.statistics.at(t) for t in public.statistics.truncations]
    return StoredStatistics(
        "scaled", public.statistics.truncations, {"batch_stats": jax.tree.map(lambda *x: np.stack(x), *rows)}
    )
