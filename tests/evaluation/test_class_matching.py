import numpy as np
import pytest

from noisytwins_jax.data.source import ArraySource
from noisytwins_jax.evaluation.class_matching import match_classes
from noisytwins_jax.evaluation.image_files import ALL, ImageFiles
from noisytwins_jax.utils.errors import UserError


def _files(*names, ids=None, named=True):
    return ImageFiles("images", None, 8, 1, np.arange(len(names)), names, ids, named)


def _unnamed(*ids):
    return _files(*map(str, ids), ids=ids, named=False)


def _data_set(*names):
    return ArraySource(np.zeros((len(names), 8, 8, 1), np.uint8), np.arange(len(names)), names, "data")


@pytest.mark.parametrize(
    ("names", "known", "ids"),
    [
        (("cat", "dog"), ("cat", "dog"), [0, 1]),
        (("10", "2"), ("2", "10"), [1, 0]),  # the same names, not ids
        (("0", "1"), ("cat", "dog"), [0, 1]),
        (("1",), ("cat", "dog"), [1]),
        (("0", "1"), ("000", "001"), [0, 1]),
        (("0", "2"), ("0", "1", "2"), [0, 2]),
        (("cat",), ("cat", "dog"), [0]),
        ((ALL,), ("cat", "dog"), None),
        (("cat", "dog"), (ALL,), None),
        ((ALL,), (ALL,), None),
    ],
)
def test_class_folders_are_matched(names, known, ids):
    for reference in (_data_set(*known), _files(*known)):
        labels, note = match_classes(_files(*names), reference)
        assert ids is labels is None or labels.tolist() == ids
        assert (note == "") == (ids is not None and len(ids) == len(known))
        assert ("one class" in note) == (ids is None)


FLOWERS = tuple(str(c) for c in range(1, 103))


@pytest.mark.parametrize(
    ("images", "reference", "ids"),
    [
        (_unnamed(1, 5), _data_set(*FLOWERS), [1, 5]),  # ids, though there are classes called so
        (_unnamed(0, 1), _data_set("cat", "dog"), [0, 1]),
        (_files("2", "6", ids=(1, 5)), _data_set(*FLOWERS), [1, 5]),
        (_files("dog", "cat", ids=(0, 1)), _data_set("cat", "dog"), [1, 0]),
        (_files("crane", "crane", ids=(1, 2)), _data_set("crab", "crane", "crane"), [1, 2]),  # as in ImageNet
        (_unnamed(0, 7), _unnamed(0, 3, 7), [0, 2]),
        (_files("cat", "dog", ids=(0, 7)), _unnamed(0, 3, 7), [0, 2]),
        (_files("3", "7"), _unnamed(0, 3, 7), [1, 2]),
        (_files("dog", "cat", ids=(0, 7)), _files("cat", "cow", "dog", ids=(1, 3, 9)), [2, 0]),
        (_unnamed(0, 1), _files("cat", "dog"), [0, 1]),
        (_unnamed(0, 2), _files("0", "1", "2"), [0, 2]),
    ],
)
def test_labels_are_ids(images, reference, ids):
    assert match_classes(images, reference).labels.tolist() == ids


@pytest.mark.parametrize(
    ("images", "reference", "message"),
    [
        (_files("cat", "bird"), _data_set("cat", "birds"), "'bird', which is none of the 2 .* nearest is 'birds'"),
        (_files("cat", "dog"), _files("cat"), "a class 'dog'"),
        (_files("0", "1"), _data_set("1", "2"), "a class '0'"),  # could be ids or not
        (_files("0", "2"), _data_set("cat", "dog"), "class id 2, but the reference's are 0 to 1;"),
        (_files("1", "01"), _data_set("1", "2"), "'1' and '01' of the images are one class"),
        (_files("crane"), _data_set("crane", "crane"), "2 classes called 'crane'"),
        (_unnamed(0, 102), _data_set(*FLOWERS), "class id 102, but the reference's are 0 to 101;"),
        (_unnamed(1), _unnamed(0, 3), "class id 1, but the reference's are 0 to 3 with gaps"),
        (_unnamed(1, 2), _files("1", "2"), "not clear which class ids"),
        (_files("1", ids=(0,)), _data_set("cat", "dog"), "a class '1'"),  # a name, and no id
    ],
)
def test_classes_that_do_not_match_are_refused(images, reference, message):
    with pytest.raises(UserError, match=message) as error:
        match_classes(images, reference)
    assert str(error.value)[-1] == "."
