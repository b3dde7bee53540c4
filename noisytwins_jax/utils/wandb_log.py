"""Logging to Weights & Biases, an optional package."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from noisytwins_jax.utils.errors import UserError, first_line
from noisytwins_jax.utils.files import write_atomically

RUN_ID_FILE = "wandb_id.txt"
TIMEOUT = 30.0  # seconds that a training waits for the server, at its start and at its end


class WandbLog:
    """A run in Weights & Biases of the numbers, images, tables and configuration of a training.

    Its id is kept in the workdir, and a training that resumes continues it. Entity, mode, key and server are those of
    wandb's environment variables. No failure of it stops a training: without the server (no network, not logged in) the
    run is kept in ``<workdir>/wandb``, to be uploaded later; after any other error nothing more is sent.
    """

    def __init__(self, project: str, workdir: str | Path, name: str, config: Mapping[str, Any]):
        """Import the package; `start` starts the run.

        Args:
          project: the project's name; empty to write nothing (then the package is not needed).
          workdir: directory of the training.
          name: name of the run.
          config: the configuration, a tree.

        Raises:
          UserError: the package is not installed.
        """
        self._project, self._workdir = project, Path(workdir).absolute()
        self._name, self._config = name, config
        self._run: Any = None
        if not project:
            return
        try:
            from wandb import init  # noqa: F401  # a folder named wandb can be imported, but has no functions
        except ImportError:
            raise UserError(
                f"config.wandb={project} needs the package of Weights & Biases: pip install -e '.[wandb]' (or pip install "
                "wandb), or leave the field empty."
            ) from None

    def __enter__(self) -> "WandbLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        """End the run, as failed if there was an exception."""
        self._guard(lambda run: run.finish(exit_code=int(kind is not None)))
        self._run = None

    def start(self) -> None:
        """Start the run, or continue the workdir's; print where it is. Call it once the workdir exists."""
        if not self._project or self._run is not None:
            return
        try:
            try:
                run = self._init(None)
            except Exception as error:
                run = self._init("offline")
                _print(
                    f"Weights & Biases cannot be used now ({first_line(error)}), so the run is kept on disk. Log in with "
                    "`wandb login`, or connect the machine, and upload it later:"
                )
            self._run = run
            if run.disabled:  # WANDB_MODE=disabled
                return
            write_atomically(self._workdir / RUN_ID_FILE, run.id + "\n")
            folder = Path(run.dir).parent  # its `files` are what `dir` names
            _print(f"Weights & Biases: {run.url or f'wandb sync {folder}'}")
        except Exception as error:
            self._give_up(error)

    def _init(self, mode: str | None) -> Any:
        import wandb

        # Silent, or it would ask for a key in a terminal and wait for the answer.
        wandb.setup(settings=wandb.Settings(silent=True))
        saved = self._workdir / RUN_ID_FILE
        return wandb.init(
            project=self._project,
            dir=str(self._workdir),
            id=saved.read_text().strip() if saved.exists() else None,
            resume="allow",
            name=self._name,
            config=dict(self._config),
            allow_val_change=True,  # a training may resume with another length
            mode=mode,
            settings=wandb.Settings(init_timeout=TIMEOUT, finish_timeout=TIMEOUT),
        )

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by name.

        The server takes no steps before the last one: after a return to an earlier checkpoint they are left out.
        """
        self._guard(lambda run: run.log(dict(values), step=step))

    def write_images(self, step: int, images: Mapping[str, np.ndarray | Image.Image]) -> None:
        """Log images by name, as `MetricsWriter.write_images`."""

        def log(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(image) for name, image in images.items()}, step=step)

        self._guard(log)

    def write_table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log a table, whose columns are the keys of its rows."""

        def log(run: Any) -> None:
            import wandb

            columns = list(dict.fromkeys(key for row in rows for key in row))
            data = [[row.get(key) for key in columns] for row in rows]
            run.log({name: wandb.Table(columns=columns, data=data)}, step=step)

        self._guard(log)

    def _guard(self, action: Callable[[Any], None]) -> None:
        """Call `action` with the run, if there is one; give up on an error."""
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        _print(
            f"Weights & Biases failed ({first_line(error)}); training goes on without it, and metrics.jsonl and TensorBoard "
            "have everything. Run the same command again to resume with it."
        )


def _print(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
