import pytest

from noisytwins_jax.data.prepare.image_lists import class_folders, find_items, read_list
from noisytwins_jax.data.prepare.listing import Problems
from noisytwins_jax.utils.errors import UserError


def test_reads_spaces_tabs_and_paths_with_spaces(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufefftrain/b/2.jpg 1\r\n\n./a/one two.jpg\t0\n  a/ü.jpg   12 ".encode())
    problems = Problems()
    assert read_list(tmp_path / "list.txt", problems) == [("train/b/2.jpg", 1), ("a/one two.jpg", 0), ("a/ü.jpg", 12)]
    assert len(problems) == 0


def test_reports_wrong_lines(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a.jpg 0\nb.jpg\nc.jpg x\nd.jpg -1\n3\ne.jpg 1.0\nf.jpg 9999999\na.jpg 1\ng.jpg ²\nh.jpg 1\n")
    problems = Problems()
    assert read_list(path, problems) == [("a.jpg", 0), ("h.jpg", 1)]
    wrong = [
        (2, "b.jpg"),
        (3, "c.jpg x"),
        (4, "d.jpg -1"),
        (5, "3"),
        (6, "e.jpg 1.0"),
        (7, "f.jpg 9999999"),
        (9, "g.jpg ²"),
    ]
    assert problems.wrong == {
        "list lines that are not '<path> <class id>'": [f"{path}:{number}: {line}" for number, line in wrong],
        "paths that a list has twice": [f"{path}:8: a.jpg 1"],
    }


def test_refuses_missing_and_empty_lists(tmp_path):
    with pytest.raises(UserError, match=r"The list .*none\.txt cannot be read .*'<path> <class id>'"):
        read_list(tmp_path / "none.txt", Problems())
    with pytest.raises(UserError, match="cannot be read"):
        read_list(tmp_path, Problems())
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"empty\.txt names no image"):
        read_list(tmp_path / "empty.txt", Problems())


def test_find_items(tmp_path):
    problems = Problems()
    entries = [("b", 1), ("gone", 0), ("a", 0)]
    items = find_items(entries, {"a": "A", "b": "B"}.get, problems, listed_in=tmp_path / "list.txt", source=tmp_path)
    assert [(item.name, item.label, item.location) for item in items] == [("b", 1, "B"), ("a", 0, "A")]
    assert problems.wrong == {"listed images that are missing": [f"{tmp_path / 'list.txt'}: gone"]}
    with pytest.raises(UserError, match=r"None of the 3 images of .*list\.txt is in .*, the first one being b; give"):
        find_items(entries, {}.get, problems, listed_in=tmp_path / "list.txt", source=tmp_path)


def test_class_folders():
    entries = [("train/x/1", 0), ("y/2", 0), ("z/x/3", 0), ("y/4", 1), ("5", 2)]
    assert class_folders(entries) == {0: ["x", "y"], 1: ["y"]}
