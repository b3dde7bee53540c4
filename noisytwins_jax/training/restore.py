"""Loading of a run's data and of a checkpoint's state, with checks that all processes agree.

In a run of several processes, all of them must call these functions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from noisytwins_jax.config import RunConfig, flatten
from noisytwins_jax.data.registry import load_data
from noisytwins_jax.data.source import DataSplits
from noisytwins_jax.models.model import Model
from noisytwins_jax.training.build_model import build_model
from noisytwins_jax.training.checkpoint import Checkpoints
from noisytwins_jax.training.fault_tolerance.consistency import check_consistency, code_fingerprint
from noisytwins_jax.training.instance_conditioning import with_instances
from noisytwins_jax.training.state import TrainState
from noisytwins_jax.training.step import TrainingStep
from noisytwins_jax.training.workdir import cache_dir, open_workdir
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.multihost import raise_on_all_processes
from noisytwins_jax.utils.sharding import Layout


def load_run_data(config: RunConfig, arguments: Mapping[str, Any] | None = None) -> DataSplits:
    """Load the data of a run, and check that all of its processes have the same.

    Raises:
      UserError: in all processes: the data cannot be loaded, or the processes differ in configuration, `arguments`, code,
        version of JAX or images.
    """
    with raise_on_all_processes():
        splits = load_data(config.data)
    check_run_consistency(config, arguments, {"the training images": splits.train.fingerprint})
    return splits


def check_run_consistency(
    config: RunConfig, arguments: Mapping[str, Any] | None = None, others: Mapping[str, str] | None = None
) -> None:
    """Check that all processes have the same configuration, `arguments`, code, version of JAX, and `others`.

    Raises:
      UserError: in all processes.
    """
    facts = {f"config.{name}": repr(value) for name, value in flatten(config).items()}
    facts |= {f"--{name}": repr(value) for name, value in (arguments or {}).items()}
    facts |= {"the code of noisytwins_jax": code_fingerprint(), "the version of JAX": jax.__version__}
    check_consistency(facts | dict(others or {}))


def restore_generator(
    config: RunConfig, workdir: str | Path, which: str = "latest", **arguments: Any
) -> tuple[DataSplits, Path, int, dict[str, Any]]:
    """Return the data, the opened workdir, and step and variables of a checkpoint's averaged generator.

    Raises:
      UserError: as `check_has_checkpoint`, `load_run_data` (`arguments` too must be the same in all processes),
        `open_workdir` and `restore_ema`.
    """
    check_has_checkpoint(workdir, which)
    splits = load_run_data(config, arguments)
    with raise_on_all_processes():
        workdir = open_workdir(workdir, config)
    step, ema = restore_ema(
        config, workdir, which, build_model(config, splits.train.channels, splits.train.num_classes)
    )
    return with_instances(config, splits, cache_dir(workdir)), workdir, step, ema


def check_has_checkpoint(workdir: str | Path, which: str | int) -> None:
    """Check that a workdir has checkpoints, and that `which` is latest, best or a step.

    Raises:
      UserError: otherwise.
    """
    if which not in ("latest", "best") and not str(which).isdigit():
        raise UserError(f"--checkpoint={which} is no checkpoint; give latest, best or a step, for example 1000.")
    if not Path(workdir, "checkpoints").is_dir():
        if any(path.suffix in (".pth", ".pkl", ".bin") for path in Path(workdir).glob("*")):
            raise UserError(
                f"{workdir} has files of PyTorch; make a run of them first: python -m noisytwins_jax.convert from-torch "
                f"{workdir} --workdir=…"
            )
        raise UserError(
            f"{Path(workdir).absolute()} holds no checkpoints; train first (--mode=train), or give the folder of a run."
        )


def restore_ema(config: RunConfig, workdir: Path, which: str | int, model: Model) -> tuple[int, dict[str, Any]]:
    """Return step and variables of a checkpoint's averaged generator.

    Raises:
      UserError: there is no such checkpoint, none can be read, or it is of another architecture.
    """
    step, state = restore_fields(config, workdir, which, model, ["ema"])
    return step, state["ema"]


def restore_fields(
    config: RunConfig, workdir: Path, which: str | int, model: Model, fields: Sequence[str]
) -> tuple[int, dict[str, Any]]:
    """Return step and the named fields of a checkpoint's state, split over all devices; raises as `restore_ema`."""
    layout = Layout(fsdp=jax.device_count())  # whatever it was trained on
    abstract = TrainingStep(config, model).abstract_state(layout.state_shardings)
    return _restore(workdir, which, {name: getattr(abstract, name) for name in fields})


def restore_state(config: RunConfig, workdir: Path, which: str | int, model: Model) -> tuple[int, TrainState]:
    """Return step and whole state of a checkpoint, on one device of this process; raises as `restore_ema`."""
    layout = Layout(jax.local_devices()[:1])
    return _restore(workdir, which, TrainingStep(config, model).abstract_state(layout.state_shardings))


def _restore(workdir: Path, which: str | int, abstract: Any) -> tuple[int, Any]:
    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore(abstract, str(which))
    if restored is None:
        raise UserError(f"There is no whole checkpoint in {workdir}; train first (--mode=train).")
    return restored.step, restored.state
