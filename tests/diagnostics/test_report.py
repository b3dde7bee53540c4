import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from noisytwins_jax.diagnostics import webpage
from noisytwins_jax.diagnostics.report import format_number, protocol_differences, write_comparison, write_report
from noisytwins_jax.errors import UserError
from noisytwins_jax.figures import new_figure

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
        "floor": {"fid": 0.5},
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
        tables=[("Speed", ("what", "img/s"), [("step", 1234.5)])],
        notes=["One seed only."],
    )
    assert path == tmp_path / "run" / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert [picture.size for picture in page.pictures()][:3] == [(30, 10), (700, 20), (288, 144)]
    assert len(page.pictures()) == 4  # and the per-class chart
    assert page.row("FID") == ["FID\N{NO-BREAK SPACE}↓", "12.3", "0.500"]
    assert page.row("Recall") == ["Recall\N{NO-BREAK SPACE}↑", "0.250", "n/a"]
    assert page.row("Tail recall")[1] == "n/a"
    assert page.row("tail")[:3] == ["tail", "1", "7.50"]
    assert page.row("a<b")[:2] == ["a<b", "9"]
    assert page.row("step") == ["step", "1234.5"]
    for said in ("Digits & <tail>", "lr = 0.1  # a < b", "0123456789abcdef" * 4, "One seed only.", "few real images"):
        assert said in page.text


def test_report_of_a_run_without_evaluation(tmp_path):
    path = write_report(tmp_path / "report.html", title="t", config_text="", evaluation={})
    page = Page(path.read_text(encoding="utf-8"))
    assert "has not been evaluated" in page.text
    assert not page.rows and not page.pictures()


@pytest.mark.parametrize("missing", ["protocol", "metrics", "per_class", "floor"])
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

    monkeypatch.setattr(webpage.os, "replace", full_disk)
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
    assert "not comparable" not in page.text


def test_comparison_says_when_protocols_differ(tmp_path):
    runs = {"a": evaluation(k=5, seed=0), "b": evaluation(k=3, seed=0)}
    (sentence,) = protocol_differences(runs)
    assert "different k (a: 5, b: 3)" in sentence
    path = write_comparison(tmp_path / "c.html", {name: {"evaluation": result} for name, result in runs.items()})
    assert sentence in Page(path.read_text(encoding="utf-8")).text


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
        True,
        "ema",
    ]
    shown = ["n/a", "n/a", "123.5", "12.3", "1.23", "1.000", "0.012", "7", "0.500", "3", "on", "ema"]
    assert [format_number(value) for value in values] == shown
