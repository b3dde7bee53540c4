"""The notebooks: plain files without outputs, that import what there is and run from top to bottom.

As a program, runs the code cells of a notebook in order, in one namespace: python tests/test_colabs.py NOTEBOOK
"""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from paths import HELPERS, ROOT

COLABS = ROOT / "colabs"
NOTEBOOKS = ("sampling.ipynb", "train_digits.ipynb")


def cells(path):
    """Type and source of every cell."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text("utf-8"))["cells"]]


def code(path):
    return [source for kind, source in cells(path) if kind == "code"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_a_plain_notebook_without_outputs(name):
    notebook = json.loads((COLABS / name).read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) > 10
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown") and cell["metadata"] == {}
        assert all(line.endswith("\n") for line in cell["source"][:-1]) and cell["source"][-1].strip()
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    assert notebook["cells"][0]["source"][0].startswith("# ")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_imports_what_there_is(name):
    imported = [
        (node.module, alias.name)
        for source in code(COLABS / name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("noisytwins_jax")
        for alias in node.names
    ]
    assert len(imported) > 5
    missing = [(module, word) for module, word in imported if not hasattr(importlib.import_module(module), word)]
    assert not missing


def address():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def test_the_repository_has_one_address():
    """That of pyproject.toml, in badges and in the first cells."""
    where = address().removeprefix("https://github.com/")
    pages = [*COLABS.glob("*.ipynb"), COLABS / "README.md", ROOT / "README.md"]
    text = {page: page.read_text("utf-8") for page in pages}
    for page in pages:
        found = re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/main/([^)]*)\)", text[page])
        assert all(repository == where and (ROOT / path).is_file() for repository, path in found)
        if page.suffix == ".ipynb":
            assert [path for _, path in found] == [f"colabs/{page.name}"]
            assert f'SOURCE = "{address()}"' in code(page)[0]
    assert code(COLABS / NOTEBOOKS[0])[0] == code(COLABS / NOTEBOOKS[1])[0]


@pytest.mark.parametrize("cloned", [False, True])
def test_the_first_cell_installs_without_touching_jax(tmp_path, monkeypatch, cloned):
    """Where the notebook is alone, as in Colab; running the cell again does not clone again."""
    ran = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append([str(word) for word in command]))
    monkeypatch.setattr(sys, "path", [*sys.path])
    if cloned:
        (tmp_path / "noisytwins").mkdir()
    exec(code(COLABS / NOTEBOOKS[0])[0].replace("OWNER/", "me/"), {})
    clone = ["git", "clone", "--quiet", "--depth=1", address().replace("OWNER", "me"), str(tmp_path / "noisytwins")]
    assert ran[:-1] == ([] if cloned else [clone])
    assert ran[-1][1:4] == ["-m", "pip", "install"] and ran[-1][-2:] == ["--editable", str(tmp_path / "noisytwins")]
    assert "--constraint=constraints.txt" in ran[-1]
    kept = (tmp_path / "constraints.txt").read_text().splitlines()
    assert {f"{name}=={importlib.metadata.version(name)}" for name in ("jax", "jaxlib")} <= set(kept)
    assert sys.path[0] == str(tmp_path / "noisytwins")


def test_no_notebook_is_left_out():
    assert {path.name for path in COLABS.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_from_top_to_bottom(name, tmp_path):
    environment = {**os.environ, "MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HELPERS)}
    done = subprocess.run(
        [sys.executable, __file__, COLABS / name], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    if name == "sampling.ipynb":
        assert (tmp_path / "interpolation.gif").stat().st_size > 1000
        (line,) = [line for line in said if line.startswith("distance in W ")]
        in_w, in_layers = (float(word.rstrip(",")) for word in line.split() if word[0].isdigit())
        (begun,) = [float(line.split()[-1]) for line in said if line.startswith("step 50:")]
        assert in_layers < in_w < begun
        assert sum(line.startswith("<PIL.Image.Image") for line in said) >= 7
    else:
        ratios = {
            line.split(":")[0]: float(line.split("W ratio ")[1].split(",")[0]) for line in said if "W ratio" in line
        }
        assert ratios["noisytwins"] > 0.5 > ratios["baseline"]
        assert sum(line.startswith("<PIL.Image.Image") for line in said) >= 7


def run(path):
    """Runs the code cells of a notebook; an error names its cell."""
    namespace = {"__name__": "__main__"}
    for number, source in enumerate(code(path)):
        exec(compile(source, f"{path.name}, code cell {number}", "exec"), namespace)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
