import numpy as np
import pytest

from noisytwins_jax.data.long_tail import class_groups, count_classes, long_tail_counts
from noisytwins_jax.utils.errors import UserError

DIGITS = [174, 124, 89, 64, 45, 32, 23, 16, 12, 8]


@pytest.mark.parametrize(
    ("largest", "imbalance_factor", "expected"),
    [
        (174, 0.05, DIGITS),
        (5000, 0.01, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),  # CIFAR10-LT, 12406 images
        (7, 1.0, [7] * 10),
    ],
)
def test_long_tail_counts(largest, imbalance_factor, expected):
    counts = long_tail_counts(largest, 10, imbalance_factor)
    assert counts.tolist() == expected
    assert counts.dtype == np.int64


def test_long_tail_counts_of_one_class():
    assert long_tail_counts(5, 1, 0.01).tolist() == [5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, 0.1), "at least one image"),
        ((10, 0, 0.1), "one class"),
        ((10, 10, 0.0), "above 0"),
        ((10, 10, 100.0), "at most 1"),
        ((10, 10, 0.01), "at least 0.1"),
    ],
)
def test_long_tail_counts_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        long_tail_counts(*arguments)


def test_long_tail_counts_advice_is_enough():
    assert long_tail_counts(10, 10, 0.1)[-1] == 1


def test_count_classes():
    counts = count_classes([2, 0, 1, 2, 2], 3)
    assert counts.tolist() == [1, 1, 3]
    assert counts.dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
    [
        ([0, 1, 2, 7], 3, r"class 7, outside the range 0\.\.2"),
        ([0, -1, 1], 2, "class -1, outside"),
        ([0, 2, 4], 5, r"gaps: there are no images of classes 1, 3,"),
        ([0, 1], 3, r"no images of class 2; add some, or set num_classes to 2\."),
        ([], 3, "no images"),
        ([[0], [1]], 2, "one-dimensional"),
        ([0.0, 1.0], 2, "float64"),
    ],
)
def test_count_classes_refuses(labels, num_classes, message):
    with pytest.raises(UserError, match=message):
        count_classes(np.array(labels), num_classes)


def test_count_classes_names_at_most_ten():
    with pytest.raises(UserError, match=r"classes 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 9 more,"):
        count_classes([0, 20], 21)


@pytest.mark.parametrize(("num_classes", "sizes"), [(1, [0, 1, 0]), (2, [1, 0, 1]), (3, [1, 1, 1]), (10, [3, 4, 3])])
def test_class_groups_by_thirds(num_classes, sizes):
    groups = class_groups(np.arange(num_classes, 0, -1))
    assert list(groups) == ["head", "medium", "tail"]
    assert [len(g) for g in groups.values()] == sizes
    assert np.concatenate(list(groups.values())).tolist() == list(range(num_classes))


def test_class_groups_sorts_by_frequency():
    shuffled = np.random.default_rng(0).permutation(10)
    counts = np.array(DIGITS)[shuffled]
    groups = class_groups(counts)
    assert counts[groups["head"]].tolist() == [174, 124, 89]
    assert counts[groups["medium"]].tolist() == [64, 45, 32, 23]
    assert counts[groups["tail"]].tolist() == [16, 12, 8]


def test_class_groups_by_thresholds():
    groups = class_groups([100, 8, 20, 101, 19], thresholds=(20, 100))
    assert {k: v.tolist() for k, v in groups.items()} == {"head": [3], "medium": [0, 2], "tail": [4, 1]}


def test_class_groups_may_be_empty():
    groups = class_groups([3, 5], thresholds=(20, 100))
    assert {k: v.tolist() for k, v in groups.items()} == {"head": [], "medium": [], "tail": [1, 0]}


def test_class_groups_refuses_swapped_thresholds():
    with pytest.raises(UserError, match="low at most high"):
        class_groups([3, 5], thresholds=(100, 20))
