"""Numbers of training images: from the evaluation, from the data, or unknown."""

import json

import tiny_run

from noisytwins_jax.app.class_list import read_class_list

NAMES = tuple("abcd")


def test_counts_of_the_evaluation(tmp_path):
    rows = [{"class": c, "n_train": n} for c, n in enumerate((5, 9, 9, 1))]
    (tmp_path / "evaluation.json").write_text(json.dumps({"per_class": rows}))
    classes = read_class_list(tmp_path, tiny_run.tiny_config(), NAMES)
    assert classes.counts == (5, 9, 9, 1) and classes.order == [1, 2, 0, 3]
    assert {c for ids in classes.groups.values() for c in ids} == {0, 1, 2, 3} and classes.groups["tail"] == [3]


def test_counts_of_the_data(tmp_path):
    (tmp_path / "evaluation.json").write_text("no JSON")
    classes = read_class_list(tmp_path, tiny_run.tiny_config(), NAMES)
    assert sum(classes.counts) == 100


def test_unknown_counts(tmp_path):
    config = tiny_run.tiny_config(**{"data.name": "absent", "data.options": {}, "data.dir": str(tmp_path)})
    classes = read_class_list(tmp_path, config, NAMES)
    assert classes.counts is None and classes.groups == {} and classes.order == [0, 1, 2, 3]
