"""The state at the start of a run whose networks are those of another run (``--init_from``)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from noisytwins_jax.config import RunConfig, flatten
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.finetuning.transfer import ClassRows, Transfer, match_classes, transfer
from noisytwins_jax.training.restore import check_has_checkpoint, restore_fields
from noisytwins_jax.training.state import NetworkState, TrainState
from noisytwins_jax.training.workdir import read_run
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.files import write_atomically
from noisytwins_jax.utils.multihost import local_copy, print_on_primary

TABLE_FILE = "init_from.txt"
_WIDTHS = ("generator.", "discriminator.", "biggan.", "r3gan.")  # fields that say how wide networks are


def check_source(config: RunConfig, state: TrainState) -> None:
    """Check that a run can start from ``config.finetune.init_from``, if that is given.

    Args:
      config: of the run.
      state: its state, arrays or their shapes.

    Raises:
      UserError: there is no such run or checkpoint, or its networks are of another family or of other widths.
    """
    if not config.finetune.init_from:
        return
    _, source, channels, names = _read_source(config)
    theirs = jax.eval_shape(build_model(source, channels, len(names)).init, jax.random.key(0))
    for part, others in zip(("generator", "discriminator"), theirs, strict=True):
        _check_widths(part, getattr(state, part).params, others["params"], config, source)


def start_from_source(config: RunConfig, state: TrainState, class_names: Sequence[str], workdir: Path) -> TrainState:
    """Put the networks of ``config.finetune.init_from`` in place of the initial ones, and write a table of what was taken.

    The optimisers, ADA's probability and the losses' states stay as initialised; the average is taken from the average.
    `check_source` has passed.
    """
    folder, source, channels, source_names = _read_source(config)
    model = build_model(source, channels, len(source_names))
    fields = ["generator", "discriminator", "ema"]
    step, other = restore_fields(source, folder, config.finetune.checkpoint, model, fields)
    other = local_copy(other)
    rows = _class_rows(config, source_names, class_names, model.scales_class_tables)
    parts = {
        "generator": (state.generator.variables, other["generator"].variables),
        "discriminator": (state.discriminator.variables, other["discriminator"].variables),
        "average": (state.ema, other["ema"]),
    }
    tables, found = _class_tables(source, channels, len(source_names)), {}
    for part, (variables, others) in parts.items():
        given = {path: np.asarray(x) for path, x in flatten_dict(others).items()}
        shapes = {path: x.shape for path, x in flatten_dict(variables).items()}
        found[part] = transfer(shapes, given, tables["discriminator" if part == "discriminator" else "generator"], rows)
    text = _describe(found, parts, source_names, class_names, rows)
    if jax.process_index() == 0:
        write_atomically(workdir / TABLE_FILE, f"From step {step} of {folder}\n\n{text}\n\n{_list(found)}\n")
    print_on_primary(f"Starting from step {step} of {folder}:\n{text}\nEvery variable: {workdir / TABLE_FILE}")
    return state.replace(
        generator=_replace(state.generator, found["generator"]),
        discriminator=_replace(state.discriminator, found["discriminator"]),
        ema=_put(state.ema, found["average"]),
    )


def _read_source(config: RunConfig) -> tuple[Path, RunConfig, int, tuple[str, ...]]:
    """Return folder, configuration, channels and class names of the source."""
    folder = Path(config.finetune.init_from).absolute()
    try:
        check_has_checkpoint(folder, config.finetune.checkpoint)
    except UserError as error:
        raise UserError(f"--init_from={config.finetune.init_from}: {error}") from None
    source, channels, names = read_run(folder)
    if source.network != config.network:
        raise UserError(
            f"{folder} is a run of {source.network}, and this one is of {config.network}: their networks have nothing in "
            f"common; give a run of {config.network}, or --config.network={source.network} and its settings."
        )
    return folder, source, channels, names


def _class_rows(config: RunConfig, source: Sequence[str], classes: Sequence[str], scales: bool) -> ClassRows:
    options = config.finetune
    gain = (len(classes) / max(len(source), 1)) ** 0.5 if scales else 1.0
    return ClassRows(match_classes(source, classes, options.classes), gain, options.class_noise, config.seed)


def _class_tables(config: RunConfig, channels: int, num_classes: int) -> dict[str, set]:
    """Return the paths of parameters with a row for each class: those whose shape changes with the number of classes."""

    def shapes(count: int) -> list[dict]:
        networks = jax.eval_shape(build_model(config, channels, count).init, jax.random.key(0))
        return [{path: x.shape for path, x in flatten_dict(variables).items()} for variables in networks]

    here, more = shapes(num_classes), shapes(num_classes + 1)
    return {
        part: {path for path, shape in one.items() if path[0] == "params" and two.get(path, shape)[:1] != shape[:1]}
        for part, one, two in zip(("generator", "discriminator"), here, more, strict=True)
    }


def _check_widths(part: str, params: dict, others: dict, config: RunConfig, source: RunConfig) -> None:
    """Refuse a network most of whose parameters have the names of the source's, and other shapes.

    The first axis may differ: of class tables, and of the inputs of the first layer.
    """
    ours, theirs = flatten_dict(params), flatten_dict(others)
    common = sorted(ours.keys() & theirs.keys())
    other = [path for path in common if theirs[path].shape[1:] != ours[path].shape[1:]]
    if 2 * sum(theirs[path].size for path in other) <= sum(theirs[path].size for path in common):
        return
    fields, wanted = flatten(config), flatten(source)
    options = [f"--config.{x}={wanted[x]}" for x in fields if x.startswith(_WIDTHS) and fields[x] != wanted[x]]
    path = other[0]
    raise UserError(
        f"The {part} of {config.finetune.init_from} is of another width: {'/'.join(path)} is {list(theirs[path].shape)} "
        f"there and {list(ours[path].shape)} here; take its settings: {' '.join(options)}."
    )


def _replace(network: NetworkState, found: Transfer) -> NetworkState:
    variables = _put(network.variables, found)
    return network.replace(params=variables.pop("params"), stats=variables)


def _put(variables: dict[str, Any], found: Transfer) -> dict[str, Any]:
    """Return the variables with the values found, on the devices that they are on."""

    def put(path: tuple[str, ...], old: jax.Array) -> jax.Array:
        if path not in found.values:
            return old
        value = found.values[path].astype(old.dtype)
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: value[index])

    return unflatten_dict({path: put(path, x) for path, x in flatten_dict(variables).items()})


def _describe(
    found: dict[str, Transfer], parts: dict, source_names: Sequence[str], class_names: Sequence[str], rows: ClassRows
) -> str:
    """Return a table of parameters by part and kind, and a line on the classes."""
    lines = [f"{'':15}{'copied':>12}{'class rows':>12}{'adapted':>12}{'fresh':>12}{'left there':>12}"]
    for part, result in found.items():
        ours, theirs = (
            {path: x.size for path, x in flatten_dict(tree).items() if path[0] == "params"} for tree in parts[part]
        )
        kinds = (result.copied, result.tables, result.widened, result.fresh)
        counts = [sum(ours.get(path, 0) for path in kind) for kind in kinds]
        counts.append(sum(theirs.get(path, 0) for path in result.left))
        lines.append(f"{part:15}" + "".join(f"{count:12,}" for count in counts))
    known = sum(row >= 0 for row in rows.rows)
    unused = len(source_names) - len(set(rows.rows) - {-1})
    mean = f", {len(class_names) - known} from the mean of all plus noise" if known < len(class_names) else ""
    return "\n".join(
        [
            *lines,
            f"{known} of {len(class_names)} classes start from their own rows{mean}; {unused} of the source's are left.",
        ]
    )


def _list(found: dict[str, Transfer]) -> str:
    kinds = ("copied", "tables", "widened", "fresh", "left")
    titles = ("copied", "class rows", "adapted", "fresh", "left there")
    lines = []
    for part, result in found.items():
        for kind, title in zip(kinds, titles, strict=True):
            lines += [f"{part}  {title:11}{'/'.join(path)}" for path in getattr(result, kind)]
    return "\n".join(lines)
