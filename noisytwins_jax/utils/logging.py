"""Logging of a run: ``metrics.jsonl``, TensorBoard, Weights & Biases, and a progress bar."""

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from absl import logging as absl_logging
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.wandb_log import WandbLog

METRICS_FILE = "metrics.jsonl"
LINE_INTERVAL = 10.0  # seconds between progress lines when there is no terminal to draw a bar on


def quiet_libraries() -> None:
    """Silence log messages of libraries; absl's are shown with ``--verbosity``.

    Those of asyncio are about checkpoint files that could not be written, which `CheckpointRetry` reports.
    """
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def _parse(line: bytes) -> dict[str, Any] | None:
    """Parse the record on a line; None if the line is torn (a crash in mid-write) or is not a record."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read a ``metrics.jsonl``.

    Args:
      path: the file, or the run's directory.

    Returns:
      The records in the order written: ``{"step": int, name: float | None, ...}``. None stands for a number that was
      not finite. Torn lines are skipped.

    Raises:
      UserError: there is no such file.
    """
    path = Path(path)
    path = path / METRICS_FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"There is no {path}; give the directory of a run that has logged at least one step.")
    return [record for line in path.read_bytes().splitlines() if (record := _parse(line)) is not None]


class MetricsWriter:
    """Writer of a run's metrics and images to ``<workdir>/metrics.jsonl`` and ``<workdir>/tensorboard``.

    ``metrics.jsonl`` has one JSON object per line, flushed as it is written, so that it can be followed with ``tail -f``
    and survives a killed process. Numbers that are not finite are written as null (JSON has no NaN).
    """

    def __init__(self, workdir: str | os.PathLike, disable: bool = False, wandb: WandbLog | None = None):
        """Open the files of `workdir` for appending, creating the directory if needed, and start `wandb`.

        Args:
          workdir: a directory of the local file system.
          disable: write nothing (in all processes of a run but the primary one).
          wandb: where the same is logged, too; the caller ends it.

        Raises:
          UserError: `workdir` is an address such as gs://bucket/run, which cannot be appended to.
        """
        if "://" in os.fspath(workdir):
            raise UserError(f"Metrics are appended to a local file, which {workdir} is not; give a local directory.")
        self._disable = disable
        self._directory = Path(workdir)
        self._purge_step: int | None = None
        self._board: SummaryWriter | None = None
        self._wandb = wandb
        if disable:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        self._path = self._directory / METRICS_FILE
        if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
            self._rewrite(lambda record: True)  # a torn last line would swallow the first record appended to it
        self._file = self._path.open("a", encoding="utf-8")
        if wandb is not None:
            wandb.start()

    def _rewrite(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Atomically rewrite the file with the readable records for which `keep` is true."""
        lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        kept = [line for line in lines if (record := _parse(line)) is not None and keep(record)]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(b"".join(line + b"\n" for line in kept))
        temporary.replace(self._path)

    def truncate_after(self, step: int) -> None:
        """Discard the records of steps later than `step`; call it when a run resumes from a checkpoint.

        The steps after the checkpoint are about to be run again; without this, they would be logged twice. TensorBoard's
        files are append-only; there, the later steps are marked as superseded.
        """
        if self._disable:
            return
        self._file.close()
        self._rewrite(lambda record: record["step"] <= step)
        self._file = self._path.open("a", encoding="utf-8")
        self._purge_step = step + 1
        self._close_board()

    def write_scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Log scalars (of Python, NumPy or on a device, from which they are fetched) by name."""
        if self._disable:
            return
        numbers = {name: float(value) for name, value in values.items()}
        record = {"step": int(step)} | {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        for name, number in numbers.items():
            self._open_board().add_scalar(name, number, step)
        if self._wandb is not None:
            self._wandb.write_scalars(int(step), numbers)

    def write_images(self, step: int, images: Mapping[str, np.ndarray | Image.Image]) -> None:
        """Log images, each a PIL image or uint8 [H, W, C] with C = 1 or 3, to TensorBoard and Weights & Biases."""
        if self._disable:
            return
        for name, image in images.items():
            pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
            self._open_board().add_image(name, pixels, step, dataformats="HWC")
        if self._wandb is not None:
            self._wandb.write_images(step, images)

    def close(self) -> None:
        """Flush and close the files."""
        if not self._disable:
            self._file.close()
            self._close_board()

    def _open_board(self) -> SummaryWriter:
        if self._board is None:  # late, since truncate_after decides the purge step of the new event file
            self._board = SummaryWriter(
                str(self._directory / "tensorboard"),
                purge_step=self._purge_step,
                flush_secs=30,
                filename_suffix=f".{time.time_ns()}",  # names are unique to the second only: a restart would overwrite
            )
        return self._board

    def _close_board(self) -> None:
        if self._board is not None:
            with contextlib.suppress(OSError):  # a full disk, which is reported elsewhere
                self._board.close()
            self._board = None


def format_duration(seconds: float) -> str:
    """Format a duration as ``42 s``, ``3 min 12 s``, ``5 h 04 min`` or ``2 d 03 h``."""
    total = round(max(seconds, 0.0))
    minutes, s = divmod(total, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h:02d} h"
    if hours:
        return f"{h} h {m:02d} min"
    return f"{m} min {s:02d} s" if minutes else f"{s} s"


def _draws_bars(stream: TextIO) -> bool:
    """Return whether a stream is a terminal with a size; without one, as in some containers, tqdm draws nothing."""
    if not stream.isatty():
        return False
    try:
        return min(os.get_terminal_size(stream.fileno())) > 0
    except OSError:  # a terminal that is not a device of this machine has no size
        return True


class Progress:
    """Progress bar of a training run: kimg, images per second, losses and the time left.

    If standard error is not a terminal (a batch job's log), a plain line is printed about every ten seconds instead.
    """

    def __init__(
        self,
        total_kimg: float,
        disable: bool = False,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Create the bar; it is drawn at the first update.

        Args:
          total_kimg: length of the run, in thousands of real images seen by the discriminator.
          disable: print nothing (in all processes but the primary one).
          stream: standard error by default.
          clock: returns seconds, monotonic; replaced in tests.
        """
        self._total, self._disable = float(total_kimg), disable
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._mark: tuple[float, float] | None = None  # (kimg, seconds) of the last update
        self._rate = math.nan  # kimg per second
        self._line: str | None = None  # the last line not yet printed
        self._printed_at = -math.inf
        self._bar: tqdm | None = None

    def update(self, kimg: float, **numbers: Any) -> None:
        """Update the bar to `kimg` thousand images in all, with numbers (losses, ...) to display."""
        if self._disable:
            return
        self._measure(kimg)
        parts = [f"{kimg:.1f}/{self._total:.1f} kimg"]
        if math.isfinite(self._rate):
            parts.append(f"{1000.0 * self._rate:.0f} img/s")
        parts += [f"{name} {float(value):.3g}" for name, value in numbers.items()]
        if math.isfinite(self._rate) and self._rate > 0:
            parts.append(f"{format_duration((self._total - kimg) / self._rate)} left")
        text = "  ".join(parts)
        if self._bar is None and _draws_bars(self._stream):
            self._bar = tqdm(
                total=self._total,
                initial=kimg,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
            )
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(kimg - self._bar.n)  # draws at most ten times a second
            return
        self._line = text
        if self._clock() - self._printed_at >= LINE_INTERVAL:
            self._print_line()

    def _measure(self, kimg: float) -> None:
        """Smooth the speed over updates; the time before the first update, which includes compilation, is left out."""
        now = self._clock()
        if self._mark is not None and now > self._mark[1]:
            rate = (kimg - self._mark[0]) / (now - self._mark[1])
            self._rate = rate if math.isnan(self._rate) else 0.7 * self._rate + 0.3 * rate
        self._mark = kimg, now

    def _print_line(self) -> None:
        if self._line is not None:
            print(self._line, file=self._stream, flush=True)
            self._line, self._printed_at = None, self._clock()

    def write(self, message: str) -> None:
        """Print a message without breaking the bar."""
        if self._disable:
            return
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        else:
            print(message, file=self._stream, flush=True)

    def close(self) -> None:
        """End the bar, leaving its last state on the screen."""
        if self._bar is not None:
            self._bar.close()
        elif not self._disable:
            self._print_line()
