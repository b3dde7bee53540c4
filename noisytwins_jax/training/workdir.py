"""A run's directory: checks that it can be used, and the files that describe the run."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
from clu import parameter_overview

from noisytwins_jax.config import RunConfig, differences, flatten, parse_flat
from noisytwins_jax.data.aspect import Aspect
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.files import write_atomically
from noisytwins_jax.utils.multihost import print_on_primary
from noisytwins_jax.utils.retry import retry

CONFIG_FILE = "config.json"
CLASSES_FILE = "classes.json"
PARAMETERS_FILE = "parameters.txt"


def open_workdir(path: str | Path, config: RunConfig) -> Path:
    """Create the directory if needed, check its configuration against this one, and turn on the compilation cache.

    Compiled programs and the feature classifier are cached in ``cache/`` beside the workdir, for other runs to use.

    Raises:
      UserError: it is not local, cannot be written, or belongs to a configuration that trains differently.
    """
    if "://" in os.fspath(path):
        raise UserError(f"The workdir {path} is not a local directory; give one, and copy it elsewhere afterwards.")
    workdir = Path(path).absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"The workdir {workdir} cannot be written ({error.strerror}); give another --workdir."
        ) from None
    saved = read_config(workdir)
    if saved is not None:
        changed = differences(saved, json.loads(_config_text(config)))  # both from JSON, which has no tuples
        if changed:
            raise UserError(
                f"The workdir {workdir} was made with another configuration: {'; '.join(changed)}. Give another "
                "--workdir for the new configuration, or the old values to continue."
            )
    use_compilation_cache(workdir)
    return workdir


def write_config(workdir: Path, config: RunConfig) -> None:
    """Write the configuration of a run that trains to its workdir."""
    if jax.process_index() == 0:
        write_atomically(workdir / CONFIG_FILE, _config_text(config))


def write_parameter_tables(workdir: Path, state: TrainState) -> None:
    """Write tables of both networks' parameters to ``parameters.txt``, and print their totals.

    With several devices the tables have the shardings: the mesh axis, if any, that splits each axis of an array.

    Args:
      workdir: the run's directory.
      state: arrays or `jax.ShapeDtypeStruct`, with shardings.
    """
    networks = {"generator": state.generator.params, "discriminator": state.discriminator.params}
    include_stats = "sharding" if any(x.sharding.num_devices > 1 for x in jax.tree.leaves(networks)) else False
    totals, tables = [], []
    for name, params in networks.items():
        table = parameter_overview.get_parameter_overview(params, include_stats=include_stats)
        table, _, _ = table.rpartition("\n")  # clu's total is a float where a parameter is a scalar
        totals.append(f"{name}: {sum(x.size for x in jax.tree.leaves(params)):,}")
        tables.append(f"{totals[-1].capitalize()} parameters\n{table}\n")
    path = workdir / PARAMETERS_FILE
    if jax.process_index() == 0:
        write_atomically(path, "\n".join(tables))
    print_on_primary(f"{totals[0].capitalize()} parameters, {totals[1]}; the tables are in {path}.")


def write_classes(workdir: Path, channels: int, class_names: Sequence[str], aspect: Aspect | None = None) -> None:
    """Write what must be known of a run's images to use its generator without the data: classes, channels, aspect ratio."""
    classes = {"channels": channels, "class_names": list(class_names), "aspect": aspect and aspect._asdict()}
    text = json.dumps(classes, indent=2, ensure_ascii=False) + "\n"
    if jax.process_index() == 0:
        write_atomically(workdir / CLASSES_FILE, text)


def read_classes(workdir: Path) -> tuple[int, tuple[str, ...]]:
    """Read the number of channels of a run's images, and the names of its classes.

    Raises:
      UserError: the file is missing or damaged.
    """
    channels, class_names, _ = _read_classes_file(workdir)
    return channels, class_names


def read_aspect(workdir: Path) -> Aspect | None:
    """Read the aspect ratio of a run's pictures, None if they share none; raises as `read_classes`."""
    return _read_classes_file(workdir)[2]


def _read_classes_file(workdir: Path) -> tuple[int, tuple[str, ...], Aspect | None]:
    path = workdir / CLASSES_FILE
    try:
        classes = json.loads(retry(path.read_text, f"Reading {path}"))
        aspect = Aspect(**classes["aspect"]) if classes.get("aspect") else None  # absent in earlier versions
        return int(classes["channels"]), tuple(map(str, classes["class_names"])), aspect
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing, as in runs of an earlier version; run the command that trained the run once more to "
            "write it."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is not as this program writes it; run the command that trained the run once more."
        ) from None


def _config_text(config: RunConfig) -> str:
    return json.dumps(flatten(config), indent=2) + "\n"


def read_config(workdir: Path) -> dict | None:
    """Read the flattened configuration of a workdir; None if it has none."""
    path = workdir / CONFIG_FILE
    try:
        return json.loads(retry(path.read_text, f"Reading {path}"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except json.JSONDecodeError:
        raise UserError(f"{path} is not readable JSON; restore it or give another --workdir.") from None


def read_run(workdir: Path, config: RunConfig | None = None) -> tuple[RunConfig, int, tuple[str, ...]]:
    """Read the configuration of a run (unless it is given), the channels of its images, and the names of its classes.

    Raises:
      UserError: the run lacks one of the files, or it is damaged.
    """
    if config is None:
        fields = read_config(workdir)
        if fields is None:
            raise UserError(f"{workdir} has checkpoints but no config.json, which says what of; restore it.")
        config = parse_flat(fields)
    return config, *read_classes(workdir)


def cache_dir(workdir: Path) -> Path:
    """Return the folder of cached results that are expensive to compute, shared by runs in the same folder."""
    return workdir.parent / "cache"


def use_compilation_cache(workdir: Path) -> None:
    """Cache compiled programs beside the runs, unless ``JAX_COMPILATION_CACHE_DIR`` names another place."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_dir(workdir) / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
