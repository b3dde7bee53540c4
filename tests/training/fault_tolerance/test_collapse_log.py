"""Records of collapses, and which of them a run discards when it resumes from an earlier step."""

import pytest

from noisytwins_jax.training.fault_tolerance.collapse_detector import Collapse
from noisytwins_jax.training.fault_tolerance.collapse_log import (
    FILE,
    count_returns,
    discard_alarms_after,
    read_collapses,
    write_collapse,
)
from noisytwins_jax.utils.errors import UserError


def collapse(step):
    return Collapse(step, step - 50, f"σ0 of generator/linear grew up to step {step}")


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    return tmp_path


def write(workdir, step, kept, returned):
    write_collapse(workdir, collapse(step), kept, workdir / "metrics.jsonl" if returned else None)


def test_there_is_none_at_first(workdir):
    assert read_collapses(workdir) == []
    assert discard_alarms_after(workdir, 0) == []
    assert count_returns([]) == 0
    assert [path.name for path in workdir.iterdir()] == ["metrics.jsonl"]


def test_records_and_the_log_of_what_was_given_up(workdir):
    write(workdir, 100, None, returned=False)
    write(workdir, 300, 200, returned=True)
    (workdir / "metrics.jsonl").write_text('{"step": 2}\n')
    write(workdir, 300, 200, returned=True)  # at the same step again
    records = read_collapses(workdir)
    assert records[0] == {
        "step": 100,
        "sign": "σ0 of generator/linear grew up to step 100",
        "good_step": 50,
        "kept": None,
        "returned": False,
        "log": None,
    }
    assert [(record["step"], record["kept"], record["returned"]) for record in records[1:]] == [(300, 200, True)] * 2
    assert [(workdir / record["log"]).read_text() for record in records[1:]] == ['{"step": 1}\n', '{"step": 2}\n']
    assert count_returns(records) == 2


def test_later_alarms_are_discarded(workdir):
    write(workdir, 250, 200, returned=False)
    write(workdir, 500, 400, returned=True)
    write(workdir, 450, 400, returned=False)
    assert discard_alarms_after(workdir, 450) == read_collapses(workdir)
    assert [record["step"] for record in read_collapses(workdir)] == [250, 500, 450]
    assert [record["step"] for record in discard_alarms_after(workdir, 400)] == [250, 500]  # it resumes from there
    # Nor are returns forgotten when a later one goes back further.
    write(workdir, 480, 200, returned=True)
    assert [record["step"] for record in discard_alarms_after(workdir, 200)] == [500, 480]
    assert [record["step"] for record in read_collapses(workdir)] == [500, 480]
    assert discard_alarms_after(workdir, 0) == read_collapses(workdir) == []  # it starts over


@pytest.mark.parametrize("text", ["", "[{", "\x00"])
def test_a_damaged_file_is_refused(workdir, text):
    (workdir / FILE).write_text(text)
    with pytest.raises(UserError, match=r"collapses\.json is not readable JSON; restore it, or move it away"):
        read_collapses(workdir)
