import numpy as np
import pytest
from sklearn.datasets import load_digits

from noisytwins_jax.data.digits import digits_splits
from noisytwins_jax.data.registry import load_splits
from noisytwins_jax.data.synthetic import synthetic_splits
from noisytwins_jax.utils.errors import UserError


def rows(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


def test_digits_default():
    splits = digits_splits()
    assert splits.train.class_counts.tolist() == [174, 124, 89, 64, 45, 32, 23, 16, 12, 8]
    assert len(splits.reference) == len(splits.classifier) == 1797
    assert (splits.train.resolution, splits.train.channels, splits.train.num_classes) == (8, 1, 10)
    assert splits.train.class_names == tuple("0123456789")


def test_digits_images_are_those_of_scikit_learn():
    digits, reference = load_digits(), digits_splits().reference
    np.testing.assert_allclose(reference.images[..., 0] * (16 / 255), digits.images, atol=0.5 * 16 / 255 + 1e-9)
    assert reference.images.min() == 0 and reference.images.max() == 255
    np.testing.assert_array_equal(reference.labels, digits.target)


def test_digits_long_tail_is_a_subset_without_repeats():
    splits = digits_splits()
    for c in range(10):
        kept = splits.train.images[splits.train.labels == c]
        assert len(rows(kept)) == len(kept)
        assert rows(kept) <= rows(splits.reference.images[splits.reference.labels == c])


def test_digits_seed():
    same, again, other = digits_splits(), digits_splits(), digits_splits(seed=1)
    assert same.train.fingerprint == again.train.fingerprint != other.train.fingerprint
    assert same.reference.fingerprint == other.reference.fingerprint


def test_digits_rarer_sets_are_nested():
    assert rows(digits_splits(imbalance_factor=0.02).train.images) <= rows(digits_splits().train.images)
    assert rows(digits_splits(largest=100).train.images) <= rows(digits_splits().train.images)


@pytest.mark.parametrize("resolution", [16, 64])
def test_digits_enlarged(resolution):
    native, large = digits_splits(), digits_splits(resolution=resolution)
    assert large.train.resolution == resolution
    np.testing.assert_array_equal(large.train.labels, native.train.labels)
    k = resolution // 8
    means = large.train.images.reshape(-1, 8, k, 8, k).mean((2, 4))
    error = np.abs(means - native.train.images[..., 0])
    assert error.mean() < 15  # the same pictures, in the same places and order
    steps = np.abs(np.diff(large.train.images[..., 0].astype(int), axis=2)).max()
    assert steps < np.abs(np.diff(native.train.images[..., 0].astype(int), axis=2)).max()  # smoother, not blocky


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 12}, "power of two"),
        ({"resolution": 4}, "power of two"),
        ({"resolution": 128}, "at most 64"),
        ({"largest": 179}, 'There are 178 images of digit "0", but 179'),
        ({"imbalance_factor": 1.0, "largest": 175}, 'There are 174 images of digit "8", but 175'),
        ({"seed": -1}, "negative"),
    ],
)
def test_digits_refuses(options, message):
    with pytest.raises(UserError, match=message):
        digits_splits(**options)


@pytest.mark.parametrize("channels", [1, 3])
def test_synthetic(channels):
    source = synthetic_splits(resolution=16, num_classes=4, num_images=300, channels=channels, seed=3).train
    assert source.images.shape == (300, 16, 16, channels)
    assert source.class_counts.tolist() == [75] * 4
    assert len(rows(source.images)) == 300
    images = source.images.astype(np.float32)
    class_means = np.stack([images[source.labels == c].mean(0) for c in range(4)])
    between, within = class_means.var(0).mean(), np.mean([images[source.labels == c].var(0).mean() for c in range(4)])
    assert between > within > 0  # the class shows, and images of a class differ
    assert np.abs(np.diff(images, axis=2)).mean() < images.std() / 2  # smooth
    assert images.min() < 20 and images.max() > 235 and 100 < images.mean() < 156


def test_synthetic_seed():
    first, again, other = (synthetic_splits(8, 2, 10, seed=s).train.fingerprint for s in (0, 0, 1))
    assert first == again != other


def test_synthetic_long_tail():
    splits = synthetic_splits(8, num_classes=5, num_images=102, imbalance_factor=0.1)
    assert splits.train.class_counts.tolist() == [20, 11, 6, 3, 2]
    assert splits.reference.class_counts.tolist() == [21, 21, 20, 20, 20]
    for c in range(5):
        kept = splits.train.images[splits.train.labels == c]
        assert (kept == splits.reference.images[splits.reference.labels == c][: len(kept)]).all()
    balanced = synthetic_splits(8, num_classes=5, num_images=102)
    assert balanced.train is balanced.reference and balanced.train.fingerprint == splits.reference.fingerprint
    thousand = synthetic_splits(8, num_classes=1010, num_images=4040, imbalance_factor=0.25).train.class_counts
    assert thousand[0] == 4 and thousand[-1] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 10}, "power of two"),
        ({"channels": 2}, "channels"),
        ({"num_images": 9}, "raise num_images"),
        ({"num_classes": 0}, "at least one class"),
        ({"seed": -1}, "negative"),
        ({"num_images": 30, "imbalance_factor": 0.01}, "raise imbalance_factor"),
        ({"imbalance_factor": 0.0}, "imbalance_factor must be above 0"),
    ],
)
def test_synthetic_refuses(options, message):
    with pytest.raises(UserError, match=message):
        synthetic_splits(**options)


def test_load_splits():
    assert load_splits("digits_lt", resolution=8).train.fingerprint == digits_splits().train.fingerprint
    assert load_splits("synthetic", resolution=8, num_classes=3, num_images=7).train.class_counts.tolist() == [3, 2, 2]


def test_load_splits_names_the_nearest():
    with pytest.raises(UserError, match="no data set \"digit_lt\"; did you mean 'digits_lt'"):
        load_splits("digit_lt", resolution=8)
    with pytest.raises(UserError, match='no data set "zzz"; did you mean'):
        load_splits("zzz", resolution=8)
    with pytest.raises(UserError, match='"digits_lt" has no option "imbalance"; did you mean \'imbalance_factor\''):
        load_splits("digits_lt", resolution=8, imbalance=0.1)
