import errno
import functools
import hashlib
import json
import os
import resource
import signal
from dataclasses import replace

import numpy as np
import pytest
from decode_records import decode
from grain.sources import ArrayRecordDataSource

from noisytwins_jax.data.prepare import shards
from noisytwins_jax.data.prepare.embedded import digits_lt, petals
from noisytwins_jax.data.prepare.listing import Item, Listing, RenderedImage
from noisytwins_jax.data.preprocessing import Preprocessing
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.retry import is_full

SMALL, LARGE = (shards.Format(size, 3, Preprocessing()) for size in (8, 64))


def noise(item, size=8):
    """Pixels that are drawn from the place; there are none at a negative one."""
    if item.location < 0:
        raise OSError(f"damaged at {item.location}\nand a second line")
    return np.random.default_rng(item.location).integers(0, 256, (size, size, 3), np.uint8)


def grey(item):
    return noise(item)[..., 0]


def drawn(item):
    return RenderedImage(noise(item), np.array([item.location / 3, -1.0], np.float32))


def no_space(item):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def killed(item):
    os.kill(os.getpid(), signal.SIGKILL)


def listing(train=12, reference=5, read=noise, damaged=()):
    """Three classes, class by class; every image has its own place."""
    splits = {
        split: [Item(f"{split}/{i}", 3 * i // count, -1 - i if i in damaged else start + i) for i in range(count)]
        for split, start, count in (("train", 0, train), ("reference", 10_000, reference))
    }
    return Listing(["a", "b", "c"], splits, read, "Noise.")


def one_shard(directory, format=SMALL, **changes):
    return shards.plan_shards(listing(**changes), format, directory, "set")[0]


def stored(shard):
    with ArrayRecordDataSource([str(shard.path)]) as source:
        return [decode(data, shard.format.shape) for data in source.__getitems__(range(len(source)))]


@pytest.fixture
def limit_files():
    """Sets the size above which no file can grow, in this process and in those that it starts."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size or before[0], before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_shard_and_notes(tmp_path):
    shard = one_shard(tmp_path)
    assert shards.read_metadata(shard) is None
    assert shards.write_shard(shard) == 0
    notes = shards.read_metadata(shard)
    images = [noise(item) for item in shard.items]
    assert notes.names == [item.name for item in shard.items]
    assert notes.labels == [item.label for item in shard.items]
    assert notes.hashes == [hashlib.sha256(image.tobytes()).hexdigest()[:32] for image in images]
    assert notes.size == shard.path.stat().st_size
    assert notes.sha256 == hashlib.sha256(shard.path.read_bytes()).hexdigest()
    assert (notes.factors, notes.wrong, notes.converted) == ([], {}, {})
    for image, item, record in zip(images, shard.items, stored(shard), strict=True):
        np.testing.assert_array_equal(record.image, image)
        assert (record.label, record.name, record.factors) == (item.label, item.name, None)
    assert set(tmp_path.iterdir()) == {shard.path, shard.metadata_path}


def test_same_bytes_again(tmp_path):
    first, second = (one_shard(tmp_path / name) for name in "ab")
    for shard in (first, second):
        shard.path.parent.mkdir()
        shards.write_shard(shard)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.metadata_path.read_bytes() == second.metadata_path.read_bytes()


def test_unreadable_images_are_left_out(tmp_path):
    shard = one_shard(tmp_path, damaged=(2, 7))
    assert shards.write_shard(shard) == 2
    notes = shards.read_metadata(shard)
    whole = [item.name for item in shard.items if item.location >= 0]
    assert len(whole) == 10
    assert notes.names == whole == [record.name for record in stored(shard)]
    assert len(notes.labels) == len(notes.hashes) == 10
    assert list(notes.wrong) == [shards.UNREADABLE]
    assert sorted(notes.wrong[shards.UNREADABLE]) == ["train/2: damaged at -3", "train/7: damaged at -8"]


def test_shard_of_unreadable_images_alone(tmp_path):
    shard = one_shard(tmp_path, train=3, damaged=(0, 1, 2))
    assert shards.write_shard(shard) == 3
    assert shards.read_metadata(shard).names == []


def test_leaves_duplicates_out(tmp_path):
    shard = one_shard(tmp_path)
    assert shards.write_shard(shard, {"train/4": "reference/1", "train/99": "reference/2"}) == 1
    notes = shards.read_metadata(shard)
    assert notes.wrong == {shards.DUPLICATES: ["train/4: as reference/1"]}
    assert notes.names == [item.name for item in shard.items if item.name != "train/4"]
    assert len(stored(shard)) == 11


def test_notes_conversions(tmp_path):
    shard = one_shard(tmp_path, read=grey)
    shards.write_shard(shard)
    assert shards.read_metadata(shard).converted == {"grey images": 12}
    np.testing.assert_array_equal(stored(shard)[0].image[..., 2], grey(shard.items[0]))


def test_notes_factors(tmp_path):
    shard = one_shard(tmp_path, read=drawn)
    shards.write_shard(shard)
    expected = np.array([(item.location / 3, -1) for item in shard.items], np.float32)
    np.testing.assert_array_equal(np.array(shards.read_metadata(shard).factors, np.float32), expected)
    np.testing.assert_array_equal([record.factors for record in stored(shard)], expected)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"unknown": 1}', None])
def test_damaged_notes_do_not_count(tmp_path, text):
    shard = one_shard(tmp_path)
    shards.write_shard(shard)
    shard.metadata_path.unlink() if text is None else shard.metadata_path.write_text(text)
    assert shards.read_metadata(shard) is None
    shards.write_shard(shard)
    assert len(shards.read_metadata(shard).names) == 12


def test_notes_without_their_shard_do_not_count(tmp_path):
    shard = one_shard(tmp_path)
    shards.write_shard(shard)
    with shard.path.open("ab") as file:
        file.write(b"x")
    assert shards.read_metadata(shard) is None
    shard.path.unlink()
    assert shards.read_metadata(shard) is None


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("again", [False, True])
def test_stopped_at_any_step(tmp_path, monkeypatch, step, again):
    # A shard of fewer images can have the same size, so notes of an earlier one must not stand beside it.
    shard, steps = one_shard(tmp_path), []

    def replace_or_stop(*paths):
        steps.append(paths)
        if len(steps) == step:
            raise KeyboardInterrupt
        os.rename(*paths)

    if again:
        shards.write_shard(shard)
        size = shard.path.stat().st_size
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shards.os, "replace", replace_or_stop)
        shards.write_shard(shard, {"train/4": "reference/1"})
    notes = shards.read_metadata(shard)
    if notes is not None:
        assert notes.sha256 == hashlib.sha256(shard.path.read_bytes()).hexdigest()
    assert again or notes is None
    shards.write_shard(shard)
    assert len(shards.read_metadata(shard).names) == len(stored(shard)) == 12
    assert not again or shard.path.stat().st_size == size
    assert set(tmp_path.iterdir()) == {shard.path, shard.metadata_path}


@pytest.mark.parametrize("lacking", [1, 5000, 70_000, 150_000])
def test_full_disk_leaves_nothing(tmp_path, limit_files, lacking):
    shard = one_shard(tmp_path, LARGE, read=functools.partial(noise, size=64))
    shards.write_shard(shard)
    size = shard.path.stat().st_size
    for path in (shard.path, shard.metadata_path):
        path.unlink()
    limit_files(size - lacking)
    with pytest.raises(OSError, match="array_record") as raised:
        shards.write_shard(shard)
    assert is_full(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_no_unreadable_image(tmp_path):
    shard = one_shard(tmp_path, read=no_space)
    with pytest.raises(OSError, match="No space left"):
        shards.write_shard(shard)
    assert shards.read_metadata(shard) is None


def test_no_such_directory(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        shards.write_shard(one_shard(tmp_path / "gone"))


def test_full_disk_and_going_on(tmp_path, limit_files):
    planned = shards.plan_shards(listing(train=20, read=functools.partial(noise, size=64)), LARGE, tmp_path, "set")
    train, reference = planned
    limit_files(2**17)  # enough for the reference images alone
    with pytest.raises(UserError, match=f"^There is no space left in {tmp_path}; free some and run the same command"):
        shards.write_shards([reference, train], 1, "Test")
    assert shards.read_metadata(train) is None and not train.path.exists()
    assert len(shards.read_metadata(reference).names) == 5
    limit_files(None)
    before = reference.path.stat()
    shards.write_shards([shard for shard in planned if shards.read_metadata(shard) is None], 1, "Test")
    assert len(shards.read_metadata(train).names) == 20
    assert reference.path.stat().st_mtime_ns == before.st_mtime_ns


def test_progress_is_on_stderr(tmp_path, capsys):
    planned = shards.plan_shards(listing(train=600, reference=40), SMALL, tmp_path, "set")
    assert len(planned) == 4
    shards.write_shards(planned, 2, "Preparing set")
    output = capsys.readouterr()
    assert output.out == ""
    assert "Preparing set" in output.err and "640/640" in output.err
    assert sum(len(shards.read_metadata(shard).names) for shard in planned) == 640


def test_far_too_much_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_UNREADABLE", 3)
    planned = shards.plan_shards(listing(damaged=range(4)), SMALL, tmp_path, "set")
    with pytest.raises(
        UserError, match=r"^More than 3 images cannot be read; check that --source is right and complete\.$"
    ):
        shards.write_shards(planned, 1, "Test")


def test_process_that_is_killed(tmp_path):
    planned = shards.plan_shards(listing(read=killed), SMALL, tmp_path, "set")
    with pytest.raises(
        UserError, match=r"^A process that prepares images was killed, .* with fewer --jobs to resume\.$"
    ):
        shards.write_shards(planned, 1, "Test")
    assert [shards.read_metadata(shard) for shard in planned] == [None, None]


def test_plan_has_every_image_once(tmp_path):
    source = listing(train=700, reference=30)
    planned = shards.plan_shards(source, SMALL, tmp_path, "set")
    assert [shard.path.name for shard in planned] == [
        "set-train.array_record-00000-of-00003",
        "set-train.array_record-00001-of-00003",
        "set-train.array_record-00002-of-00003",
        "set-reference.array_record-00000-of-00001",
    ]
    assert [len(shard.items) for shard in planned] == [256, 256, 188, 30]
    assert {shard.path.parent for shard in planned} == {tmp_path}
    for split, items in source.splits.items():
        names = [item.name for shard in planned if shard.split == split for item in shard.items]
        assert sorted(names) == sorted(item.name for item in items)


def test_plan_mixes_classes_always_alike(tmp_path):
    planned, again = (shards.plan_shards(listing(train=700), SMALL, tmp_path / name, "set") for name in "ab")
    assert [shard.items for shard in planned] == [shard.items for shard in again]
    for shard in planned[:3]:
        counts = np.bincount([item.label for item in shard.items], minlength=3)
        assert counts.min() > len(shard.items) / 5


def test_plan_limits_bytes_of_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 100 * 64 * 64 * 3 + 1)
    planned = shards.plan_shards(listing(train=250, reference=0), LARGE, tmp_path, "set")
    assert [len(shard.items) for shard in planned] == [100, 100, 50]


def test_plan_of_many_images_has_larger_shards(tmp_path):
    planned = shards.plan_shards(listing(train=16_000, reference=0), SMALL, tmp_path, "set")
    assert [len(shard.items) for shard in planned] == [1000] * 16


def changed_item(split="train", **changes):
    source = listing()
    source.splits[split][3] = replace(source.splits[split][3], **changes)
    return source


def test_fingerprint_is_not_of_the_place():
    expected = shards.plan_fingerprint(listing(), SMALL)
    assert expected == shards.plan_fingerprint(listing(), SMALL)
    assert expected == shards.plan_fingerprint(changed_item(location="elsewhere"), SMALL)
    assert expected == shards.plan_fingerprint(listing(read=grey), SMALL)


def test_fingerprint_is_of_what_is_written():
    plain = listing()
    swapped = replace(plain, splits=plain.splits | {"train": plain.splits["train"][::-1]})
    plans = [
        (plain, SMALL),
        (changed_item(label=2), SMALL),
        (changed_item(name="train/x"), SMALL),
        (changed_item("reference", label=0), SMALL),
        (swapped, SMALL),
        (replace(plain, splits={"train": plain.splits["train"]}), SMALL),
        (replace(plain, class_names=["a", "b", "d"]), SMALL),
        (replace(plain, factor_names=("hue",)), SMALL),
        (plain, LARGE),
        (plain, SMALL._replace(channels=1)),
        (plain, SMALL._replace(preprocessing=Preprocessing.parse("center-box"))),
        (plain, SMALL._replace(preprocessing=Preprocessing.parse("center-lanczos-white"))),
    ]
    assert len({shards.plan_fingerprint(*plan) for plan in plans}) == len(plans)


@pytest.mark.parametrize("draw", [functools.partial(petals, 8, 2, 4, 0.5, 1, 1), functools.partial(digits_lt, 8)])
def test_fingerprint_is_of_the_seed_of_drawn_images(draw):
    first, again, second = (shards.plan_fingerprint(draw(seed=seed), SMALL) for seed in (0, 0, 1))
    assert first == again != second


def test_notes_are_json(tmp_path):
    shard = one_shard(tmp_path)
    shards.write_shard(shard)
    assert shard.metadata_path.name == f"{shard.path.name}.json"
    assert json.loads(shard.metadata_path.read_text())["size"] == shard.path.stat().st_size
