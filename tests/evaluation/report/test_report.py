import base64
import io
import json
import os
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from noisytwins_jax.evaluation.report.comparison import write_comparison
from noisytwins_jax.evaluation.report.report import write_report
from noisytwins_jax.evaluation.report.report_sections import format_number
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.plotting import new_figure

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects a page's addresses, pictures and rows of cells, and checks that its tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.open, self.rows, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        assert tag not in ("script", "link", "iframe")
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if ("td" in self.open or "th" in self.open) and "small" not in self.open:
            self.rows[-1][-1] += data

    def row(self, start):
        return next(row for row in self.rows if row and row[0].startswith(start))

    def pictures(self):
        assert all(address.startswith("data:image/png;base64,") for address in self.addresses)
        return [Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))) for address in self.addresses]


def evaluation(fid=12.34, **protocol):
    return {
        "protocol": {
            "extractor": "digits classifier",
            "extractor_sha256": "0123456789abcdef" * 4,
            "n_real": 1797,
            "n_fake": 1800,
            "k": 5,
            "inclusive": False,
            "class_noise": False,
            "class_groups": {"head": [0], "tail": [1]},
            "warnings": ["Class 1 has few real images."],
        }
        | protocol,
        "metrics": {"fid": fid, "ifid": 2.0, "recall": 0.25, "tail_recall": None, "w_ratio": 0.4, "tail_ifid": 7.5},
        "per_class": [
            {"class": 0, "name": "a<b", "n_train": 9, "ifid": 3.0, "recall": 0.5},
            {"class": 1, "name": "rare", "n_train": 2, "ifid": 7.5, "recall": None},
        ],
        "real_vs_real": {"fid": 0.5},
    }


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (700, 20), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def test_report_holds_everything_and_requests_nothing(tmp_path):
    figure = new_figure(2, 1)
    path = write_report(
        tmp_path / "run" / "report.html",
        title="Digits & <tail>",
        config_text="lr = 0.1  # a < b",
        evaluation=evaluation(),
        figures=[("Samples. Not chosen.", Image.new("RGB", (30, 10))), ("Bytes", png()), ("Plot", figure)],
    )
    assert path == tmp_path / "run" / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert [picture.size for picture in page.pictures()][:3] == [(30, 10), (700, 20), (288, 144)]
    assert len(page.pictures()) == 4  # and the per-class chart
    assert page.row("FID") == ["FID\N{NO-BREAK SPACE}↓", "12.3", "0.500"]
    assert page.row("Recall") == ["Recall\N{NO-BREAK SPACE}↑", "0.250", "n/a"]
    assert not [row for row in page.rows if row[0].startswith("Tail recall")]  # None, and real against real has none
    assert page.row("tail")[:3] == ["tail", "1", "7.50"]
    assert page.row("a<b")[:2] == ["a<b", "9"]
    for said in ("Digits & <tail>", "lr = 0.1  # a < b", "0123456789abcdef" * 4, "few real images"):
        assert said in page.text


def test_report_of_a_run_without_evaluation(tmp_path):
    path = write_report(tmp_path / "report.html", title="t", config_text="", evaluation={})
    page = Page(path.read_text(encoding="utf-8"))
    assert "has not been evaluated" in page.text
    assert not page.rows and not page.pictures()


@pytest.mark.parametrize("missing", ["protocol", "metrics", "per_class", "real_vs_real"])
def test_missing_parts_are_left_out(tmp_path, missing):
    result = evaluation()
    del result[missing]
    page = Page(write_report(tmp_path / "r.html", title="t", config_text="c", evaluation=result).read_text("utf-8"))
    assert ("12.3" in page.text) == (missing != "metrics")


def test_a_failed_report_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(UserError, match="PNG"):
        write_report(path, title="t", config_text="", evaluation={}, figures=[("x", b"GIF89a")])

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_report(path, title="t", config_text="", evaluation={})
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_comparison_marks_the_best_and_puts_runs_side_by_side(tmp_path):
    rng = np.random.default_rng(0)
    w = (rng.normal(size=(20, 4)), np.arange(20) % 2)
    runs = {
        "base": {"evaluation": evaluation(20.0), "sheet": Image.new("RGB", (40, 10)), "w": w},
        "twins": {"evaluation": evaluation(10.0), "sheet": Image.new("RGB", (41, 10)), "w": w},
        "untested": {"w": w},
    }
    text = write_comparison(tmp_path / "compare.html", runs).read_text(encoding="utf-8")
    page = Page(text)
    assert page.row("FID") == ["FID\N{NO-BREAK SPACE}↓", "20.0", "10.0", "0.500"]
    assert '<span class="best">10.0</span>' in text and '<span class="best">20.0</span>' not in text
    assert '<span class="best">0.400</span>' not in text  # neither end of the W ratio is best
    assert [picture.size for picture in page.pictures()][:2] == [(40, 10), (41, 10)]
    assert len(page.pictures()) == 4


def test_comparison_of_different_protocols_is_refused(tmp_path):
    runs = {"a": {"evaluation": evaluation(k=5, seed=0)}, "b": {"evaluation": evaluation(k=3, seed=0)}}
    with pytest.raises(UserError, match=r"a and b .*different protocols \(k: 5 and 3\)"):
        write_comparison(tmp_path / "c.html", runs)
    assert not list(tmp_path.iterdir())


def test_comparison_leaves_out_groups_of_different_classes(tmp_path):
    results = {"a": evaluation(), "b": evaluation(class_groups={"head": [0, 1], "tail": []})}
    path = write_comparison(tmp_path / "c.html", {name: {"evaluation": result} for name, result in results.items()})
    page = Page(path.read_text("utf-8"))
    assert "different classes" in page.text and page.row("iFID")
    assert not [row for row in page.rows if row[0].startswith("Tail")]


def test_comparison_shows_what_only_one_run_was_measured_with(tmp_path):
    richer = full_evaluation()
    plain = json.loads(json.dumps(richer))
    del plain["protocol"]["extractors"]["clip"]
    plain["metrics"] = {key: value for key, value in plain["metrics"].items() if "clip" not in key}
    plain["real_vs_real"].pop("fid_clip")
    path = write_comparison(tmp_path / "c.html", {"plain": {"evaluation": plain}, "richer": {"evaluation": richer}})
    page = Page(path.read_text("utf-8"))
    assert page.row("FID_CLIP") == ["FID_CLIP\N{NO-BREAK SPACE}↓", "n/a", "3.25", "0.500"]
    assert "b" * 64 in page.text and "… of step" not in page.text


def full_evaluation():
    """All that an evaluation can hold."""
    result = evaluation(
        name="noisytwins",
        headline_extractor="inception",
        extractors={
            "inception": {"name": "inception-67", "sha256": "a" * 64, "feature_dim": 2048, "description": {"a": 1}},
            "clip": {"name": "clip-b32", "sha256": "b" * 64, "description": {"preprocessing": "torch bicubic"}},
        },
        preprocessing="center-lanczos",
        reference_split="valid",
        n_fake_per_class=500,
        n_fake_pooled=900,
        labels="balanced",
        truncation_psi=1.0,
        inception_score={"logits": "1008 with bias", "splits": 10, "shuffle_seed": 2020},
        kid={"subsets": 100, "subset_size": 1000},
        seed=0,
        step=40,
    )
    result["metrics"] |= {
        "fid_clip": 3.25, "ifid_clip": 9.5, "tail_ifid_clip": None, "tail_fid_clip": 6.75, "fd_dinov2": 140.0,
        "cmmd": 0.75, "kid": 0.00213, "kid_std": 0.0004, "inception_score": 8.25, "inception_score_std": 0.125,
        "auth_pct": 81.25,
    }  # fmt: skip
    result["real_vs_real"] |= {"fid_clip": 0.5, "inception_score": 9.5}
    for row in result["per_class"]:
        row |= {"ifid_clip": 4.5, "coverage": 0.625}
    point = {"n_fake": 900, "fid": 20.0, "inception_score": 8.25, "precision": 0.5, "recall": 0.25}
    strong = point | {"strength": 0.5, "fid": 30.0, "inception_score": 9.0, "precision": 0.75, "recall": 0.125}
    result["truncation"] = {
        "kind": "psi",
        "real_inception_score": 9.25,
        "points": [point | {"strength": 1.0}, strong],
        "operating_points": {
            "best_fid": point | {"strength": 1.0},
            "real_inception_score": None,
            "max_inception_score": strong,
        },
    }
    distances = {"median": 5.5, "quantiles": {"0.01": 1.0, "0.25": 4.0, "0.5": 5.5, "0.75": 7.0, "0.99": 9.0}}
    part = {"auth_pct": 81.25, "n_train": 11, "n_fake": 900, "fake_to_train": distances, "held_out_to_train": None}
    result["memorisation"] = {"overall": part | {"share_nearer_than_held_out": None}, "within_class": None}
    return result


def test_report_shows_every_part_that_was_measured(tmp_path):
    result = full_evaluation()
    page = Page(write_report(tmp_path / "r.html", title="t", config_text="", evaluation=result).read_text("utf-8"))
    rows = {row[0].split("\N{NO-BREAK SPACE}")[0]: row[1:] for row in page.rows}
    assert rows["FID_CLIP"] == ["3.25", "0.500"] and "Tail iFID_CLIP" not in rows
    assert rows["KID"] == ["0.0021\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.0004", "n/a"]
    assert rows["Inception Score"] == ["8.25\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.125", "9.50"]
    assert rows["AuthPct"][0] == "81.2" and rows["CMMD"][0] == "0.750" and rows["FD_DINOv2"][0] == "140.0"
    headlines = ["FID", "FID_CLIP", "KID", "Recall", "AuthPct"]
    assert [name for name in rows if name in headlines] == headlines
    assert rows["Group"] == ["Classes", "iFID", "FID_CLIP, pooled"]
    assert rows["tail"] == ["1", "7.50", "6.75"] and rows["head"] == ["1"] + 2 * ["n/a"]
    assert rows["Class"] == ["Training images", "iFID", "iFID_CLIP", "Recall", "Coverage"]
    assert rows["rare"] == ["2", "7.50", "4.50", "n/a", "0.625"]
    assert rows["Truncation"] == ["FID", "Inception Score", "Precision", "Recall", "Generated images"]
    assert rows["ψ = 0.5"] == ["30.0", "9.00", "0.750", "0.125", "900"] and "best FID" in page.text
    assert rows["Training images"] == ["AuthPct", "Generated, median"] and rows["All"] == ["81.2", "5.50"]
    assert "Distances to the nearest of 11 training images, from 900 generated ones" in page.text
    assert "does not reach the Inception Score of the real images, 9.25: its own are from 8.25 to 9." in page.text
    assert len(page.pictures()) == 3  # classes, truncation and distances
    for said in ("noisytwins", "a" * 64, "b" * 64, "torch bicubic", "center-lanczos", "valid", "900", "1008 with bias",
                 "splits: 10, shuffled, 2020", "100 subsets of 1000", "distance < radius", "balanced",
                 "inception-67, 2048 features, the headline's", "FID_CLIP and iFID_CLIP", "AuthPct"):  # fmt: skip
        assert said in page.text
    assert page.text.count("Protocol noisytwins: 500 generated images per class") == 2


def test_words_explain_only_what_is_there(tmp_path):
    page = Page(
        write_report(tmp_path / "r.html", title="t", config_text="", evaluation=evaluation()).read_text("utf-8")
    )
    assert "FID and iFID" in page.text
    for absent in ("CLIP", "DINOv2", "KID", "AuthPct", "Truncation", "Memorisation", "Inception Score"):
        assert absent not in page.text


def test_curves_are_explained_where_they_are_logged(tmp_path):
    curves = {"loss/discriminator", "loss/r1", "kimg"}
    page = read(write_report(tmp_path / "r.html", title="t", config_text="", evaluation=evaluation(), curves=curves))
    words = page.text.split("How to read this page")[1]
    assert "Curves of the losses" in words and "loss/r1" in words
    assert "augment/p" not in words and "lecam" not in words


def read(path):
    return Page(path.read_text("utf-8"))


def words_on(page, name):
    """The explanation under "How to read this page"."""
    return page.text.split("How to read this page")[1].split(name)[1].split("Precision and recall")[0]


@pytest.mark.parametrize(("headline", "imagenet"), [("inception", True), ("classifier", False), (None, False)])
def test_the_inception_score_is_explained_by_the_network_it_comes_from(tmp_path, headline, imagenet):
    result = full_evaluation()
    result["protocol"]["headline_extractor"] = headline
    reports = [
        write_report(tmp_path / "r.html", title="t", config_text="", evaluation=result),
        write_comparison(tmp_path / "c.html", {"run": {"evaluation": result}}),
    ]
    for path in reports:
        words = words_on(read(path), "Inception Score")
        assert ("one of ImageNet's classes" in words) == imagenet and ("data set's own classifier" in words) != imagenet


def test_numbers_that_are_none_everywhere_are_left_out(tmp_path):
    result = evaluation()
    result["metrics"] |= {"class_accuracy": None, "w_ratio": None, "tail_class_accuracy": None, "tail_w_ratio": None}
    result["metrics"] |= {"tail_precision": 0.5}
    for row in result["per_class"]:
        row |= {"class_accuracy": None, "w_ratio": None, "precision": 0.25}
    page = read(write_report(tmp_path / "r.html", title="t", config_text="", evaluation=result))
    for absent in ("Class accuracy", "W ratio", "Pictures of W"):
        assert absent not in page.text
    assert page.row("Group") == ["Group", "Classes", "iFID", "Precision"] and page.row("FID")
    assert page.row("Class") == ["Class", "Training images", "iFID", "Precision", "Recall"]


def test_memorisation_is_compared_with_held_out_images_within_the_class_too(tmp_path):
    result = full_evaluation()
    far = {"median": 6.5, "quantiles": {"0.01": 2.0, "0.25": 5.0, "0.75": 8.0, "0.99": 9.5}}
    whole = result["memorisation"]["overall"] | {"n_held_out": 597, "held_out_to_train": far}
    whole["share_nearer_than_held_out"] = 0.125
    within = whole | {"auth_pct": None, "share_nearer_than_held_out": 0.0625}
    result["memorisation"] = {"overall": whole | {"auth_pct": None}, "within_class": within}
    page = read(write_report(tmp_path / "r.html", title="t", config_text="", evaluation=result))
    assert page.row("Training images") == ["Training images", "Generated, median", "Held-out, median", "Near copies"]
    assert page.row("All") == ["All", "5.50", "6.50", "0.125"]
    assert page.row("Same class") == ["Same class", "5.50", "6.50", "0.062"]
    assert "of 11 training images, from 900 generated ones and 597 held-out real ones" in page.text
    assert max(len(cell) for cell in page.row("Training images")) <= 20  # it has to fit the page


def classless(**protocol):
    """Images from files without classes."""
    result = full_evaluation()
    del result["truncation"]
    result["protocol"] |= {"classes": False, "weights": "files", "truncation_psi": None, "class_groups": {}} | protocol
    for key in ("ifid", "ifid_clip", "tail_ifid", "w_ratio"):
        result["metrics"][key] = None
    result["per_class"] = [{"class": 0, "name": "all", "n_train": 11, "n_real": 1797, "ifid": None, "recall": None}]
    result["memorisation"]["within_class"] = result["memorisation"]["overall"]
    return result


def test_images_without_classes(tmp_path):
    page = read(write_report(tmp_path / "r.html", title="t", config_text="", evaluation=classless(headline="pooled")))
    assert "1800 generated images, without classes, against 1797 real ones" in page.text
    assert "Note: pooled." in page.text
    for absent in ("per class", "of each", "Head to tail", "Same class", "balanced", "iFID "):
        assert absent not in page.text
    assert page.row("FID")[1] == "12.3" and len(page.pictures()) == 1  # distances to all training images


@pytest.mark.parametrize("names", [("run", "files"), ("files", "run")])
def test_a_run_beside_images_without_classes(tmp_path, names):
    results = {"run": full_evaluation(), "files": classless(n_fake_per_class=1800)}
    results["run"]["protocol"]["weights"] = "ema"
    page = read(write_comparison(tmp_path / "c.html", {name: {"evaluation": results[name]} for name in names}))
    assert page.row("iFID")[1 + names.index("files")] == "n/a" and page.row("iFID")[1 + names.index("run")] == "2.00"
    assert "Protocol noisytwins: 500 generated images per class" in page.text and "images from files" in page.text
    assert "different classes" not in page.text and "Every class, head to tail" in page.text
    assert page.row("Tail iFID")[1 + names.index("run")] == "7.50" and "Generator weights" not in page.text


def test_comparison_of_nothing(tmp_path):
    with pytest.raises(UserError, match="no run"):
        write_comparison(tmp_path / "c.html", {})


def test_numbers():
    values = [
        None,
        np.float32("nan"),
        123.456,
        12.34,
        1.234,
        1.0,
        0.01234,
        7,
        np.float32(0.5),
        np.int64(3),
        0.00213,
        -0.00004,
        0.0,
        True,
        "ema",
    ]
    shown = [
        "n/a",
        "n/a",
        "123.5",
        "12.3",
        "1.23",
        "1.000",
        "0.012",
        "7",
        "0.500",
        "3",
        "0.0021",
        "-4e-05",
        "0.000",
        "on",
        "ema",
    ]
    assert [format_number(value) for value in values] == shown
