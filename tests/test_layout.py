"""Sizes that keep the package easy to find one's way in; `make lint` checks its layers."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "noisytwins_jax"
# To be copied into any program as one file; its docstring says so.
LONG = {"interop/pytorch/stylegan2.py", "interop/pytorch/biggan.py"}


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_no_file_is_long():
    long = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if lines(path) > 400}
    assert long <= LONG
    assert lines(PACKAGE / "train.py") <= 200


def test_no_folder_has_many_files():
    folders = [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__")]
    files = {path: len([file for file in path.glob("*.py") if file.name != "__init__.py"]) for path in folders}
    assert max(files.values()) <= 20
    assert len({path.name for path in PACKAGE.iterdir()} - {"__init__.py", "__pycache__"}) <= 17
