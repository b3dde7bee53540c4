from pathlib import Path

import pytest

import noisytwins_jax
from noisytwins_jax.training.fault_tolerance.consistency import (
    _describe_difference,
    check_consistency,
    check_same_data,
    code_fingerprint,
)
from noisytwins_jax.utils.errors import UserError
from noisytwins_jax.utils.multihost import gather_strings, name_processes, raise_on_all_processes


def test_one_process_agrees_with_itself():
    check_consistency({"code": code_fingerprint()})
    assert gather_strings("x") == ["x"]
    with pytest.raises(UserError, match=r"^mine$"), raise_on_all_processes():
        raise UserError("mine")


def test_the_describe_difference_in_the_order_of_the_facts():
    facts = {"config.name": "run", "config.seed": "0", "data": "abc"}
    by_process = [facts, facts, facts | {"data": "x" * 100, "config.seed": "1"}, facts]
    assert _describe_difference(by_process[:2]) is None
    assert _describe_difference(by_process) == (
        "The processes of this run differ in config.seed: 0 in processes 0, 1 and 3, 1 in process 2 (1 more differ); "
        "give all of them the same command, code and data."
    )


@pytest.mark.parametrize(
    ("processes", "words"),
    [
        ([3], "process 3"),
        ([0, 2], "processes 0 and 2"),
        ([0, 1, 2, 3], "processes 0, 1, 2 and 3"),
        (list(range(64)), "processes 0, 1, 2 and 61 others"),
    ],
)
def test_names_of_processes(processes, words):
    assert name_processes(processes) == words


def test_code_fingerprint_is_of_the_code(tmp_path):
    assert code_fingerprint() == code_fingerprint(Path(noisytwins_jax.__file__).parent)
    assert code_fingerprint().startswith(f"{noisytwins_jax.__version__}+")
    (tmp_path / "a.py").write_text("x = 1")
    before = code_fingerprint(tmp_path)
    (tmp_path / "a.py").write_text("x = 2")
    assert code_fingerprint(tmp_path) != before


def test_other_data_are_refused():
    check_same_data({"next_index": 3, "fingerprint": "aa"}, "aa")
    check_same_data({"next_index": 3}, "aa")
    with pytest.raises(UserError, match=r"not those .* \(fingerprint aa, then bb\)"):
        check_same_data({"next_index": 3, "fingerprint": "bb"}, "aa")
