"""One protocol for all numbers of a table."""

import pytest

from noisytwins_jax.evaluation.table import (
    check_one_protocol,
    distance_entries,
    format_means,
    format_table,
    headline_line,
    protocol_line,
    same_groups,
)
from noisytwins_jax.utils.errors import UserError

INCEPTION = {"name": "inception-6726825d", "sha256": "a" * 64, "description": {"preprocessing": "noisytwins"}}
CLIP = {"name": "clip", "sha256": "b" * 64, "description": {"preprocessing": "openai"}}
# What evaluations recorded before protocols had names.
OLD = {
    "extractor": "digits",
    "extractor_sha256": "d" * 64,
    "reference_fingerprint": "c" * 64,
    "n_real": 1000,
    "n_fake": 600,
    "n_fake_per_class": 60,
    "k": 5,
    "inclusive": False,
    "seed": 0,
    "weights": "ema",
    "truncation_psi": 1.0,
    "class_noise": False,
}
PROTOCOL = OLD | {
    "name": "noisytwins",
    "headline_extractor": "inception",
    "extractor": INCEPTION["name"],
    "extractor_sha256": INCEPTION["sha256"],
    "extractors": {"inception": INCEPTION, "clip": CLIP},
    "preprocessing": "center-lanczos",
    "reference_split": "valid",
    "n_fake": 5000,
    "n_fake_per_class": 500,
    "n_fake_pooled": 5000,
    "labels": "balanced",
    "inception_score": {"logits": "1008 with bias", "splits": 1, "shuffle_seed": None},
    "kid": {"subsets": 100, "subset_size": 1000},
    "class_groups": {"head": [0], "tail": [1]},
}
METRICS = dict.fromkeys(
    ("fid", "ifid", "tail_ifid", "precision", "recall", "tail_recall", "w_ratio", "class_accuracy"), 0.5
)


def run(protocol=PROTOCOL, metrics=METRICS, real_vs_real=None, without=(), **changed):
    """An evaluation; ``changed`` are entries of its protocol, ``without`` those that were not recorded."""
    protocol = {key: value for key, value in (protocol | changed).items() if key not in without}
    return {"protocol": protocol, "metrics": dict(metrics), "real_vs_real": real_vs_real or {}}


@pytest.mark.parametrize(
    ("entry", "value", "shown"),
    [
        ("name", "tf1", "noisytwins and tf1"),
        ("headline_extractor", "clip", "inception and clip"),
        ("reference_fingerprint", "e" * 64, "cccccccccccc and eeeeeeeeeeee"),
        ("preprocessing", "stretch", "center-lanczos and stretch"),
        ("reference_split", "train", "valid and train"),
        ("n_real", 999, "1000 and 999"),
        ("n_fake_per_class", 400, "500 and 400"),
        ("n_fake_pooled", 4000, "5000 and 4000"),
        ("k", 3, "5 and 3"),
        ("inclusive", True, "False and True"),
        ("seed", 1, "0 and 1"),
        ("weights", "live", "ema and live"),
        ("truncation_psi", 0.7, "1.0 and 0.7"),
        ("class_noise", True, "False and True"),
        ("labels", "as in training", "balanced and as in training"),
        ("kid", {"subsets": 10, "subset_size": 1000}, "100, 'subset_size'"),
        ("inception_score", {"logits": "1008 without bias", "splits": 10, "shuffle_seed": 2020}, "without bias"),
    ],
)
def test_an_entry_that_changes_numbers_is_named_with_both_runs(entry, value, shown):
    runs = {"ours": run(), "same": run(), "theirs": run(**{entry: value})}
    with pytest.raises(UserError) as refused:
        check_one_protocol(runs)
    sentence = str(refused.value)
    assert sentence.startswith("same and theirs were evaluated under different protocols (" + entry + ": ")
    assert shown in sentence and "evaluate them again" in sentence and sentence.count(". ") == 0
    for table in (lambda: format_table(runs), lambda: format_means({name: [one] for name, one in runs.items()})):
        with pytest.raises(UserError, match=f"different protocols .{entry}"):
            table()


@pytest.mark.parametrize(
    ("extractors", "entry"),
    [
        ({"inception": INCEPTION | {"sha256": "f" * 64}}, "extractors.inception.sha256"),
        ({"clip": CLIP | {"description": {"preprocessing": "noisytwins"}}}, "extractors.clip.preprocessing"),
        ({"clip": CLIP | {"preprocessing": "noisytwins"}}, "extractors.clip.preprocessing"),
    ],
)
def test_networks_that_both_have_must_be_the_same(extractors, entry):
    runs = {"a": run(), "b": run(extractors=PROTOCOL["extractors"] | extractors)}
    with pytest.raises(UserError, match=f"a and b .*{entry}"):
        check_one_protocol(runs)


def test_the_first_difference_is_the_protocols_name():
    with pytest.raises(UserError, match=r"\(name: noisytwins and embedded\)"):
        check_one_protocol({"a": run(), "b": run(OLD)})


@pytest.mark.parametrize(
    "other",
    [
        run(class_groups={"head": [0, 1], "tail": []}, step=9, n_train=7, warnings=["few images"]),
        run(extractors={"inception": INCEPTION}),  # without CLIP's numbers
        run(without=("kid", "inception_score", "reference_split")),
        run(truncation_psi=1, description="other words"),
    ],
)
def test_what_does_not_change_common_numbers_may_differ(other):
    check_one_protocol({"a": run(), "b": other, "c": run()})


def test_evaluations_without_newer_entries_stand_beside_newer_ones_of_the_same_protocol():
    newer = run(
        OLD,
        name="embedded",
        headline_extractor="classifier",
        labels="balanced",
        n_fake_pooled=600,
        preprocessing="",
        extractors={"classifier": {"name": "digits", "sha256": "d" * 64}},
    )
    check_one_protocol({"old": run(OLD), "older": run(OLD), "new": newer})
    check_one_protocol({"old": {"metrics": {}}, "older": {"protocol": None}})
    for entry in ("n_real", "k", "extractor_sha256"):  # nothing says what it was
        with pytest.raises(UserError, match=f"{entry}: not recorded and"):
            check_one_protocol({"lacking": run(OLD, without=[entry]), "new": newer})


def test_a_row_a_run_then_real_against_real_and_the_protocol():
    numbers = METRICS | {"fid": 12.345, "tail_ifid": 7.5, "class_accuracy": 0.625}
    first = run(OLD, numbers, real_vs_real={"fid": 0.25, "ifid": 1.0})
    lines = format_table({"baseline": first, "ours": run(OLD, numbers | {"recall": None})}).splitlines()
    columns = ["FID", "iFID", "tail iFID", "precision", "recall", "tail recall", "W ratio", "class accuracy"]
    assert [word for word in columns if word in lines[0]] == columns
    assert lines[0].split() == " ".join(["run", *columns]).split()
    assert (
        lines[2].startswith("baseline")
        and lines[3].startswith("ours")
        and lines[4].startswith("real half vs real half")
    )
    assert lines[2].split()[1:] == ["12.35", "0.50", "7.50", "0.500", "0.500", "0.500", "0.500", "0.625"]
    assert lines[3].split()[5] == "-" and lines[4].split()[5:] == ["0.25", "1.00"] + 6 * ["-"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert "60 generated images per class against 1000 real ones" in lines[5] and "k = 5" in lines[5]


def test_clip_columns_are_shown_where_a_run_has_them():
    plain, clip = run(), run(metrics=METRICS | {"fid_clip": 3.25, "ifid_clip": 7.125})
    assert "CLIP" not in format_table({"a": plain, "b": plain})
    assert "iFD_DINOv2" in format_table({"a": plain, "b": run(metrics={"fd_dinov2": 9.0, "ifd_dinov2": 9.5})})
    heading, _, first, second, _ = format_table({"a": plain, "b": clip}).splitlines()
    assert heading.index("tail iFID") < heading.index("FID_CLIP") < heading.index("precision")
    assert "iFID_CLIP" in heading and first.split().count("-") == 2 and "3.250" in second and "7.125" in second
    assert "3.250 ± 0.000" in format_means({"b": [clip, clip], "a": [plain, plain]})


def test_one_line_says_the_protocol():
    line = protocol_line(run(truncation_psi=0.7, class_noise=True))
    for said in ("Protocol noisytwins", "500 generated", "1000 real", "5000 generated ones pooled", "inception-6726825d", "k = 5",
                 "distance < radius", "psi = 0.7", "class noise"):  # fmt: skip
        assert said in line
    assert "\n" not in line and "psi" not in protocol_line(run())
    files = protocol_line(run(n_fake_per_class=None, labels="as in the files"))
    assert "5000 generated images, labels as in the files, against 1000 real ones" in files
    assert "Protocol embedded" in protocol_line(run(OLD)) and protocol_line({})
    for text in (format_table({"a": run()}), format_means({"a": [run(), run()]})):
        assert text.splitlines()[-1] == protocol_line(run())


def test_groups_of_different_classes_are_left_out():
    runs = {"a": run(), "b": run(class_groups={"head": [0, 1], "tail": []})}
    assert not same_groups(runs) and same_groups({"a": run(), "b": run()})
    text = format_table(runs)
    assert "tail iFID" not in text and "tail recall" not in text and "different classes" in text
    assert "iFID" in text


def files(**changed):
    """Images from files: of their generator nothing is known."""
    return run(**{"weights": "files", "truncation_psi": None, "class_noise": None} | changed)


def test_what_nobody_knows_of_images_from_files_is_no_difference():
    strong = run(truncation_psi=0.7, class_noise=True, weights="live")
    for runs in ({"a": strong, "b": files()}, {"b": files(), "a": strong}, {"b": files(), "c": files(), "a": run()}):
        check_one_protocol(runs)
        assert "images from files are not known" in format_table(runs)
    assert "not known" not in format_table({"b": files(), "c": files()})
    for entry, value in {"truncation_psi": 0.5, "k": 3, "labels": "as in the files"}.items():
        with pytest.raises(UserError, match=f"a and b .*{entry}"):
            check_one_protocol({"a": strong, "b": files(**{entry: value})})
    with pytest.raises(UserError, match=r"a and c .*truncation_psi: 0.7 and 1.0"):  # files between them hide nothing
        check_one_protocol({"a": run(truncation_psi=0.7), "b": files(), "c": run()})


def test_without_classes_only_what_is_pooled_must_be_alike():
    def of_files(**changed):
        return files(
            metrics={"fid": 1.25, "recall": 0.5, "ifid": None, "tail_ifid": None},
            real_vs_real={"fid": 0.125, "ifid": 0.25},
            **{"classes": False, "n_fake_per_class": 5000, "class_groups": {}, "labels": "as in the files"} | changed,
        )

    pooled = of_files()
    for runs in ({"a": run(), "b": pooled}, {"b": pooled, "a": run(real_vs_real={"fid": 0.375})}):
        text = format_table(runs)
        assert "tail iFID" in text and "different classes" not in text and "500 generated images per class" in text
        (row,) = [line for line in text.splitlines() if line.startswith("b ")]
        assert row.split()[1:4] == ["1.25", "-", "-"]
    assert "0.38" in text and "0.12" not in text  # the run's own numbers go before
    alone = format_table({"b": pooled})
    assert "iFID" not in alone and "per class" not in alone and "tail" not in alone
    assert "5000 generated images, without classes, against 1000 real ones" in alone
    with pytest.raises(UserError, match="n_fake_pooled: 5000 and 4000"):
        check_one_protocol({"a": run(), "b": of_files(n_fake_pooled=4000)})


def test_labels_of_files_are_never_per_class():
    line = protocol_line(files(labels="as in the files"))
    assert "5000 generated images, labels as in the files, against" in line and "per class" not in line


def test_columns_without_a_number_are_left_out():
    lacking = METRICS | {"w_ratio": None, "class_accuracy": None}
    for text in (format_table({"a": run(metrics=lacking)}), format_means({"a": 2 * [run(metrics=lacking)]})):
        assert "W ratio" not in text and "class accuracy" not in text and "tail recall" in text
    both = format_table({"a": run(metrics=lacking), "b": run()})
    assert "W ratio" in both and both.splitlines()[2].split()[-2:] == ["-", "-"]


@pytest.mark.parametrize(
    ("protocol", "metrics", "line"),
    [
        ({"n_fake_pooled": 50000}, {"fid": 22.16, "recall": 0.0712}, "FID 22.2, recall 0.071 (protocol noisytwins, 50000 images)"),
        ({"headline_extractor": "clip"}, {"fid_clip": 3.257, "fid": 9.0, "recall": 0.5}, "FID_CLIP 3.26, recall 0.500 (protocol noisytwins, 5000 images)"),
        ({"headline_extractor": "dinov2", "n_fake_pooled": None}, {"fd_dinov2": 140.26}, "FD_DINOv2 140.3 (protocol noisytwins, 5000 images)"),
        ({"name": "embedded", "headline_extractor": "classifier"}, {"fid": 0.0, "recall": None}, "FID 0.000 (protocol embedded, 5000 images)"),
        ({}, {"fid": None}, "no headline numbers (protocol noisytwins, 5000 images)"),
    ],
)  # fmt: skip
def test_the_headline_in_one_line(protocol, metrics, line):
    assert headline_line(run(metrics=metrics, **protocol)) == line
    assert headline_line({}) == "no headline numbers (protocol embedded, ? images)"


def test_undefined_numbers_are_dashes():
    text = format_means({"a": [run(), run(metrics={"fid": None})]})
    assert text.splitlines()[2].count(" - ") + text.splitlines()[2].endswith(" -") == 8
    assert format_table({}) == "no evaluations" and "0 seeds" not in format_means({})


@pytest.mark.parametrize(
    ("entry", "value", "same"),
    [
        ("name", "tf1", False),
        ("headline_extractor", "clip", False),
        ("extractor_sha256", "e" * 64, False),
        ("reference_fingerprint", "e" * 64, False),
        ("n_fake_pooled", 4000, False),
        ("seed", 1, False),
        ("k", 3, True),  # no matter to a distance
        ("extractors", {"inception": INCEPTION}, True),
        ("step", 9, True),
    ],
)
def test_entries_that_make_distances_of_one_run_comparable(entry, value, same):
    changed = distance_entries(run(**{entry: value}))
    assert (changed == distance_entries(run())) == same and changed.get(entry, value) == value
