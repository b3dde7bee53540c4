import time

import numpy as np
import pytest
from waiting import wait_until

from noisytwins_jax.data.pipeline import training_batches
from noisytwins_jax.data.source import ArraySource
from noisytwins_jax.utils.errors import UserError


def make_source(num_images: int = 37) -> ArraySource:
    """Images whose first pixels hold their number, left to right, so that a mirrored one is recognised."""
    images = np.zeros((num_images, 8, 8, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(num_images), 250)
    images[:, :, :2] += 1
    return ArraySource(images, np.arange(num_images) % 5, list("abcde"), "numbered")


def numbers(batch) -> np.ndarray:
    """The image numbers of a batch from ``make_source``, mirrored or not."""
    upright = np.where(mirrored(batch)[:, None, None, None], batch["image"][:, :, ::-1], batch["image"])
    return (upright[:, 0, 0, 0].astype(int) - 1) * 250 + upright[:, 0, 1, 0] - 1


def mirrored(batch) -> np.ndarray:
    return batch["image"][:, 0, 0, 0] == 0


def stream(source, num_batches: int, start: int = 0, **options) -> dict[str, np.ndarray]:
    options = {"batch_size": 8, "seed": 0, "mirror": True} | options
    with training_batches(source, **options) as batches:
        if start:
            batches.restore({"next_index": start})
        taken = [next(batches) for _ in range(num_batches)]
    return {key: np.stack([batch[key] for batch in taken]) for key in ("image", "label")}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    for key in ("image", "label"):
        np.testing.assert_array_equal(a[key], b[key])


def test_shapes_dtypes_and_labels():
    batch = next(training_batches(make_source(), batch_size=8, seed=0, mirror=True, num_threads=0))
    assert batch["image"].shape == (8, 8, 8, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["label"], numbers(batch) % 5)


# 592 images in batches of 64 do not fill whole batches; 5 images in batches of 8 repeat within a batch.
@pytest.mark.parametrize(("num_images", "batch_size"), [(592, 64), (37, 8), (5, 8), (5, 64), (8, 8)])
def test_every_epoch_is_another_permutation_and_drops_nothing(num_images, batch_size):
    epochs = 4
    source = make_source(num_images)
    with training_batches(source, batch_size=batch_size, seed=3, mirror=True) as batches:
        order = np.concatenate([numbers(next(batches)) for _ in range(-(-epochs * num_images // batch_size))])
    order = order[: epochs * num_images].reshape(epochs, num_images)
    np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(num_images), (epochs, 1)))
    assert len({tuple(epoch) for epoch in order}) == epochs
    assert not any((np.diff(epoch) == 1).all() for epoch in order)


def test_seed_decides():
    source = make_source()
    first = stream(source, 10)
    assert_same(first, stream(source, 10))
    assert (first["label"] != stream(source, 10, seed=1)["label"]).any()


@pytest.mark.parametrize("process_count", [2, 4, 8])
def test_processes_share_the_batch_of_one_process(process_count):
    source = make_source()
    parts = [stream(source, 12, process_count=process_count, process_index=p) for p in range(process_count)]
    assert parts[0]["label"].shape == (12, 8 // process_count)
    assert_same({key: np.concatenate([p[key] for p in parts], axis=1) for key in parts[0]}, stream(source, 12))


@pytest.mark.parametrize("saved_on", [1, 2])
@pytest.mark.parametrize("resumed_on", [1, 2, 4])
def test_position_is_portable_between_process_counts(saved_on, resumed_on):
    source, whole = make_source(), stream(make_source(), 20)
    options = {"batch_size": 8, "seed": 0, "mirror": True}
    states = []
    for p in range(saved_on):
        with training_batches(source, process_index=p, process_count=saved_on, **options) as batches:
            for _ in range(7):
                next(batches)
            states.append(batches.state())
    assert states == [{"next_index": 7}] * saved_on
    parts = [stream(source, 13, start=7, process_index=p, process_count=resumed_on) for p in range(resumed_on)]
    resumed = {key: np.concatenate([p[key] for p in parts], axis=1) for key in parts[0]}
    assert_same(resumed, {key: whole[key][7:] for key in whole})


class SlowFirst:
    """A source without ``take`` whose early reads are the slowest, so that threads finish out of order."""

    def __init__(self, source):
        self.source, self.reads = source, 0

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        self.reads += 1
        if self.reads < 40:
            time.sleep(0.001)
        return self.source[index]


@pytest.mark.parametrize(("num_threads", "prefetch"), [(0, 0), (0, 4), (1, 1), (2, 4), (8, 16)])
def test_threads_change_nothing(num_threads, prefetch):
    source = make_source()
    expected = stream(source, 30, num_threads=0, prefetch=0)
    assert_same(stream(SlowFirst(source), 30, num_threads=num_threads, prefetch=prefetch), expected)


def test_state_ignores_what_is_prefetched():
    source = SlowFirst(make_source())
    with training_batches(source, batch_size=8, seed=0, mirror=True, num_threads=4, prefetch=16) as batches:
        assert batches.state() == {"next_index": 0}
        for k in range(5):
            next(batches)
            assert batches.state() == {"next_index": k + 1}
        wait_until(lambda: source.reads >= 10 * 8)  # far ahead of the caller,
        assert batches.state() == {"next_index": 5}  # and yet


def test_restore_goes_forwards_and_back_bit_for_bit():
    source, whole = make_source(), stream(make_source(), 40)
    with training_batches(source, batch_size=8, seed=0, mirror=True, num_threads=4, prefetch=8) as batches:
        for start in (30, 0, 3, 3, 39):
            batches.restore({"next_index": start})
            assert batches.state() == {"next_index": start}
            batch = next(batches)
            assert_same(batch, {key: whole[key][start] for key in whole})
            assert batches.state() == {"next_index": start + 1}


def test_mirroring():
    num_images, epochs = 500, 8
    source = make_source(num_images)
    plain = stream(source, epochs, batch_size=num_images, mirror=False)
    flipped = stream(source, epochs, batch_size=num_images, mirror=True)
    assert not any(mirrored({"image": images}).any() for images in plain["image"])
    np.testing.assert_array_equal(plain["label"], flipped["label"])  # the order is the same
    flags, places = np.empty((2, epochs, num_images), bool)
    for epoch in range(epochs):
        batch = {"image": flipped["image"][epoch]}
        order = numbers(batch)
        np.testing.assert_array_equal(order, numbers({"image": plain["image"][epoch]}))
        flags[epoch, order] = places[epoch] = mirrored(batch)
    assert abs(flags.mean() - 0.5) < 4 * 0.5 / np.sqrt(flags.size)
    per_image = flags.sum(0)  # an image is mirrored in some epochs and not in others: binomial(8, 1/2)
    assert abs(per_image.var() - epochs / 4) < 0.6
    for drawn in (flags, places):  # anew each epoch, by image and by place in the order
        assert abs(np.mean(drawn[1:] == drawn[:-1]) - 0.5) < 0.05


def test_source_is_not_changed_and_batches_belong_to_the_caller():
    source = make_source()
    fingerprint = source.fingerprint
    with training_batches(source, batch_size=8, seed=0, mirror=True) as batches:
        for _ in range(10):
            next(batches)["image"][:] = 77
    assert ArraySource(source.images, source.labels, source.class_names, "again").fingerprint == fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 9, "process_count": 2}, "9 images cannot be divided among 2 processes.*multiple of 2"),
        ({"batch_size": 0}, "positive multiple"),
        ({"process_index": 2, "process_count": 2}, "process_index"),
        ({"process_count": 0}, "process_index"),
        ({"seed": -1}, "negative"),
        ({"num_threads": -1}, "negative"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(UserError, match=message):
        training_batches(make_source(), **({"batch_size": 8, "seed": 0, "mirror": False} | options))


def test_refuses_an_empty_source():
    class Empty:
        def __len__(self):
            return 0

    with pytest.raises(UserError, match="no images"):
        training_batches(Empty(), batch_size=8, seed=0, mirror=False)


@pytest.mark.parametrize("state", [{}, {"next_index": -1}, {"next_index": 1.5}, {"next_index": 2**50}])
def test_restore_refuses(state):
    with (
        training_batches(make_source(), batch_size=8, seed=0, mirror=False) as batches,
        pytest.raises(UserError, match="position of the training data"),
    ):
        batches.restore(state)


def test_closed_twice_and_read_never():
    batches = training_batches(make_source(), batch_size=8, seed=0, mirror=False)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_overhead_per_batch():
    source = make_source(592)
    with training_batches(source, batch_size=64, seed=0, mirror=True) as batches:
        for _ in range(20):
            next(batches)
        start = time.process_time()
        for _ in range(200):
            next(batches)
        per_batch = (time.process_time() - start) / 200
    assert per_batch < 0.002  # about 0.0003 s; one Grain element per image would take 0.005 s
