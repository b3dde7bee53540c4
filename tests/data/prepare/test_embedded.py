import pickle
from collections import Counter

import numpy as np
import pytest

from noisytwins_jax.data.digits import digits_splits
from noisytwins_jax.data.long_tail import long_tail_counts
from noisytwins_jax.data.petals import FACTORS, draw
from noisytwins_jax.data.prepare.embedded import CLASSIFIER_START, REFERENCE_START, digits_lt, petals
from noisytwins_jax.data.prepare.listing import RenderedImage
from noisytwins_jax.utils.errors import UserError


def labels(items: list) -> list[int]:
    return [count for _, count in sorted(Counter(item.label for item in items).items())]


def test_petals_listing():
    listing = petals(16)
    assert listing.class_names[0] == "species 00" and listing.class_names[-1] == "species 19"
    assert list(listing.splits) == ["train", "reference", "classifier"]
    assert labels(listing.splits["train"]) == long_tail_counts(500, 20, 0.02).tolist()
    assert labels(listing.splits["reference"]) == [50] * 20
    assert labels(listing.splits["classifier"]) == [200] * 20
    assert listing.factor_names == FACTORS
    assert len(listing.problems) == 0
    assert listing.splits["train"][501].name == "train/01/1"
    for items in listing.splits.values():
        assert len({item.name for item in items}) == len(items)


def test_petals_splits_are_disjoint():
    locations = {split: {item.location for item in items} for split, items in petals(8).splits.items()}
    assert len(set.union(*locations.values())) == sum(map(len, locations.values()))
    assert max(index for _, index in locations["train"]) < REFERENCE_START
    assert min(index for _, index in locations["reference"]) >= REFERENCE_START
    assert max(index for _, index in locations["reference"]) < CLASSIFIER_START


@pytest.mark.parametrize("split", ["train", "reference", "classifier"])
def test_petals_reader(split):
    sizes = {"largest": 5, "imbalance_factor": 0.2, "reference_per_class": 2, "classifier_per_class": 2}
    listing = petals(16, num_classes=3, **sizes, seed=4)
    read = pickle.loads(pickle.dumps(listing.read))
    for item in pickle.loads(pickle.dumps(listing.splits[split])):
        drawn = read(item)
        assert isinstance(drawn, RenderedImage)
        assert drawn.image.shape == (16, 16, 3) and drawn.image.dtype == np.uint8
        assert drawn.factors.shape == (len(FACTORS),) and drawn.factors.dtype == np.float32
        image, factors = draw(*item.location, 16, seed=4)
        assert (drawn.image == image).all() and (drawn.factors == factors).all()
        assert item.location[0] == item.label


def test_petals_of_many_classes_begin_like_those_of_few():
    few, many = (petals(8, num_classes=k, largest=4, imbalance_factor=1) for k in (10, 1010))
    assert many.class_names[0] == "species 0000" and many.class_names[-1] == "species 1009"
    assert [item.location for item in few.splits["train"]] == [item.location for item in many.splits["train"][:40]]
    first, same = few.read(few.splits["train"][39]), many.read(many.splits["train"][39])
    assert (first.image == same.image).all() and (first.factors == same.factors).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 12}, "power of two"),
        ({"num_classes": 0}, "one class"),
        ({"imbalance_factor": 0.001}, "raise imbalance_factor"),
        ({"reference_per_class": 0}, "reference_per_class must be at least 1"),
        ({"seed": -1}, "seed of a drawn flower must not be negative"),
    ],
)
def test_petals_refuses(options, message):
    with pytest.raises(UserError, match=message):
        petals(**{"resolution": 8, **options})


@pytest.mark.parametrize("resolution", [8, 16])
def test_digits_listing(resolution):
    listing, splits = digits_lt(resolution), digits_splits(resolution)
    read = pickle.loads(pickle.dumps(listing.read))
    assert listing.class_names == splits.train.class_names
    for split, source in (("train", splits.train), ("reference", splits.reference)):
        items = listing.splits[split]
        assert [item.label for item in items] == source.labels.tolist()
        images = np.stack([read(item) for item in items])
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, source.images[..., 0])
    assert listing.splits["train"][3].name == "train/3"
    assert len(listing.splits["reference"]) == listing.published_counts["reference"]


def test_digits_listing_takes_options():
    listing = digits_lt(imbalance_factor=0.1, largest=100, seed=3)
    expected = digits_splits(imbalance_factor=0.1, largest=100, seed=3).train
    assert labels(listing.splits["train"]) == expected.class_counts.tolist()
    images = np.stack([listing.read(item) for item in listing.splits["train"]])
    np.testing.assert_array_equal(images, expected.images[..., 0])
    with pytest.raises(UserError, match="at most 64"):
        digits_lt(128)
