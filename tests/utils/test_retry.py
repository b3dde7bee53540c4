import errno
import os

import numpy as np
import pytest

from noisytwins_jax.data import pipeline
from noisytwins_jax.data.pipeline import training_batches
from noisytwins_jax.data.registry import load_splits
from noisytwins_jax.utils import retry as retry_module
from noisytwins_jax.utils.files import write_atomically
from noisytwins_jax.utils.retry import is_full, is_transient, retry


class Failing:
    """Raises each error once, then returns."""

    def __init__(self, *numbers):
        self.errors = [OSError(number, os.strerror(number)) for number in numbers]
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture
def waits(monkeypatch):
    """The waits, which take no time here."""
    waits = []
    monkeypatch.setattr(retry_module.time, "sleep", waits.append)
    return waits


def test_waits_longer_each_time(waits, capsys):
    assert retry(Failing(errno.EIO, errno.ESTALE, errno.ETIMEDOUT), "Reading x", first_wait=8.0) == "done"
    assert [8 * 2**n / 2 <= wait <= 8 * 2**n * 1.5 for n, wait in enumerate(waits)] == [True] * 3
    assert capsys.readouterr().err.startswith("Reading x failed (Input/output error); trying again in ")


def test_gives_up_with_the_last_error(waits):
    failing = Failing(errno.EIO, errno.EIO, errno.EBUSY)
    with pytest.raises(OSError, match="busy"):
        retry(failing, "Reading x", attempts=3)
    assert (failing.calls, len(waits)) == (3, 2)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENOENT])
def test_what_does_not_pass_is_raised_at_once(waits, number):
    failing = Failing(number)
    with pytest.raises(OSError, match=os.strerror(number)):
        retry(failing, "Reading x")
    assert (failing.calls, waits) == (1, [])


def test_other_errors_are_not_caught(waits):
    with pytest.raises(ValueError, match="invalid literal"):
        retry(lambda: int("x"), "Reading x")
    assert not waits


def test_causes_tell_what_happened():
    def caused(number):
        try:
            try:
                raise OSError(number, "deep down")
            except OSError as error:
                raise RuntimeError("cannot save") from error
        except RuntimeError as error:
            return error

    assert is_full(caused(errno.ENOSPC))
    assert not is_transient(caused(errno.ENOSPC))
    assert is_transient(caused(errno.EIO))
    assert not is_full(caused(errno.EIO))
    assert is_full(ValueError("OUT_OF_RANGE: Failed to write 9 bytes: File too large [os_error_code='27']"))
    assert not is_transient(ValueError("5"))
    assert not is_full(ValueError("27"))


def test_files_and_batches_are_read_and_written_again(waits, tmp_path, monkeypatch, capsys):
    trouble = Failing(errno.EIO)
    replace = type(tmp_path).replace
    monkeypatch.setattr(type(tmp_path), "replace", lambda self, target: (trouble(), replace(self, target)))
    write_atomically(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"

    splits = load_splits("synthetic", resolution=8, num_classes=2, num_images=20, channels=1)

    def batches():
        return training_batches(splits.train, batch_size=4, seed=0, mirror=True, num_threads=0)

    want = [next(batches()) for _ in range(2)]
    read, trouble = pipeline.read_images, Failing(errno.ESTALE, errno.EIO)
    monkeypatch.setattr(pipeline, "read_images", lambda *args: (trouble(), read(*args))[1])
    with batches() as again:
        np.testing.assert_array_equal(next(again)["image"], want[0]["image"])
    assert trouble.calls == 3
    assert "Reading batch 0 of the training images failed (Stale file handle)" in capsys.readouterr().err
