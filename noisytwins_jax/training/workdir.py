"""A run's directory: what it was made with, and whether it can be used."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

from noisytwins_jax.config import RunConfig, differences, flatten
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.files import write_atomically
from noisytwins_jax.utils.retry import retry

CONFIG_FILE = "config.json"
CLASSES_FILE = "classes.json"


def open_workdir(path: str | Path, config: RunConfig) -> Path:
    """Makes the directory if need be, compares its configuration with this one, and turns on the compilation cache.

    Compiled programs and the feature classifier are kept in ``cache/`` beside the workdir, for other runs to use.

    Raises:
      UserError: it is not local, cannot be written, or was made with a configuration that trains differently.
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
    known = read_config(workdir)
    if known is not None:
        changed = differences(known, json.loads(_as_text(config)))  # both as JSON has them: a tuple is a list there
        if changed:
            raise UserError(
                f"The workdir {workdir} was made with another configuration: {'; '.join(changed)}. Give another "
                "--workdir for the new configuration, or the old values to go on."
            )
    use_compilation_cache(workdir)
    return workdir


def write_config(workdir: Path, config: RunConfig) -> None:
    """Writes down what an opened workdir's run is trained with; for the one who trains."""
    if jax.process_index() == 0:
        write_atomically(workdir / CONFIG_FILE, _as_text(config))


def write_classes(workdir: Path, channels: int, class_names: Sequence[str]) -> None:
    """Writes down what a run's images are of, so that its generator can be used without them."""
    text = json.dumps({"channels": channels, "class_names": list(class_names)}, indent=2, ensure_ascii=False) + "\n"
    if jax.process_index() == 0:
        write_atomically(workdir / CLASSES_FILE, text)


def read_classes(workdir: Path) -> tuple[int, tuple[str, ...]]:
    """Channels of a run's images, and the names of its classes.

    Raises:
      UserError: they are not written down.
    """
    path = workdir / CLASSES_FILE
    try:
        found = json.loads(retry(path.read_text, f"Reading {path}"))
        return int(found["channels"]), tuple(map(str, found["class_names"]))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing, as in runs of an earlier version; the command that trained the run writes it when it is "
            "given once more."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is not as this program writes it; give the command that trained the run once more."
        ) from None


def _as_text(config: RunConfig) -> str:
    return json.dumps(flatten(config), indent=2) + "\n"


def read_config(workdir: Path) -> dict | None:
    """The flattened configuration a workdir was made with, or ``None`` if it is new."""
    path = workdir / CONFIG_FILE
    try:
        return json.loads(retry(path.read_text, f"Reading {path}"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except json.JSONDecodeError:
        raise UserError(f"{path} is not readable JSON; restore it or give another --workdir.") from None


def cache_dir(workdir: Path) -> Path:
    """Where runs beside each other share what is dear to make."""
    return workdir.parent / "cache"


def use_compilation_cache(workdir: Path) -> None:
    """Cache compiled programs beside the runs, unless ``JAX_COMPILATION_CACHE_DIR`` names another place."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_dir(workdir) / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
