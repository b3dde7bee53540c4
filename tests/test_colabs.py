"""The notebooks: plain files without outputs, that import what there is and run from top to bottom.

As a program, runs the code cells of a notebook in order, in one namespace: python tests/test_colabs.py NOTEBOOK
"""

import ast
import importlib
import json
import os
import subprocess
import sys
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
