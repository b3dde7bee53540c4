import numpy as np
import pytest
import tensorflow_datasets as tfds
from decode_records import decode

from noisytwins_jax.data.records import Record, decode_image, encode

SHAPE = (8, 8, 3)
FACTORS = np.array([0.1, 0.0, 1.0, 0.7], np.float32)


def make_record(shape: tuple[int, int, int] = SHAPE, factors: np.ndarray | None = FACTORS, seed: int = 0) -> Record:
    image = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return Record(image, 2, "train/Bändel #3/a b.jpg", factors)


def assert_same(decoded: Record, record: Record) -> None:
    np.testing.assert_array_equal(decoded.image, record.image)
    assert decoded.image.dtype == np.uint8
    assert (decoded.label, decoded.name) == (record.label, record.name)
    if record.factors is None:
        assert decoded.factors is None
    else:
        np.testing.assert_array_equal(decoded.factors, record.factors)
        assert decoded.factors.dtype == np.float32


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 3), (64, 64, 3)])
@pytest.mark.parametrize("factors", [None, FACTORS])
def test_round_trip(shape, factors):
    record = make_record(shape, factors)
    data = encode(record)
    assert_same(decode(data, shape), record)
    pixels = decode_image(data)
    assert pixels.shape == (np.prod(shape),) and pixels.dtype == np.uint8 and not pixels.flags.writeable
    np.testing.assert_array_equal(pixels, record.image.ravel())


@pytest.mark.parametrize(("label", "name"), [(0, ""), (1009, "x" * 1000), (2**40, "a\nb\0c")])
def test_unusual_labels_and_names(label, name):
    record = make_record()._replace(label=label, name=name)
    assert_same(decode(encode(record), SHAPE), record)


def test_an_image_that_is_not_contiguous():
    record = make_record()
    mirrored = record._replace(image=record.image[:, ::-1])
    np.testing.assert_array_equal(decode(encode(mirrored), SHAPE).image, record.image[:, ::-1])


def test_bytes_are_those_of_the_record_alone():
    data = encode(make_record())
    assert encode(make_record()) == data
    # Small and standard: pixels, name and numbers, and a few bytes for what they are.
    assert len(data) < make_record().image.nbytes + 4 * len(FACTORS) + 150
    others = [
        make_record(seed=1),
        make_record()._replace(label=3),
        make_record()._replace(name="b"),
        make_record(factors=None),
    ]
    assert len({data, *map(encode, others)}) == 5


def test_entries_are_in_the_order_of_their_names():
    """Protocol buffers promise no order of their own, so equal records could be unequal bytes in another process."""
    data = encode(Record(np.zeros(SHAPE, np.uint8), 2, "", FACTORS))
    places = [data.index(bytes([0x0A, len(name)]) + name) for name in (b"factors", b"id", b"image", b"label")]
    assert places == sorted(places)


@pytest.mark.parametrize("factors", [None, FACTORS])
def test_tfds_reads_them(factors):
    features = {
        "image": tfds.features.Tensor(shape=SHAPE, dtype=np.uint8, encoding="bytes"),
        "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
        "id": tfds.features.Text(),
    }
    if factors is not None:
        features["factors"] = tfds.features.Tensor(shape=factors.shape, dtype=np.float32)
    record = make_record(factors=factors)
    example = tfds.features.FeaturesDict(features).deserialize_example_np(encode(record))
    assert example.keys() == features.keys()
    read = Record(example["image"], int(example["label"]), example["id"].decode(), example.get("factors"))
    assert_same(read, record)


def pieces(data: bytes) -> list[bytes]:
    """Everything that a file cut off within the record leaves of it, in steps."""
    return [data[:n] for n in range(0, len(data), 7)]


def test_damaged_bytes_are_a_value_error():
    data = encode(make_record())
    for damaged in [*pieces(data), b"\xff" * len(data), data[3:], b"not a record"]:
        with pytest.raises(ValueError, match="not a record of prepared images"):
            decode_image(damaged)


def test_a_record_without_an_image_is_a_value_error():
    empty = encode(make_record()).replace(b"image", b"other")
    with pytest.raises(ValueError, match="not a record of prepared images"):
        decode_image(empty)
