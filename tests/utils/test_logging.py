import io
import json
import math
import os
import struct

import numpy as np
import pytest
from PIL import Image

from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.logging import MetricsWriter, Progress, format_duration, read_metrics


def test_lines_are_on_disk_before_close(tmp_path):
    writer = MetricsWriter(tmp_path / "run")
    writer.write_scalars(10, {"loss/d": np.float32(0.5), "loss/g": 2})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 10, "loss/d": 0.5, "loss/g": 2.0}]
    writer.close()


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write_scalars(1, {"a": math.nan, "b": math.inf, "c": 1.0})
    writer.close()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert read_metrics(tmp_path) == [{"step": 1, "a": None, "b": None, "c": 1.0}]


def test_resume_drops_later_steps_and_goes_on(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in (10, 20, 30):
        writer.write_scalars(step, {"x": step})
    writer.close()
    writer = MetricsWriter(tmp_path)
    writer.truncate_after(20)
    writer.write_scalars(25, {"x": 25})
    writer.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [10, 20, 25]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("torn", ['{"step": 30, "x": 1', '{"step"', "12", '{"x": 1.0}'])
def test_torn_last_line(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "x": 1.0}\n' + torn)
    assert [record["step"] for record in read_metrics(path)] == [10]
    writer = MetricsWriter(tmp_path)
    writer.write_scalars(20, {"x": 2.0})
    writer.close()
    assert path.read_text() == '{"step": 10, "x": 1.0}\n{"step": 20, "x": 2.0}\n'


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "x": 1.0}')
    writer = MetricsWriter(tmp_path)
    writer.write_scalars(20, {"x": 2.0})
    writer.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [10, 20]


def test_disabled_writer_touches_nothing(tmp_path):
    writer = MetricsWriter(tmp_path / "run", disable=True)
    writer.truncate_after(0)
    writer.write_scalars(1, {"x": 1.0})
    writer.write_images(1, {"x": np.zeros((8, 8, 1), np.uint8)})
    writer.close()
    assert not (tmp_path / "run").exists()


def test_addresses_and_missing_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="local directory"):
        MetricsWriter("gs://bucket/run")
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        read_metrics(tmp_path)


def test_tensorboard_has_scalars_and_images_and_no_doubled_steps(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = MetricsWriter(tmp_path)
    for step in (10, 20, 30):
        writer.write_scalars(step, {"x": step})
    writer.truncate_after(20)
    writer.write_scalars(30, {"x": -1.0})
    writer.write_images(30, {"grey": np.zeros((8, 8, 1), np.uint8), "colour": Image.new("RGB", (16, 8))})
    writer.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("x")] == [(10, 10.0), (20, 20.0), (30, -1.0)]
    assert [(image.width, image.height) for image in (*events.Images("grey"), *events.Images("colour"))] == [
        (8, 8),
        (16, 8),
    ]


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_progress_prints_a_line_every_ten_seconds_without_a_terminal():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(96.0, stream=stream, clock=clock)
    for second in range(25):
        clock.now = 100.0 + second
        progress.update(second * 1.5, loss_d=1.25)
    progress.write("checkpoint saved")
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5  # seconds 0, 10, 20, the message, and the last state at close
    assert lines[0] == "0.0/96.0 kimg  loss_d 1.25"
    assert lines[1] == "15.0/96.0 kimg  1500 img/s  loss_d 1.25  54 s left"
    assert lines[3] == "checkpoint saved"
    assert lines[4].startswith("36.0/96.0 kimg")


def test_progress_leaves_the_first_compilation_and_a_resumed_runs_past_out_of_the_speed():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(100.0, stream=stream, clock=clock)
    clock.now += 600.0
    progress.update(50.1)
    clock.now += 10.0
    progress.update(60.1)
    assert stream.getvalue().splitlines()[-1] == "60.1/100.0 kimg  1000 img/s  40 s left"


def test_progress_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    progress = Progress(10.0, stream=stream)
    progress.update(7.5, loss_g=0.125)
    progress.write("checkpoint saved")
    progress.close()
    text = stream.getvalue()
    assert " 75%|" in text
    assert "7.5/10.0 kimg" in text
    assert "loss_g 0.125" in text
    assert "checkpoint saved" in text
    assert text.endswith("\n")


def read_to_end(terminal: int) -> str:
    """Everything written to a pseudo-terminal whose other side is closed; it comes in pieces."""
    pieces = []
    while True:
        try:
            pieces.append(os.read(terminal, 65536))
        except OSError:  # Linux's way of saying that the other side is closed
            return b"".join(pieces).decode()
        if not pieces[-1]:
            return b"".join(pieces).decode()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
@pytest.mark.parametrize("sized", [False, True])
def test_a_terminal_without_a_size_gets_lines(sized):
    reader, writer = os.openpty()  # its size is 0 x 0
    if sized:
        fcntl = pytest.importorskip("fcntl")
        fcntl.ioctl(writer, pytest.importorskip("termios").TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    with os.fdopen(writer, "w") as stream:
        progress = Progress(10.0, stream=stream)
        progress.update(5.0, loss_g=0.125)
        progress.close()
    text = read_to_end(reader)
    os.close(reader)
    assert "5.0/10.0 kimg  loss_g 0.125" in text
    assert ("50%|" in text) == sized


def test_disabled_progress_is_silent():
    stream = io.StringIO()
    progress = Progress(10.0, disable=True, stream=stream)
    progress.update(1.0)
    progress.write("x")
    progress.close()
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3 * 3600 + 240, "3 h 04 min"), (183600, "2 d 03 h")],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text
