"""Finished parts of a long evaluation are reused; damaged ones are computed again."""

import os
import time

import numpy as np
import pytest

from noisytwins_jax.metrics.resumable_chunks import ResumableCache, resumable_chunks


def squares(computed):
    def compute(number):
        computed.append(number)
        return {"x": np.arange(number + 1) ** 2, "text": np.array(f"part {number}")}

    return compute


def test_resumes_after_an_interruption_with_the_same_result(tmp_path):
    folder, computed = tmp_path / "work", []
    whole = list(resumable_chunks(None, 4, squares([])))

    def stops(number):
        if number == 2:
            raise KeyboardInterrupt
        return squares(computed)(number)

    with pytest.raises(KeyboardInterrupt):
        list(resumable_chunks(folder, 4, stops))
    assert computed == [0, 1]
    again = list(resumable_chunks(folder, 4, squares(computed)))
    assert computed == [0, 1, 2, 3]
    for one, other in zip(again, whole, strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])
        assert str(one["text"]) == str(other["text"])
    assert sorted(path.name for path in folder.iterdir()) == [f"part_0000{i}.npz" for i in range(4)]


@pytest.mark.parametrize("damage", [b"", b"not a zip file", None])
def test_a_damaged_part_is_computed_again(tmp_path, damage):
    list(resumable_chunks(tmp_path, 2, squares([])))
    path = tmp_path / "part_00001.npz"
    path.write_bytes(path.read_bytes()[:-30] if damage is None else damage)
    computed = []
    assert list(resumable_chunks(tmp_path, 2, squares(computed)))[1]["x"].tolist() == [0, 1]
    assert computed == [1]
    list(resumable_chunks(tmp_path, 2, squares(computed)))
    assert computed == [1]


def test_between_is_called_after_parts_that_are_computed(tmp_path):
    files = []
    list(resumable_chunks(tmp_path, 2, squares([]), lambda: files.append(len(list(tmp_path.iterdir())))))
    assert files == [1, 2]
    list(resumable_chunks(tmp_path, 2, squares([]), lambda: pytest.fail("nothing was computed")))


def test_a_result_replaces_its_parts(tmp_path):
    cache = ResumableCache(tmp_path / "cache")
    assert cache.open("it") is None
    list(resumable_chunks(cache.folder("images"), 2, squares([])))
    cache.finish({"fid": 1.5, "name": "π"})
    assert [path.name for path in (tmp_path / "cache" / "it").iterdir()] == ["result.npz"]
    again = ResumableCache(tmp_path / "cache")
    assert again.open("it") == {"fid": 1.5, "name": "π"} and again.open("another") is None
    again.remove_finished()
    assert not (tmp_path / "cache").exists()
    again.remove_finished()


def test_work_in_progress_stays_and_abandoned_work_is_removed(tmp_path):
    for name in ("abandoned", "other"):
        list(resumable_chunks(tmp_path / name / "images", 1, squares([])))
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / "abandoned" / "images" / "part_00000.npz", (long_ago, long_ago))
    ResumableCache(tmp_path).remove_finished()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]  # another run may be computing it


def test_without_a_directory_nothing_is_stored():
    cache = ResumableCache()
    assert cache.open("it") is None and cache.folder("images") is None
    cache.finish({})
    cache.remove_finished()
