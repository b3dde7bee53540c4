"""Finished parts of a long evaluation survive; damaged ones are made again."""

import os
import time

import numpy as np
import pytest

from noisytwins_jax.metrics.resumable_chunks import ResumableCache, resumable_chunks


def squares(made):
    def compute(number):
        made.append(number)
        return {"x": np.arange(number + 1) ** 2, "text": np.array(f"part {number}")}

    return compute


def test_goes_on_after_an_interruption_and_gives_the_same(tmp_path):
    folder, made = tmp_path / "work", []
    whole = list(resumable_chunks(None, 4, squares([])))

    def stops(number):
        if number == 2:
            raise KeyboardInterrupt
        return squares(made)(number)

    with pytest.raises(KeyboardInterrupt):
        list(resumable_chunks(folder, 4, stops))
    assert made == [0, 1]
    again = list(resumable_chunks(folder, 4, squares(made)))
    assert made == [0, 1, 2, 3]
    for one, other in zip(again, whole, strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])
        assert str(one["text"]) == str(other["text"])
    assert sorted(path.name for path in folder.iterdir()) == [f"part_0000{i}.npz" for i in range(4)]


@pytest.mark.parametrize("damage", [b"", b"not a zip file", None])
def test_a_damaged_part_is_made_again(tmp_path, damage):
    list(resumable_chunks(tmp_path, 2, squares([])))
    path = tmp_path / "part_00001.npz"
    path.write_bytes(path.read_bytes()[:-30] if damage is None else damage)
    made = []
    assert list(resumable_chunks(tmp_path, 2, squares(made)))[1]["x"].tolist() == [0, 1]
    assert made == [1]
    list(resumable_chunks(tmp_path, 2, squares(made)))
    assert made == [1]


def test_something_is_called_between_parts_that_are_computed(tmp_path):
    kept = []
    list(resumable_chunks(tmp_path, 2, squares([]), lambda: kept.append(len(list(tmp_path.iterdir())))))
    assert kept == [1, 2]
    list(resumable_chunks(tmp_path, 2, squares([]), lambda: pytest.fail("nothing was computed")))


def test_a_result_takes_the_place_of_its_parts(tmp_path):
    scratch = ResumableCache(tmp_path / "scratch")
    assert scratch.open("it") is None
    list(resumable_chunks(scratch.folder("images"), 2, squares([])))
    scratch.finish({"fid": 1.5, "name": "π"})
    assert [path.name for path in (tmp_path / "scratch" / "it").iterdir()] == ["result.npz"]
    again = ResumableCache(tmp_path / "scratch")
    assert again.open("it") == {"fid": 1.5, "name": "π"} and again.open("another") is None
    again.remove_finished()
    assert not (tmp_path / "scratch").exists()
    again.remove_finished()


def test_what_is_under_way_stays_and_what_was_abandoned_goes(tmp_path):
    for name in ("abandoned", "other"):
        list(resumable_chunks(tmp_path / name / "images", 1, squares([])))
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / "abandoned" / "images" / "part_00000.npz", (long_ago, long_ago))
    ResumableCache(tmp_path).remove_finished()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]  # somebody may be at work on it


def test_without_a_directory_nothing_is_kept():
    scratch = ResumableCache()
    assert scratch.open("it") is None and scratch.folder("images") is None
    scratch.finish({})
    scratch.remove_finished()
