import io

import matplotlib.colors
import numpy as np
import pytest
from PIL import Image

from noisytwins_jax.data.long_tail import class_groups
from noisytwins_jax.data.prepare.class_summary import describe_classes, draw_class_counts
from noisytwins_jax.utils.plotting import RUN_COLOURS


def information(counts, thresholds=(20, 100), names=None):
    groups = class_groups(counts, thresholds)
    return {
        "class_names": names or [f"class {label}" for label in range(len(counts))],
        "resolution": 64,
        "preprocessing": "center-lanczos",
        "group_thresholds": list(thresholds),
        "group_sizes": {group: len(ids) for group, ids in groups.items()},
        "splits": {"train": {"images": sum(counts), "class_counts": list(counts)}, "reference": {"images": 77}},
    }


def test_totals_and_groups():
    # At the thresholds themselves a class is in the medium group.
    first, second, *_ = describe_classes(information([101, 100, 20, 19, 5])).splitlines()
    assert first == ("5 classes, 245 train, 77 reference images of 64 px (center-lanczos); imbalance factor 0.0495")
    assert second == ("1 classes have more than 100 training images, 2 from 20 to 100, 2 fewer than 20")


def test_classes_from_head_to_tail():
    *_, first, second, third = describe_classes(information([10, 400, 100], names=["ox", "cat", "a" * 50])).splitlines()
    assert first.split() == ["1.", "cat", "400", "█" * 40]
    assert second.split() == ["2.", "a" * 31 + "…", "100", "█" * 10]
    assert third.split() == ["3.", "ox", "10", "█"]
    assert len({line.index("█") for line in (first, second, third)}) == 1


def test_rarest_class_has_a_bar():
    assert describe_classes(information([10_000, 1])).splitlines()[-1].endswith(" 1 █")


def test_many_classes_are_shown_in_part():
    counts = np.random.default_rng(0).permutation(np.arange(1, 1011)).tolist()
    lines = describe_classes(information(counts)).splitlines()[2:]
    places = [int(line.split(".")[0]) for line in lines]
    assert len(places) == 10 and places[0] == 1 and places[-1] == 1010
    assert places == sorted(set(places))
    assert [int(line.split()[3]) for line in lines] == [1011 - place for place in places]


def test_one_class():
    lines = describe_classes(information([7])).splitlines()
    assert lines[0].startswith("1 classes, 7 train") and "imbalance factor 1" in lines[0]
    assert len(lines) == 3


@pytest.mark.parametrize("num_classes", [1, 10, 1010])
@pytest.mark.parametrize("thresholds", [(20, 100), (0, 0), (10_000, 10_000)])
def test_picture(tmp_path, num_classes, thresholds):
    counts = np.random.default_rng(0).integers(1, 1300, num_classes).tolist()
    path = tmp_path / "counts.png"
    draw_class_counts(path, "a set", counts, thresholds)
    image = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
    assert image.shape[0] > 200 and image.shape[1] > 400
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10


def test_picture_is_from_head_to_tail(tmp_path):
    draw_class_counts(tmp_path / "counts.png", "a set", [4, 100, 4, 20], (5, 50))
    image = np.asarray(Image.open(tmp_path / "counts.png").convert("RGB"))
    colours = (matplotlib.colors.to_rgb(RUN_COLOURS[i]) for i in (0, 6, 1))  # head, medium, tail
    columns = [np.nonzero((image == np.round(np.array(c) * 255)).all(-1))[1] for c in colours]
    assert [len(x) > 1000 for x in columns] == [True] * 3
    head, medium, tail = map(np.median, columns)
    assert head < medium < tail


def test_picture_is_of_the_counts(tmp_path):
    for name, counts in (("a", [100, 10, 1]), ("b", [1, 100, 10]), ("c", [100, 100, 100])):
        draw_class_counts(tmp_path / name, "a set", counts, (5, 50))
    first, permuted, level = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == permuted != level
