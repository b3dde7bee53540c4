"""Finished parts of a long evaluation survive; damaged ones are made again."""

import os
import time

import numpy as np
import pytest

from noisytwins_jax.metrics.parts import in_parts, remove_parts


def squares(made):
    def compute(number):
        made.append(number)
        return {"x": np.arange(number + 1) ** 2, "text": np.array(f"part {number}")}

    return compute


def test_goes_on_after_an_interruption_and_gives_the_same(tmp_path):
    folder, made = tmp_path / "work", []
    whole = list(in_parts(None, 4, squares([])))

    def stops(number):
        if number == 2:
            raise KeyboardInterrupt
        return squares(made)(number)

    with pytest.raises(KeyboardInterrupt):
        list(in_parts(folder, 4, stops))
    assert made == [0, 1]
    again = list(in_parts(folder, 4, squares(made)))
    assert made == [0, 1, 2, 3]
    for one, other in zip(again, whole, strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])
        assert str(one["text"]) == str(other["text"])
    assert sorted(path.name for path in folder.iterdir()) == [f"part_0000{i}.npz" for i in range(4)]


@pytest.mark.parametrize("damage", [b"", b"not a zip file", None])
def test_a_damaged_part_is_made_again(tmp_path, damage):
    list(in_parts(tmp_path, 2, squares([])))
    path = tmp_path / "part_00001.npz"
    path.write_bytes(path.read_bytes()[:-30] if damage is None else damage)
    made = []
    assert list(in_parts(tmp_path, 2, squares(made)))[1]["x"].tolist() == [0, 1]
    assert made == [1]
    list(in_parts(tmp_path, 2, squares(made)))
    assert made == [1]


def test_what_is_finished_and_what_was_abandoned_is_removed(tmp_path):
    for name in ("done", "abandoned", "other"):
        list(in_parts(tmp_path / name, 1, squares([])))
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / "abandoned" / "part_00000.npz", (long_ago, long_ago))
    remove_parts(tmp_path / "done")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]  # somebody may be at work on it
    remove_parts(None)
