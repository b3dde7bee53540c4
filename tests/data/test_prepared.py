import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from decode_records import decode
from grain.sources import ArrayRecordDataSource

from noisytwins_jax.data.digits import digits_splits
from noisytwins_jax.data.petals import FACTORS
from noisytwins_jax.data.pipeline import training_batches
from noisytwins_jax.data.prepare.command import parse_arguments, prepare
from noisytwins_jax.data.prepare.embedded import petals
from noisytwins_jax.data.prepared import INFO_FILE, VERSION, load_info, prepared_splits, split_fingerprint
from noisytwins_jax.data.records import Record, encode
from noisytwins_jax.data.source import ArraySource, DataSplits, read_images
from noisytwins_jax.utils.errors import UserError

OPTIONS = {"num_classes": 3, "largest": 12, "imbalance_factor": 0.25, "reference_per_class": 4}
OPTIONS |= {"classifier_per_class": 6}
SPLITS = ("train", "reference", "classifier")


def prepare_petals(directory: Path, name: str, *more: str, **options: int) -> None:
    given = [f"--{option}={value}" for option, value in (OPTIONS | options).items()]
    prepare(parse_arguments(["petals", f"--data_dir={directory}", f"--name={name}", "--resolution=8", *given, *more]))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """Holds two prepared sets of 8 px: ``few`` (petals) and ``digits``, whose splits have several shards each."""
    directory = tmp_path_factory.mktemp("prepared")
    prepare_petals(directory, "few", "--jobs=1")
    prepare(
        parse_arguments(["digits_lt", f"--data_dir={directory}", "--name=digits", "--jobs=1"]),
    )
    return directory


@pytest.fixture(scope="module")
def few(data_dir) -> DataSplits:
    return load(data_dir)


@pytest.fixture(scope="module")
def digits(data_dir) -> DataSplits:
    return load(data_dir, "digits")


@pytest.fixture
def damaged(data_dir, tmp_path) -> Path:
    """A copy of ``few`` that a test may damage: the directory of its files."""
    shutil.copytree(data_dir / "few", tmp_path / "few")
    return tmp_path / "few" / "8px" / VERSION


def load(directory: Path, name: str = "few", **options) -> DataSplits:
    return prepared_splits(name, **({"resolution": 8, "directory": str(directory)} | options))


def load_damaged(place: Path, **options) -> DataSplits:
    return load(place.parents[2], **options)


def everything(source) -> dict[str, np.ndarray]:
    return read_images(source, np.arange(len(source)))


def edit_info(place: Path, change) -> None:
    info = json.loads((place / INFO_FILE).read_text())
    change(info)
    (place / INFO_FILE).write_text(json.dumps(info))


# --- what is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_images_are_those_that_were_drawn(split, few, data_dir):
    """Image by image, under the names that the records say."""
    source, listing = getattr(few, split), petals(8, **OPTIONS)
    drawn = {item.name: (item.label, *listing.read(item)) for item in listing.splits[split]}
    paths = sorted(map(str, (data_dir / "few" / "8px" / VERSION).glob(f"few-{split}.array_record-*")))
    stored = [decode(data, (8, 8, 3)) for data in ArrayRecordDataSource(paths)]
    assert len(source) == len(stored) == len(drawn) and {record.name for record in stored} == set(drawn)
    batch = everything(source)
    assert batch["image"].shape == (len(drawn), 8, 8, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].dtype == source.labels.dtype == np.int32 and source.factors.dtype == np.float32
    for i, record in enumerate(stored):
        label, image, factors = drawn[record.name]
        assert batch["label"][i] == source.labels[i] == record.label == label
        np.testing.assert_array_equal(batch["image"][i], image)
        np.testing.assert_array_equal(source.factors[i], factors)
        np.testing.assert_array_equal(record.factors, factors)


def test_facts(few):
    train = few.train
    assert (train.resolution, train.channels, train.num_classes) == (8, 3, 3)
    assert train.class_names == ("species 0", "species 1", "species 2")
    assert train.class_counts.tolist() == [12, 6, 3] and train.class_counts.dtype == np.int64
    assert few.reference.class_counts.tolist() == [4, 4, 4] and few.classifier.class_counts.tolist() == [6, 6, 6]
    assert train.factor_names == FACTORS and train.preprocessing == "center-lanczos"
    assert train.name == "few (train)"
    assert (np.diff(train.labels) < 0).any()  # classes are mixed


def test_digits_in_several_shards(digits, data_dir):
    embedded = digits_splits()
    for split in ("train", "reference"):
        source, expected = getattr(digits, split), getattr(embedded, split)
        shards = json.loads((data_dir / "digits" / "8px" / VERSION / INFO_FILE).read_text())["splits"][split]["shards"]
        assert len(shards) > 2
        batch = everything(source)
        np.testing.assert_array_equal(batch["label"], source.labels)
        found = sorted(zip(batch["label"].tolist(), map(np.ndarray.tobytes, batch["image"]), strict=True))
        assert found == sorted(zip(expected.labels.tolist(), map(np.ndarray.tobytes, expected.images), strict=True))
        np.testing.assert_array_equal(source.class_counts, expected.class_counts)
        assert source.factors is None and source.factor_names == () and source.channels == 1
    assert digits.classifier is digits.reference  # none of its own: the larger set that has every class


def test_take_in_any_order_and_with_repeats(digits):
    batch = everything(digits.train)
    last = len(digits.train) - 1
    rng = np.random.default_rng(0)
    for indices in ([0], [last], [last, 0, 300, 0, last, 299], rng.integers(0, last + 1, 500), np.arange(last, -1, -1)):
        taken = digits.train.take(np.asarray(indices))
        np.testing.assert_array_equal(taken["image"], batch["image"][indices])
        np.testing.assert_array_equal(taken["label"], batch["label"][indices])
        assert taken["label"].dtype == np.int32


def test_one_image(few):
    batch = everything(few.train)
    for index in (0, 20, np.int64(7)):
        record = few.train[index]
        np.testing.assert_array_equal(record["image"], batch["image"][index])
        assert record["label"] == batch["label"][index]
        assert record["label"].shape == () and record["label"].dtype == np.int32


def test_what_is_taken_belongs_to_the_caller(few):
    before = everything(few.train)
    taken = few.train.take(np.array([3, 3]))
    taken["image"][0], taken["label"][:] = 0, 9
    assert (taken["image"][1] == before["image"][3]).all()
    np.testing.assert_array_equal(everything(few.train)["image"], before["image"])
    for array in (few.train.labels, few.train.class_counts):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_threads_read_at_once(digits):
    batch = everything(digits.reference)

    def read(seed: int) -> bool:
        rng, right = np.random.default_rng(seed), True
        for _ in range(15):
            indices = rng.integers(0, len(digits.reference), 40)
            right &= bool((digits.reference.take(indices)["image"] == batch["image"][indices]).all())
            right &= bool((digits.reference[indices[0]]["image"] == batch["image"][indices[0]]).all())
        return right

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(16)))


# --- fingerprints ------------------------------------------------------------------------------------------------------


def test_fingerprints_are_of_the_images_alone(few, tmp_path):
    """Neither the name nor the number of processes nor the reference set matters; the seed does."""
    prepare_petals(tmp_path, "again", "--jobs=2", reference_per_class=3)
    prepare_petals(tmp_path, "other", "--jobs=1", seed=1)
    again, other = load(tmp_path, "again"), load(tmp_path, "other")
    np.testing.assert_array_equal(everything(again.train)["image"], everything(few.train)["image"])
    assert (
        again.train.fingerprint == few.train.fingerprint and again.classifier.fingerprint == few.classifier.fingerprint
    )
    assert again.reference.fingerprint != few.reference.fingerprint
    sources = [getattr(splits, split) for splits in (few, other) for split in SPLITS]
    assert len({source.fingerprint for source in sources}) == 6
    assert all(len(bytes.fromhex(source.fingerprint)) == 32 for source in sources)


def test_split_fingerprint():
    hashes, labels = [f"{i:032x}" for i in range(4)], np.array([0, 1, 1, 0], np.int32)
    value = split_fingerprint((8, 8, 3), labels, hashes)
    assert value == split_fingerprint([np.int64(8), 8, 3], labels.astype(np.int64), tuple(hashes))
    others = [
        split_fingerprint((8, 8, 1), labels, hashes),
        split_fingerprint((8, 8, 3), labels[::-1] * 2, hashes),
        split_fingerprint((8, 8, 3), labels, hashes[::-1]),
        split_fingerprint((8, 8, 3), labels[:3], hashes[:3]),
    ]
    assert len({value, *others}) == 5


# --- splits ------------------------------------------------------------------------------------------------------------


def test_without_a_reference_split_the_training_images_are_the_reference(damaged):
    edit_info(damaged, lambda info: [info["splits"].pop(split) for split in ("reference", "classifier")])
    splits = load_damaged(damaged)
    assert splits.reference is splits.classifier is splits.train and len(splits.train) == 21


def test_the_classifier_learns_from_a_set_with_every_class(damaged):
    """The reference set is the larger one here, but has no images of two classes."""
    edit_info(
        damaged,
        lambda info: info["splits"].update(train=info["splits"]["reference"], reference=info["splits"]["train"]),
    )
    edit_info(damaged, lambda info: info["splits"].pop("classifier"))
    (damaged / "labels-train.npy").rename(damaged / "labels")
    (damaged / "factors-train.npy").rename(damaged / "factors")
    for kind in ("labels", "factors"):
        (damaged / f"{kind}-reference.npy").rename(damaged / f"{kind}-train.npy")
        (damaged / kind).rename(damaged / f"{kind}-reference.npy")
    splits = load_damaged(damaged)
    assert splits.classifier is splits.reference and len(splits.reference) == 21
    np.save(damaged / "labels-reference.npy", np.zeros(21, np.int32))
    splits = load_damaged(damaged)
    assert splits.reference.class_counts.tolist() == [21, 0, 0]
    assert splits.classifier is splits.train and len(splits.train) == 12


@pytest.mark.parametrize("asked", ["", "center-lanczos", "lanczos", "lanczos-center"])
def test_preprocessing_that_was_asked_for(asked, data_dir):
    assert load(data_dir, preprocessing=asked).train.preprocessing == "center-lanczos"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("center-bicubic", "prepared with center-lanczos, not with center-bicubic, as config.data.preprocessing asks"),
        ("center-lanczos-white", "prepared with center-lanczos, not with center-lanczos-white"),
        ("lancos", "did you mean 'lanczos'"),
    ],
)
def test_preprocessing_that_was_not(asked, message, data_dir):
    with pytest.raises(UserError, match=message):
        load(data_dir, preprocessing=asked)


# --- what is not there -------------------------------------------------------------------------------------------------


def test_info(data_dir):
    info, place = load_info("few", resolution=8, directory=f"{data_dir}/")
    assert place == data_dir / "few" / "8px" / VERSION
    assert info["name"] == "few" and info["resolution"] == 8


def test_a_data_set_that_is_not_there(data_dir):
    with pytest.raises(UserError) as error:
        load(data_dir, "many")
    message = str(error.value)
    assert message.startswith(f"There is no prepared data set many of 8 px in {data_dir}; prepare it with: ")
    assert (
        f"noisytwins_jax.data.prepare image_folder --name=many --source=... --data_dir={data_dir} --resolution=8"
        in message
    )


def test_another_resolution_is_named(data_dir):
    with pytest.raises(UserError, match=r"no prepared data set few of 16 px in .* \(there: 8px\); prepare it"):
        load(data_dir, resolution=16)


def test_a_data_set_that_is_not_whole(damaged):
    """Neither one that is being prepared nor one whose copying ended early is a data set."""
    (damaged / INFO_FILE).unlink()
    for resolution in (8, 16):
        with pytest.raises(UserError, match=f"no prepared data set few of {resolution} px in .*; prepare") as error:
            load_damaged(damaged, resolution=resolution)
        assert "(there:" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "\udcff"])
def test_a_damaged_info_file(text, damaged):
    (damaged / INFO_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=rf"{INFO_FILE} cannot be read \(.*\); prepare the data again"):
        load_damaged(damaged)


@pytest.mark.parametrize("split", SPLITS)
def test_a_missing_or_truncated_shard(split, damaged):
    (shard,) = damaged.glob(f"few-{split}.array_record-*")
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(
        UserError, match=rf"{shard.name} is not the file that was prepared; prepare .* or copy all of it"
    ):
        load_damaged(damaged)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing; prepare"):
        load_damaged(damaged)


@pytest.mark.parametrize("kind", ["labels", "factors"])
def test_missing_or_damaged_labels(kind, damaged):
    path = damaged / f"{kind}-train.npy"
    data = path.read_bytes()
    for contents in (b"", data[:50], data[:-1], b"something else"):
        path.write_bytes(contents)
        with pytest.raises(UserError, match=f"{path.name} cannot be read .* or copy all of it"):
            load_damaged(damaged)
    shutil.copy(damaged / f"{kind}-reference.npy", path)
    with pytest.raises(UserError, match=f"{path.name} does not belong to these shards"):
        load_damaged(damaged)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} cannot be read"):
        load_damaged(damaged)


def test_a_damaged_record_is_an_os_error(damaged, few):
    batch = everything(few.train)
    (shard,) = damaged.glob("few-train.array_record-*")
    data = bytearray(shard.read_bytes())
    data[data.index(batch["image"][7].tobytes()) + 50] ^= 1
    shard.write_bytes(data)
    source = load_damaged(damaged).train
    for read in (lambda: source.take(np.array([6, 7])), lambda: source[7]):
        with pytest.raises(OSError, match=r"few \(train\) cannot be read in"):
            read()
    others = np.array([i for i in range(21) if i != 7])
    np.testing.assert_array_equal(source.take(others)["image"], batch["image"][others])


@pytest.mark.parametrize("shape", [(16, 16, 3), (8, 8, 1), (1, 1, 1)])
def test_records_of_other_images_are_an_os_error(shape, damaged):
    (shard,) = damaged.glob("few-train.array_record-*")
    size = shard.stat().st_size
    writer = ArrayRecordWriter(str(shard), "group_size:1,uncompressed")
    for i in range(21):
        writer.write(encode(Record(np.zeros(shape, np.uint8), 0, str(i))))
    writer.close()
    assert shard.stat().st_size == size  # such files have whole blocks
    with pytest.raises(OSError, match="cannot be read"):
        load_damaged(damaged).train.take(np.array([0]))


def test_a_record_that_is_none_is_an_os_error(damaged):
    (shard,) = damaged.glob("few-train.array_record-*")
    writer = ArrayRecordWriter(str(shard), "group_size:1,uncompressed")
    for _ in range(21):
        writer.write(b"something else")
    writer.close()
    with pytest.raises(OSError, match="not a record of prepared images"):
        load_damaged(damaged).train.take(np.array([0]))


# --- the training stream -----------------------------------------------------------------------------------------------

STREAM = {"batch_size": 8, "seed": 5, "mirror": True}


def stream(source, num_batches: int, state: dict[str, int] | None = None, **process: int) -> dict[str, np.ndarray]:
    with training_batches(source, **STREAM, **process) as batches:
        if state is not None:
            batches.restore(state)
        taken = [next(batches) for _ in range(num_batches)]
    return {key: np.stack([batch[key] for batch in taken]) for key in ("image", "label")}


def test_the_stream_is_that_of_the_same_images_in_memory(few):
    batch = everything(few.train)
    in_memory = ArraySource(batch["image"], batch["label"], few.train.class_names, "few")
    expected, found = stream(in_memory, 12), stream(few.train, 12)
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key])


# The 21 training images end within the batches 2, 5 and 7: positions before, at and after an epoch's end.
@pytest.mark.parametrize("position", [1, 2, 3, 8])
def test_a_position_of_two_processes_resumes_on_one_and_on_four(few, position):
    whole = stream(few.train, 14)
    assert len({image.tobytes() for image in whole["image"][:3].reshape(24, -1)}) >= 21
    states = []
    for process in range(2):
        with training_batches(few.train, **STREAM, process_index=process, process_count=2) as batches:
            for k in range(position):
                half = slice(4 * process, 4 * process + 4)
                np.testing.assert_array_equal(next(batches)["image"], whole["image"][k, half])
            states.append(json.loads(json.dumps(batches.state())))
    assert states[0] == states[1]
    for count in (1, 4):
        parts = [
            stream(few.train, 14 - position, states[0], process_index=process, process_count=count)
            for process in range(count)
        ]
        for key, expected in whole.items():
            resumed = np.concatenate([part[key] for part in parts], axis=1)
            np.testing.assert_array_equal(resumed, expected[position:])
